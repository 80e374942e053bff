/// A picture in memory: RGB, 8 bits, row by row, upright.
public struct Picture: Equatable, Sendable {
    public let width: Int
    public let height: Int
    /// `height * width * 3` bytes.
    public let pixels: [UInt8]

    /// - Throws: `PulseEdgeError` (`.image`): a side is not positive, or the bytes do not fill the picture.
    public init(width: Int, height: Int, pixels: [UInt8]) throws {
        guard width > 0, height > 0 else {
            throw PulseEdgeError(
                .image, "A picture of \(width)x\(height) pixels has no content. Give a larger one.")
        }
        guard pixels.count == width * height * 3 else {
            throw PulseEdgeError(
                .image,
                "\(pixels.count) bytes are not an RGB picture of \(width)x\(height) pixels. Pass 3 bytes a pixel."
            )
        }
        self.init(trusted: width, height, pixels)
    }

    init(trusted width: Int, _ height: Int, _ pixels: [UInt8]) {
        (self.width, self.height, self.pixels) = (width, height, pixels)
    }
}
