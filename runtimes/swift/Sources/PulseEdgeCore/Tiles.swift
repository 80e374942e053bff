import Foundation

/// Where a picture lands on its grid; pairs are (x, y) or (width, height) in pixels.
public struct TileGeometry: Equatable, Sendable {
    public struct Size: Equatable, Sendable {
        public let width: Int
        public let height: Int

        public init(_ width: Int, _ height: Int) { (self.width, self.height) = (width, height) }
    }

    /// Of the picture.
    public let size: Size
    /// The grid that is chosen, one of ``Contract/gridPinpoints``.
    public let best: Size
    /// Of the picture inside the grid; its aspect is kept.
    public let resized: Size
    /// Offset of the resized picture on the black canvas.
    public let paste: Size

    public var columns: Int { best.width / Contract.tileSize }
    public var rows: Int { best.height / Contract.tileSize }
    /// Tiles in all, the view of the whole picture included.
    public var views: Int { 1 + columns * rows }

    /// Choose the grid for a picture and place the picture on it: `pulse_edge.model.preprocess.geometry`.
    ///
    /// - Throws: `PulseEdgeError` (`.image`): a side is not positive.
    public init(width: Int, height: Int) throws {
        guard width > 0, height > 0 else {
            throw PulseEdgeError(
                .image, "A picture of \(width)x\(height) pixels has no content. Give a larger one.")
        }
        var chosen: (size: Size, use: (Int, Int))?
        for (gridWidth, gridHeight) in Contract.gridPinpoints {
            let use = Self.usefulness(width, height, gridWidth, gridHeight)
            if chosen == nil || use > chosen!.use { chosen = (Size(gridWidth, gridHeight), use) }
        }
        let best = chosen!.size
        let across = Double(best.width) / Double(width)
        let down = Double(best.height) / Double(height)
        if across < down {
            resized = Size(best.width, min(Int((Double(height) * across).rounded(.up)), best.height))
        } else {
            resized = Size(min(Int((Double(width) * down).rounded(.up)), best.width), best.height)
        }
        size = Size(width, height)
        self.best = best
        paste = Size((best.width - resized.width) / 2, (best.height - resized.height) / 2)
    }

    /// Pixels of the picture that survive in a grid, then (negative) pixels of the grid that are wasted.
    private static func usefulness(_ width: Int, _ height: Int, _ gridWidth: Int, _ gridHeight: Int) -> (
        Int, Int
    ) {
        let scale = min(Double(gridWidth) / Double(width), Double(gridHeight) / Double(height))
        let kept = Int(Double(width) * scale) * Int(Double(height) * scale)
        let effective = min(kept, width * height)
        return (effective, effective - gridWidth * gridHeight)
    }
}

/// The tiles of one picture, as the model reads them.
public struct Tiles: Equatable, Sendable {
    /// Number of tiles, the view of the whole picture included.
    public let views: Int
    /// `views * 336 * 336 * 3` bytes RGB: the squashed view of the whole picture, then the tiles row by row.
    public let pixels: [UInt8]
    public let geometry: TileGeometry

    /// Cut a picture into tiles: `pulse_edge.tiles`, bit for bit.
    public init(_ picture: Picture) throws {
        let place = try TileGeometry(width: picture.width, height: picture.height)
        let side = Contract.tileSize
        let base = Resample.bicubic(picture, side, side)
        let fitted = Resample.bicubic(picture, place.resized.width, place.resized.height)
        var pixels = base.pixels
        pixels.reserveCapacity(place.views * side * side * 3)
        let (red, green, blue) = Contract.padColour
        for row in 0..<place.rows {
            for column in 0..<place.columns {
                for y in (row * side)..<((row + 1) * side) {
                    for x in (column * side)..<((column + 1) * side) {
                        let (fromX, fromY) = (x - place.paste.width, y - place.paste.height)
                        if fromX >= 0, fromX < fitted.width, fromY >= 0, fromY < fitted.height {
                            let at = (fromY * fitted.width + fromX) * 3
                            pixels.append(fitted.pixels[at])
                            pixels.append(fitted.pixels[at + 1])
                            pixels.append(fitted.pixels[at + 2])
                        } else {
                            pixels.append(red)
                            pixels.append(green)
                            pixels.append(blue)
                        }
                    }
                }
            }
        }
        self.views = place.views
        self.pixels = pixels
        self.geometry = place
    }

    /// One tile as a picture of 336x336.
    public func picture(_ view: Int) -> Picture {
        let count = Contract.tileSize * Contract.tileSize * 3
        return Picture(
            trusted: Contract.tileSize, Contract.tileSize,
            Array(pixels[(view * count)..<((view + 1) * count)]))
    }

    /// Pixel values float32 `[views, 3, 336, 336]` with CLIP's mean and standard deviation applied, bit for bit
    /// those of `pulse_edge.preprocess`; for graphs that do not normalise by themselves.
    public func normalized() -> [Float] {
        let plane = Contract.tileSize * Contract.tileSize
        let levels = (0..<3).map { channel in
            (0..<256).map { level in
                (Float(Double(level) * (1 / 255)) - Float(Contract.imageMean[channel]))
                    / Float(Contract.imageStd[channel])
            }
        }
        return [Float](unsafeUninitializedCapacity: views * 3 * plane) { out, count in
            for view in 0..<views {
                for channel in 0..<3 {
                    for at in 0..<plane {
                        out[(view * 3 + channel) * plane + at] =
                            levels[channel][Int(pixels[(view * plane + at) * 3 + channel])]
                    }
                }
            }
            count = views * 3 * plane
        }
    }
}
