import Foundation

public struct SHA256 {
    public init() {}
    public mutating func update(data: some DataProtocol) {}
    public func finalize() -> [UInt8] { [] }
    public static func hash(data: some DataProtocol) -> [UInt8] { [] }
}
public enum Curve25519 {
    public enum Signing {
        public struct PublicKey {
            public init(rawRepresentation: some ContiguousBytes) throws {}
            public func isValidSignature(_ signature: some DataProtocol, for data: some DataProtocol) -> Bool
            { false }
        }
    }
}
