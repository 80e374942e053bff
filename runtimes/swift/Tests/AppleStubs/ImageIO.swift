import CoreGraphics
@_exported import CoreVideo

public final class CGImageSource {}
public let kCGImagePropertyOrientation: CFString = ""
public func CGImageSourceCreateWithData(_ data: CFData, _ options: CFDictionary?) -> CGImageSource? { nil }
public func CGImageSourceCreateImageAtIndex(_ source: CGImageSource, _ index: Int, _ options: CFDictionary?)
    -> CGImage?
{
    nil
}
public func CGImageSourceCopyPropertiesAtIndex(
    _ source: CGImageSource, _ index: Int, _ options: CFDictionary?
)
    -> CFDictionary?
{ nil }
