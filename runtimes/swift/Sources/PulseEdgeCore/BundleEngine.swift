import Foundation

/// What goes into a Core ML package and comes out of it.
public enum Feature: Equatable, Sendable {
    case floats([Float], shape: [Int])
    case ints([Int32], shape: [Int])
    case picture(Picture)

    var floats: [Float]? { if case .floats(let values, _) = self { values } else { nil } }
    var shape: [Int] {
        switch self {
        case .floats(_, let shape), .ints(_, let shape): shape
        case .picture(let picture): [picture.height, picture.width, 3]
        }
    }
}

/// One loaded `.mlpackage`. The order of calls lies in ``BundleEngine``, which runs everywhere; only what is
/// below this protocol needs a device.
public protocol ModelPackage: Sendable {
    /// Forget all states.
    func reset() async throws

    /// - Parameter function: of a package that has several; nil for the only one.
    func run(_ inputs: [String: Feature], function: String?) async throws -> [String: Feature]
}

/// The packages of a bundle as an engine: the counterpart of `pulse_edge.export.coreml.player`, call for call.
public actor BundleEngine<Package: ModelPackage>: Backend {
    public nonisolated let context: Int

    private let vision: Package
    private let embedding: Package
    private let chunks: [(package: Package, wantsLast: Bool)]
    private let layout: Manifest.DecoderLayout
    private let merge: Merge
    private let newline: [Float]?
    private var read = 0

    /// - Parameters:
    ///   - packages: by role; `preprocess` is not needed, since ``Tiles`` does its work.
    ///   - manifest: of the same bundle.
    ///   - newline: contents of `image_newline.npy`, if the bundle has it.
    /// - Throws: `PulseEdgeError` (`.bundle`): a package or the newline is missing, or the merge is unknown.
    public init(_ packages: [String: Package], _ manifest: Manifest, newline: Data? = nil) throws {
        func need(_ role: String) throws -> Package {
            guard let package = packages[role] else {
                throw PulseEdgeError(.bundle, "The bundle has no package \(role). Export the bundle again.")
            }
            return package
        }
        let layout = try manifest.decoderLayout()
        guard let merge = Merge(rawValue: manifest.merge) else {
            throw PulseEdgeError(
                .bundle,
                "The bundle merges \"\(manifest.merge)\", which this app does not know. Update PulseEdge.")
        }
        let row = newline.flatMap(Numpy.floats)
        guard merge != .spatialUnpad || row != nil else {
            throw PulseEdgeError(
                .bundle, "The merge \(merge.rawValue) needs image_newline.npy, which is missing or damaged.")
        }
        vision = try need("vision")
        embedding = try need("embed")
        chunks = try layout.graphs.map { role in
            let inputs = manifest.json["graphs"]?[role]?["functions"]?["prefill"]?["inputs"]
            return (try need(role), inputs?["last"] != nil)
        }
        (self.layout, self.merge, self.newline) = (layout, merge, row)
        context = manifest.context
    }

    public func position() -> Int { read }

    public func encode(_ tiles: Tiles) async throws -> Rows {
        let side = Contract.tileSize
        let blank = (Contract.maxTiles - tiles.views) * side * side * 3
        let stack = try Picture(
            width: side, height: Contract.maxTiles * side,
            pixels: tiles.pixels + [UInt8](repeating: 0, count: blank))
        let shown = (0..<Contract.maxTiles).map { Float($0 < tiles.views ? 1 : 0) }
        let made = try await vision.run(
            ["tiles": .picture(stack), "shown": .floats(shown, shape: [shown.count])], function: nil)
        let features = try need("image_features", made)
        guard features.shape.count == 3, let values = features.floats else {
            throw Self.unexpected("image_features")
        }
        let (tokens, width) = (features.shape[1], features.shape[2])
        let views = merge == .kept ? Contract.maxTiles : tiles.views
        var rows = Array(values.prefix(views * tokens * width))
        if let newline {
            guard newline.count == width else { throw Self.unexpected("image_newline.npy") }
            rows += newline
        }
        return Rows(width: width, values: rows).choose(merge.index(tiles.geometry, tokens: tokens))
    }

    public func prefill(_ embeddings: Rows, _ tokens: [Int]) async throws -> [Float] {
        for chunk in chunks { try await chunk.package.reset() }
        read = 0
        guard let at = tokens.firstIndex(of: Contract.imageTokenID) else { return try await extend(tokens) }
        let before = try await lookUp(Array(tokens[..<at]), embeddings.width)
        let after = try await lookUp(Array(tokens[(at + 1)...]), embeddings.width)
        return try await readRows(before + embeddings + after)
    }

    public func extend(_ tokens: [Int]) async throws -> [Float] {
        try await readRows(try await lookUp(tokens, 0))
    }

    /// What was read behind `position` is masked from now on, and overwritten.
    public func rewind(to position: Int) async throws {
        guard (0...read).contains(position) else {
            throw PulseEdgeError(
                .failure, "Cannot rewind to \(position): \(read) tokens were read. Ask again.")
        }
        read = position
    }

    private func lookUp(_ tokens: [Int], _ width: Int) async throws -> Rows {
        guard !tokens.isEmpty else { return Rows(width: width) }
        let ids = Feature.ints(tokens.map(Int32.init), shape: [1, tokens.count])
        let made = try need("inputs_embeds", try await embedding.run(["input_ids": ids], function: nil))
        guard made.shape.count == 3, let values = made.floats else { throw Self.unexpected("inputs_embeds") }
        return Rows(width: made.shape[2], values: values)
    }

    private func readRows(_ rows: Rows) async throws -> [Float] {
        let total = read + rows.count
        guard rows.count > 0 else {
            throw PulseEdgeError(.failure, "There are no tokens to read. Ask again.")
        }
        guard total <= context else {
            throw PulseEdgeError(
                .input,
                "Picture and text make \(total) tokens, but the bundle's context is \(context). "
                    + "Ask a shorter question.")
        }
        var logits: [Float] = []
        var at = 0
        while at < rows.count {
            try Task.checkCancellation()
            let length = rows.count - at == 1 ? 1 : layout.prefill
            let end = min(at + length, rows.count)
            logits = try await call(rows.slice(at..<end, padded: length), end - at, length, rows.width)
            at = end
        }
        return logits
    }

    /// Run all chunks on `count` rows, filled up behind to `length` rows that no row looks at.
    private func call(_ padded: [Float], _ count: Int, _ length: Int, _ width: Int) async throws -> [Float] {
        let function = length == 1 ? "decode" : "prefill"
        let given: [String: Feature] = [
            "position": .ints([Int32(read)], shape: [1]),
            "mask": .floats(mask(length), shape: [1, 1, length, layout.cache]),
        ]
        var flow: [String: Feature] = ["inputs_embeds": .floats(padded, shape: [1, length, width])]
        for chunk in chunks {
            var inputs = given.merging(flow) { first, _ in first }
            if chunk.wantsLast && length > 1 { inputs["last"] = .ints([Int32(count - 1)], shape: [1]) }
            let made = try await chunk.package.run(inputs, function: function)
            flow = made["hidden_out"].map { ["hidden": $0] } ?? made
        }
        guard let logits = try need("logits", flow).floats else { throw Self.unexpected("logits") }
        read += count
        return logits
    }

    /// 0 where a row may look, which is up to its own place in the cache.
    private func mask(_ length: Int) -> [Float] {
        var mask = [Float](repeating: layout.masked, count: length * layout.cache)
        for row in 0..<length {
            for column in 0..<min(read + row + 1, layout.cache) { mask[row * layout.cache + column] = 0 }
        }
        return mask
    }

    private func need(_ name: String, _ made: [String: Feature]) throws -> Feature {
        guard let feature = made[name] else { throw Self.unexpected(name) }
        return feature
    }

    private static func unexpected(_ name: String) -> PulseEdgeError {
        PulseEdgeError(.bundle, "A package of the bundle gave no usable \(name). Export the bundle again.")
    }
}
