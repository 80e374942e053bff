/// Pillow's bicubic resize of 8-bit pictures, bit for bit, horizontal pass first.
///
/// PULSE was trained on tiles that Pillow resized; Core Image and vImage use other filters and give other
/// pixels. Source of the method: Pillow's documentation of `Image.resize` (convolution whose support grows with
/// the reduction) and its 8-bit fixed-point arithmetic; held to Pillow's own output by the golden vectors.
enum Resample {
    /// Bits behind the point: 32 less 8 for the pixel, less 2 for overshoot.
    private static let precision = 22
    private static let support = 2.0
    private static let a = -0.5

    /// What one output pixel is made of: weights for the input pixels from `first` on.
    private struct Taps {
        let first: Int
        let weights: [Int32]
    }

    static func bicubic(_ picture: Picture, _ width: Int, _ height: Int) -> Picture {
        vertically(horizontally(picture, width), height)
    }

    private static func horizontally(_ picture: Picture, _ width: Int) -> Picture {
        if width == picture.width { return picture }
        let taps = taps(from: picture.width, to: width)
        let out = [UInt8](unsafeUninitializedCapacity: width * picture.height * 3) { out, count in
            picture.pixels.withUnsafeBufferPointer { pixels in
                for y in 0..<picture.height {
                    let row = y * picture.width
                    for x in 0..<width {
                        var sums = (half, half, half)
                        var at = (row + taps[x].first) * 3
                        for weight in taps[x].weights {
                            sums.0 &+= weight &* Int32(pixels[at])
                            sums.1 &+= weight &* Int32(pixels[at + 1])
                            sums.2 &+= weight &* Int32(pixels[at + 2])
                            at += 3
                        }
                        let to = (y * width + x) * 3
                        out[to] = clip(sums.0)
                        out[to + 1] = clip(sums.1)
                        out[to + 2] = clip(sums.2)
                    }
                }
            }
            count = out.count
        }
        return Picture(trusted: width, picture.height, out)
    }

    private static func vertically(_ picture: Picture, _ height: Int) -> Picture {
        if height == picture.height { return picture }
        let row = picture.width * 3
        let taps = taps(from: picture.height, to: height)
        let out = [UInt8](unsafeUninitializedCapacity: height * row) { out, count in
            picture.pixels.withUnsafeBufferPointer { pixels in
                var sums = [Int32](repeating: 0, count: row)
                for y in 0..<height {
                    for x in 0..<row { sums[x] = half }
                    for (k, weight) in taps[y].weights.enumerated() {
                        let from = (taps[y].first + k) * row
                        for x in 0..<row { sums[x] &+= weight &* Int32(pixels[from + x]) }
                    }
                    for x in 0..<row { out[y * row + x] = clip(sums[x]) }
                }
            }
            count = out.count
        }
        return Picture(trusted: picture.width, height, out)
    }

    private static func taps(from size: Int, to wanted: Int) -> [Taps] {
        let scale = Double(size) / Double(wanted)
        let stretch = max(scale, 1)
        let reach = support * stretch
        return (0..<wanted).map { place in
            let centre = (Double(place) + 0.5) * scale
            let first = max(0, Int(centre - reach + 0.5))
            let last = min(size, Int(centre + reach + 0.5))
            let inverse = 1 / stretch
            var weights = (0..<(last - first)).map { kernel((Double($0 + first) - centre + 0.5) * inverse) }
            let sum = weights.reduce(0, +)
            if sum != 0 { weights = weights.map { $0 * (1 / sum) } }
            return Taps(first: first, weights: weights.map(fixed))
        }
    }

    /// Keys' cubic convolution kernel with a = -0.5.
    private static func kernel(_ x: Double) -> Double {
        let x = abs(x)
        if x < 1 { return ((a + 2) * x - (a + 3)) * x * x + 1 }
        if x < 2 { return (((x - 5) * x + 8) * x - 4) * a }
        return 0
    }

    private static func fixed(_ weight: Double) -> Int32 {
        let scaled = weight * Double(1 << precision)
        return Int32(weight < 0 ? scaled - 0.5 : scaled + 0.5)
    }

    private static let half = Int32(1) << Int32(precision - 1)

    private static func clip(_ sum: Int32) -> UInt8 { UInt8(max(0, min(255, sum >> Int32(precision)))) }
}
