import Foundation

/// The quality gate's verdict on a photo, as `pulse-edge capture --json` writes it.
public struct CaptureReport: Codable, Equatable, Sendable {
    public enum Grade: String, Codable, Sendable, CaseIterable {
        case good
        /// May be read, with what the reasons say in mind.
        case usable
        /// Nothing read from this photo may be trusted.
        case refuse
    }

    public let grade: Grade
    /// Sentences for the person at the bedside, what weighs most first; none for a good photo.
    public let reasons: [String]
    /// Pixels for one millimetre of paper, across and down.
    public let pxPerMm: [Double]?
    /// Degrees that the page was turned by.
    public let rotation: Double?
    public let residualMm: Double?

    public init(
        _ grade: Grade, reasons: [String] = [], pxPerMm: [Double]? = nil, rotation: Double? = nil,
        residualMm: Double? = nil
    ) {
        (self.grade, self.reasons, self.pxPerMm) = (grade, reasons, pxPerMm)
        (self.rotation, self.residualMm) = (rotation, residualMm)
    }

    private enum CodingKeys: String, CodingKey {
        case grade, reasons, rotation
        case pxPerMm = "px_per_mm"
        case residualMm = "residual_mm"
    }
}

/// What looks at a photo before the model does. The app brings it: `pulse-edge capture` is Python, so on a phone
/// this is a gate of the app's own, or one that asks a cart.
public protocol CaptureGate: Sendable {
    /// - Parameter picture: upright.
    func judge(_ picture: Picture) async throws -> CaptureReport
}
