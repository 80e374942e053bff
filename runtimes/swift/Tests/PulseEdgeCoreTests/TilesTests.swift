import Foundation
import Testing

@testable import PulseEdgeCore

@Suite struct TilesTests {
    @Test func everySizeLandsOnItsGrid() throws {
        let cases = Golden.cases("tiles", "geometry").map(\.ints)
        #expect(cases.count > 400)
        for row in cases { try expectGeometry(row) }
    }

    /// The reference code's own table, where the folder of golden vectors is at hand.
    @Test func everySizeOfTheReferenceLandsOnItsGrid() throws {
        guard let shared = ProcessInfo.processInfo.environment["PULSE_EDGE_SHARED"] else { return }
        let file = URL(fileURLWithPath: shared).appendingPathComponent("golden/preprocess/geometry.csv")
        let lines = try String(contentsOf: file, encoding: .utf8).split(whereSeparator: \.isNewline)
            .dropFirst()
        #expect(lines.count == 2600)
        for line in lines {
            let row = line.split(separator: ",", omittingEmptySubsequences: false).prefix(9).map { Int($0)! }
            try expectGeometry(Array(row.dropLast()) + [row[8] + 1])
        }
    }

    private func expectGeometry(_ row: [Int]) throws {
        let place = try TileGeometry(width: row[0], height: row[1])
        let found = [
            place.size.width, place.size.height, place.best.width, place.best.height, place.resized.width,
            place.resized.height, place.paste.width, place.paste.height, place.views,
        ]
        #expect(found == row)
    }

    @Test(arguments: Golden.cases("tiles", "pictures").indices)
    func tilesArePillowsBitForBit(_ index: Int) throws {
        let row = Golden.cases("tiles", "pictures")[index]
        let picture = Golden.picture(row["width"]!.int!, row["height"]!.int!, row["seed"]!.int!)
        try #require(Hash.sha256(picture.pixels) == row["pixels"]!.string)
        let tiles = try Tiles(picture)
        #expect(tiles.views == row["views"]!.int)
        #expect(Hash.sha256(tiles.pixels) == row["tiles"]!.string)
        let values = tiles.normalized()
        let bytes = values.flatMap { value in withUnsafeBytes(of: value.bitPattern.littleEndian, Array.init) }
        #expect(Hash.sha256(bytes) == row["normalized"]!.string)
        #expect(tiles.picture(1).pixels == Array(tiles.pixels[(336 * 336 * 3)..<(2 * 336 * 336 * 3)]))
    }

    @Test func everyOrientationIsTurnedAsPillowTurnsIt() {
        for row in Golden.cases("tiles", "upright") {
            let turned = Golden.picture(7, 5, 2).upright(row["orientation"]!.int!)
            #expect([turned.height, turned.width] == row["size"]!.ints)
            #expect(turned.pixels.map(Int.init) == row["pixels"]!.ints)
        }
    }

    @Test func tokensAreMergedInPythonsOrder() throws {
        for row in Golden.cases("tiles", "merges") {
            let place = try TileGeometry(width: row["size"]!.ints[0], height: row["size"]!.ints[1])
            let index = Merge(rawValue: row["merge"]!.string!)!.index(place, tokens: row["tokens"]!.int!)
            #expect(index.count == row["count"]!.int)
            let bytes = index.flatMap { value in withUnsafeBytes(of: Int32(value).littleEndian, Array.init) }
            #expect(Hash.sha256(bytes) == row["sha256"]!.string)
        }
    }

    @Test func aPictureWithoutContentIsRefused() {
        #expect(throws: PulseEdgeError.self) { try TileGeometry(width: 0, height: 5) }
        #expect(throws: PulseEdgeError.self) { try Picture(width: 2, height: -1, pixels: []) }
        #expect(throws: PulseEdgeError.self) { try Picture(width: 2, height: 2, pixels: [0, 0, 0]) }
    }
}
