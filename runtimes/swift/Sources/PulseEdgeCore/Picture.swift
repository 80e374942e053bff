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

    /// The picture turned upright, as Pillow's `exif_transpose` turns it.
    ///
    /// - Parameter orientation: of EXIF, 1 to 8; any other value counts as 1.
    public func upright(_ orientation: Int) -> Picture {
        guard (2...8).contains(orientation) else { return self }
        let turned = orientation >= 5  // rows become columns
        let (wide, high) = turned ? (height, width) : (width, height)
        var out = [UInt8](repeating: 0, count: pixels.count)
        for y in 0..<high {
            for x in 0..<wide {
                let (fromX, fromY) =
                    switch orientation {
                    case 2: (width - 1 - x, y)
                    case 3: (width - 1 - x, height - 1 - y)
                    case 4: (x, height - 1 - y)
                    case 5: (y, x)
                    case 6: (y, height - 1 - x)
                    case 7: (width - 1 - y, height - 1 - x)
                    default: (width - 1 - y, x)
                    }
                let (to, from) = ((y * wide + x) * 3, (fromY * width + fromX) * 3)
                for channel in 0..<3 { out[to + channel] = pixels[from + channel] }
            }
        }
        return Picture(trusted: wide, high, out)
    }
}
