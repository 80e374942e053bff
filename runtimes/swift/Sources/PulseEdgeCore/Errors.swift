import Foundation

/// Everything that fails on purpose. The message says what happened, why, and the next step, in the words
/// that `pulse-edge` uses for the same fault.
public struct PulseEdgeError: Error, Equatable, Sendable, LocalizedError, CustomStringConvertible {
    /// What is at fault; the cases mirror the error tree of `pulse_edge/errors.py`.
    public enum Kind: String, Sendable {
        /// Something failed that nobody asked for: weights that overflow, a full disk.
        case failure
        /// A question or a setting.
        case input
        /// A picture that has no content or does not fit.
        case image
        /// A tokenizer that cannot be used.
        case checkpoint
        /// A bundle that is damaged, incomplete or newer than this package.
        case bundle
        /// The device has too little memory.
        case memory
    }

    public let kind: Kind
    public let message: String

    public init(_ kind: Kind, _ message: String) {
        self.kind = kind
        self.message = message
    }

    public var errorDescription: String? { message }
    public var description: String { message }
}
