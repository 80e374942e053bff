import Foundation
import Testing

@testable import PulseEdgeCore

/// The vectors that `golden.py` computed with the Python code.
enum Golden {
    static func cases(_ file: String, _ group: String) -> [JSON] {
        let url = Bundle.module.url(forResource: "Golden/\(file)", withExtension: "json")!
        return try! JSON(Data(contentsOf: url))[group]!.array!
    }

    /// The shipped model's folder in the checkout that these tests stand in.
    static let nano = URL(fileURLWithPath: #filePath)
        .appendingPathComponent("../../../../../pulse_edge/assets/pulse-nano").standardizedFileURL

    static func tokenizer(legacy: Bool) -> Tokenizer {
        try! Tokenizer(file: nano.appendingPathComponent(Tokenizer.file), legacy: legacy)
    }

    /// The picture of `golden.picture`, by the same formula.
    static func picture(_ width: Int, _ height: Int, _ seed: Int) -> Picture {
        var pixels: [UInt8] = []
        pixels.reserveCapacity(width * height * 3)
        for y in 0..<height {
            for x in 0..<width {
                for c in 0..<3 {
                    var value: Int
                    if seed % 2 == 1 {
                        value = floorDivide(x * (3 + c) + y * (5 - c), seed % 7 + 2)
                        value = value % 512 < 256 ? value % 256 : 255 - value % 256
                    } else {
                        value = (y * width + x) * 3 + c
                        value = (value * 1_103_515_245 + seed * 12345) % modulus
                        value = ((value * 1_103_515_245 + 12345) % modulus) >> 16
                    }
                    pixels.append(UInt8(value % 256))
                }
            }
        }
        return try! Picture(width: width, height: height, pixels: pixels)
    }

    static let modulus = 1 << 31

    private static func floorDivide(_ a: Int, _ b: Int) -> Int { a / b }  // both are never negative
}

extension JSON {
    var ints: [Int] { array!.map { $0.int! } }
    var strings: [String] { array!.map { $0.string! } }
    var floats: [Float] { array!.map { Float($0.double!) } }

    /// Whether a text is the same byte for byte; `==` of strings takes "e" and a combining accent for "é".
    func isExactly(_ text: String) -> Bool { string!.utf8.elementsEqual(text.utf8) }
}
