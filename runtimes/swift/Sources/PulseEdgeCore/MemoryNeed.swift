import Foundation

/// What a bundle takes of a device's memory, in bytes. An estimate: weights and cache are counted from the
/// bundle, the rest is a rule of thumb that was not measured on a device.
public struct MemoryNeed: Equatable, Sendable {
    /// Every file of the packages that are loaded.
    public let weights: Int
    /// The key-value cache at its full length.
    public let cache: Int
    /// Activations, and what Core ML keeps beside the weights.
    public let working: Int

    public var total: Int { weights + cache + working }

    /// Share of the weights, and a floor, that are planned for activations.
    static let workingShare = 0.15
    static let workingFloor = 128 << 20

    public init(_ manifest: Manifest) {
        let graphs = manifest.json["graphs"]?.object?.pairs ?? []
        let loaded = graphs.filter { $0.name != "preprocess" }
        let folders = loaded.compactMap { $0.value["file"]?.string }
        weights = manifest.files.reduce(0) { sum, file in
            let belongs = folders.contains { file.name == $0 || file.name.hasPrefix("\($0)/") }
            return belongs ? sum + file.bytes : sum
        }
        cache = loaded.reduce(0) { sum, graph in
            // Both functions share their states.
            let states = graph.value["functions"]?["decode"]?["states"]?.object?.pairs ?? []
            return states.reduce(sum) { $0 + Self.bytes($1.value) }
        }
        working = Self.workingFloor + Int(Double(weights) * Self.workingShare)
    }

    private static func bytes(_ state: JSON) -> Int {
        let size = state["dtype"]?.string == "float32" ? 4 : 2
        return (state["shape"]?.array ?? []).reduce(size) { $0 * max($1.int ?? 1, 1) }
    }

    /// One sentence that says why the bundle does not fit and what helps, nil if it fits.
    ///
    /// - Parameter available: bytes that the system still grants this app.
    public func problem(available: Int) -> String? {
        guard total > available else { return nil }
        func gigabytes(_ bytes: Int) -> String { String(format: "%.1f GB", Double(bytes) / 1e9) }
        return
            "The model needs about \(gigabytes(total)) (weights \(gigabytes(weights)), cache \(gigabytes(cache))), "
            + "and the system grants this app \(gigabytes(max(available, 0))). Add both memory entitlements to the app, "
            + "or export a smaller one: pulse-edge export --target coreml --precision int4"
    }
}
