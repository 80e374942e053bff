import Foundation

/// How the features of the tiles become one sequence of visual tokens: `pulse_edge.model.merge`.
public enum Merge: String, Sendable {
    /// Every token of every tile, padding included: PULSE-7B.
    case flat
    /// The tiles laid out as the page, without rows and columns that only hold padding; every row ends with a
    /// learned newline: LLaVA-1.6.
    case spatialUnpad = "spatial_unpad"
    /// What the graph has chosen already, whatever the picture's tiles: a model with pruned visual tokens.
    case kept

    /// Which row of the features each visual token takes.
    ///
    /// - Parameter tokens: of one tile, a square number for ``spatialUnpad``.
    /// - Returns: indices into the `views * tokens` rows; the row behind them is the newline.
    public func index(_ place: TileGeometry, tokens: Int) -> [Int] {
        let all = (self == .kept ? Contract.maxTiles : place.views) * tokens
        guard self == .spatialUnpad else { return Array(0..<all) }
        let side = Int(Double(tokens).squareRoot())
        let (rows, columns) = (place.rows * side, place.columns * side)
        let (down, across) = Self.unpadded(rows, columns, place.size.width, place.size.height)
        var index = Array(0..<tokens)
        for row in down {
            for column in across {
                let tile = 1 + row / side * place.columns + column / side
                index.append(tile * tokens + row % side * side + column % side)
            }
            index.append(all)
        }
        return index
    }

    /// Rows and columns of a feature map that show the picture; plain truncation, as in the reference.
    private static func unpadded(_ rows: Int, _ columns: Int, _ width: Int, _ height: Int)
        -> (Range<Int>, Range<Int>)
    {
        if Double(width) / Double(height) > Double(columns) / Double(rows) {
            let margin = (rows - Int(Double(height) * (Double(columns) / Double(width)))) / 2
            return (margin..<(rows - margin), 0..<columns)
        }
        let margin = (columns - Int(Double(width) * (Double(rows) / Double(height)))) / 2
        return (0..<rows, margin..<(columns - margin))
    }
}

/// Rows `[count, width]` that the decoder reads.
public struct Rows: Equatable, Sendable {
    public let width: Int
    public private(set) var values: [Float]

    public init(width: Int, values: [Float] = []) { (self.width, self.values) = (width, values) }

    public var count: Int { values.count / max(width, 1) }

    public static func + (a: Rows, b: Rows) -> Rows { Rows(width: a.width, values: a.values + b.values) }

    /// Rows `range`, filled up behind with zeros to `length` rows.
    func slice(_ range: Range<Int>, padded length: Int) -> [Float] {
        values[(range.lowerBound * width)..<(range.upperBound * width)]
            + [Float](repeating: 0, count: (length - range.count) * width)
    }

    func choose(_ index: [Int]) -> Rows {
        var chosen: [Float] = []
        chosen.reserveCapacity(index.count * width)
        for row in index { chosen += values[(row * width)..<((row + 1) * width)] }
        return Rows(width: width, values: chosen)
    }
}

/// The learned newline of ``Merge/spatialUnpad``, stored as numpy stores an array of float32.
enum Numpy {
    /// Values of a little-endian float32 `.npy` file, nil if it is not one.
    static func floats(_ data: Data) -> [Float]? {
        let bytes = Array(data)
        guard bytes.count > 10, bytes.starts(with: [0x93] + Array("NUMPY".utf8)), bytes[6] == 1 else {
            return nil
        }
        let start = 10 + Int(bytes[8]) + Int(bytes[9]) << 8
        guard bytes.count >= start, (bytes.count - start) % 4 == 0 else { return nil }
        let header = String(decoding: bytes[10..<start], as: UTF8.self)
        guard header.contains("'descr': '<f4'"), header.contains("'fortran_order': False") else { return nil }
        return stride(from: start, to: bytes.count, by: 4).map { at in
            Float(bitPattern: (0..<4).reduce(0) { $0 | UInt32(bytes[at + $1]) << (8 * UInt32($1)) })
        }
    }
}
