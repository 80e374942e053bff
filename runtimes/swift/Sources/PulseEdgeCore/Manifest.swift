import Foundation

/// The fields of `manifest.json` that running a bundle needs; everything else stays readable in ``json``.
public struct Manifest: Sendable {
    /// One diagnosis that ``Session/label(_:)`` gives a probability for.
    public struct Label: Equatable, Sendable {
        public let name: String
        /// What the scoring question's placeholders stand for, `phrase` above all.
        public let fields: [String: String]
    }

    /// The closed question of label scoring and its two answers.
    public struct Scoring: Equatable, Sendable {
        public let question: String
        public let positive: String
        public let negative: String
    }

    public let json: JSON
    public let modelName: String
    public let target: String
    /// `flat` or `spatial_unpad`: how the tokens of the tiles are put together.
    public let merge: String
    /// The most tokens the decoder holds, visual ones included.
    public let context: Int
    public let maxNewTokens: Int
    public let labels: [Label]
    public let scoring: Scoring
    /// The sentence to show beside every answer.
    public let intendedUse: String
    public let files: [ModelBundle.File]

    /// - Throws: `PulseEdgeError` (`.bundle`) that names the field.
    init(_ json: JSON, file: URL) throws {
        func need<T>(_ path: String, _ value: (JSON) -> T?) throws -> T {
            var found: JSON? = json
            for key in path.split(separator: ".") { found = found?[String(key)] }
            guard let result = found.flatMap(value) else {
                throw PulseEdgeError(
                    .bundle, "\(file.path) lacks a field ('\(path)'). Export the bundle again.")
            }
            return result
        }
        self.json = json
        modelName = try need("model.name", \.string)
        target = try need("target", \.string)
        merge = try need("preprocessing.merge", \.string)
        context = try need("generation.context", \.int)
        maxNewTokens = try need("generation.max_new_tokens", \.int)
        scoring = Scoring(
            question: try need("scoring.question", \.string),
            positive: try need("scoring.positive", \.string),
            negative: try need("scoring.negative", \.string))
        labels = try need("labels") { value in
            value.object?.pairs.map { name, fields in
                Label(name: name, fields: Self.texts(fields))
            }
        }
        intendedUse = try need("intended_use", \.string)
        files = try need("files", \.object).pairs.map { name, entry in
            ModelBundle.File(
                name: name, sha256: entry["sha256"]?.string ?? "", bytes: entry["bytes"]?.int ?? 0)
        }
    }

    /// How the decoder's packages are called.
    struct DecoderLayout: Equatable {
        /// Roles, in the order of calls.
        let graphs: [String]
        /// Length of the states.
        let cache: Int
        /// Rows that the function `prefill` reads at once.
        let prefill: Int
        /// What the mask holds where a row may not look.
        let masked: Float
    }

    /// - Throws: `PulseEdgeError` (`.bundle`): the bundle was not made for Core ML.
    func decoderLayout() throws -> DecoderLayout {
        let fields = json["coreml"]?["decoder"]
        guard let graphs = fields?["graphs"]?.array?.map(\.string), !graphs.isEmpty, !graphs.contains(nil),
            let cache = fields?["cache"]?.int, let prefill = fields?["prefill"]?.int, cache > 0, prefill > 0,
            let masked = fields?["masked"]?.double
        else {
            throw PulseEdgeError(
                .bundle,
                "The bundle is for \(target), not for Core ML. Export it with: pulse-edge export --target coreml"
            )
        }
        return DecoderLayout(
            graphs: graphs.compactMap(\.self), cache: cache, prefill: prefill, masked: Float(masked))
    }

    private static func texts(_ json: JSON) -> [String: String] {
        var texts: [String: String] = [:]
        for (name, value) in json.object?.pairs ?? [] { texts[name] = value.string }
        return texts
    }
}
