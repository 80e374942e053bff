@_exported import CoreVideo
import Foundation

public enum CGColorSpaceModel: Int32 { case unknown, monochrome, rgb, cmyk }
public final class CGColorSpace {
    public init?(name: CFString) {}
    public static let sRGB: CFString = ""
    public var model: CGColorSpaceModel { .rgb }
    public var supportsOutput: Bool { true }
}
public enum CGImageAlphaInfo: UInt32 {
    case none, premultipliedLast, premultipliedFirst, last, first, noneSkipLast
}
public enum CGInterpolationQuality: Int32 { case `default`, none, low, high }
public final class CGDataProvider { public init?(data: CFData) {} }
public struct CGBitmapInfo: OptionSet, Sendable {
    public let rawValue: UInt32
    public init(rawValue: UInt32) { self.rawValue = rawValue }
}
public enum CGColorRenderingIntent: Int32 { case defaultIntent, perceptual }
public final class CGImage: @unchecked Sendable {
    public init?(
        width: Int, height: Int, bitsPerComponent: Int, bitsPerPixel: Int, bytesPerRow: Int,
        space: CGColorSpace,
        bitmapInfo: CGBitmapInfo, provider: CGDataProvider, decode: UnsafePointer<CGFloat>?,
        shouldInterpolate: Bool, intent: CGColorRenderingIntent
    ) {}
    public var width: Int { 0 }
    public var height: Int { 0 }
    public var colorSpace: CGColorSpace? { nil }
}
public final class CGContext {
    public init?(
        data: UnsafeMutableRawPointer?, width: Int, height: Int, bitsPerComponent: Int, bytesPerRow: Int,
        space: CGColorSpace, bitmapInfo: UInt32
    ) {}
    public var interpolationQuality: CGInterpolationQuality {
        get { .none }
        set {}
    }
    public func draw(_ image: CGImage, in rect: CGRect) {}
}
/// Of Foundation on Apple's systems.
extension URL {
    public func startAccessingSecurityScopedResource() -> Bool { true }
    public func stopAccessingSecurityScopedResource() {}
}
