#if canImport(CoreML)
import CoreGraphics
import Foundation
import ImageIO
import PulseEdgeCore

extension Picture {
    /// Pictures above this are no photos of a page, and would exhaust an app's memory.
    static var mostPixels: Int { 100_000_000 }

    /// Decode a picture file (JPEG, HEIC, PNG) and turn it upright by its EXIF orientation.
    ///
    /// Pixels keep the file's own colour values, as Pillow's do; a profile is not applied.
    ///
    /// - Throws: `PulseEdgeError` (`.image`).
    public init(data: Data) throws {
        guard let source = CGImageSourceCreateWithData(data as CFData, nil),
            let image = CGImageSourceCreateImageAtIndex(source, 0, nil)
        else {
            throw PulseEdgeError(.image, "The picture cannot be read. Save it as JPEG, HEIC or PNG.")
        }
        let properties = CGImageSourceCopyPropertiesAtIndex(source, 0, nil) as? [CFString: Any]
        let orientation = (properties?[kCGImagePropertyOrientation] as? NSNumber)?.intValue ?? 1
        self = try Picture(image).upright(orientation)
    }

    /// The picture for the screen.
    public var image: CGImage? {
        guard let provider = CGDataProvider(data: Data(pixels) as CFData) else { return nil }
        return CGImage(
            width: width, height: height, bitsPerComponent: 8, bitsPerPixel: 24, bytesPerRow: width * 3,
            space: CGColorSpace(name: CGColorSpace.sRGB)!,
            bitmapInfo: CGBitmapInfo(rawValue: CGImageAlphaInfo.none.rawValue), provider: provider,
            decode: nil,
            shouldInterpolate: true, intent: .defaultIntent)
    }

    /// Copy the pixels of an image, on black where it is transparent.
    public init(_ image: CGImage) throws {
        let (width, height) = (image.width, image.height)
        guard width * height <= Self.mostPixels else {
            throw PulseEdgeError(
                .image, "A picture of \(width)x\(height) pixels is too large. Reduce it below 100 megapixels."
            )
        }
        // The image's own colour space, so that nothing is converted.
        let own = image.colorSpace.flatMap { $0.model == .rgb && $0.supportsOutput ? $0 : nil }
        let space = own ?? CGColorSpace(name: CGColorSpace.sRGB)!
        var rows = [UInt8](repeating: 0, count: width * height * 4)
        let drawn = rows.withUnsafeMutableBytes { bytes -> Bool in
            guard
                let context = CGContext(
                    data: bytes.baseAddress, width: width, height: height, bitsPerComponent: 8,
                    bytesPerRow: width * 4, space: space, bitmapInfo: CGImageAlphaInfo.noneSkipLast.rawValue)
            else { return false }
            context.interpolationQuality = .none
            context.draw(image, in: CGRect(x: 0, y: 0, width: width, height: height))
            return true
        }
        guard drawn else {
            throw PulseEdgeError(
                .image, "There is no memory for the picture. Close other apps and try again.")
        }
        let pixels = [UInt8](unsafeUninitializedCapacity: width * height * 3) { out, count in
            for at in 0..<(width * height) {
                out[at * 3] = rows[at * 4]
                out[at * 3 + 1] = rows[at * 4 + 1]
                out[at * 3 + 2] = rows[at * 4 + 2]
            }
            count = width * height * 3
        }
        try self.init(width: width, height: height, pixels: pixels)
    }
}
#endif
