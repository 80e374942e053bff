import Foundation

/// One engine with a key-value cache: Core ML on a device, a stand-in in tests.
///
/// ``Session`` calls it from one task at a time.
public protocol Backend: Sendable {
    /// What a picture becomes for the decoder.
    associatedtype Embeddings: Sendable

    /// The most tokens that it can hold, visual ones included.
    var context: Int { get }

    /// Tokens read so far, visual ones included.
    func position() async -> Int

    func encode(_ tiles: Tiles) async throws -> Embeddings

    /// Forget everything and read a prompt with one ``Contract/imageTokenID``; logits `[V]` behind it.
    func prefill(_ embeddings: Embeddings, _ tokens: [Int]) async throws -> [Float]

    /// Read further tokens; logits `[V]` behind the last.
    func extend(_ tokens: [Int]) async throws -> [Float]

    /// Forget what was read behind `position`.
    func rewind(to position: Int) async throws
}

/// Ask about ECG pages and score labels: `pulse_edge.runtimes.session.Session`.
///
/// The picture's part of a prompt is computed once and kept: further questions about the same picture, and
/// every label, cost only their own tokens. Calls that overlap wait for each other.
public actor Session<Engine: Backend, Codec: TextTokenizer> {
    /// Milliseconds of the last calls on the present picture; nil until measured.
    public struct Timing: Equatable, Sendable {
        public var preprocess: Double?
        public var vision: Double?
        /// Picture and question, up to the first logits.
        public var prefill: Double?
        public var decodePerToken: Double?
    }

    public nonisolated let labels: [Manifest.Label]
    public nonisolated let scoring: Manifest.Scoring
    public nonisolated let maxNewTokens: Int
    public private(set) var timing = Timing()

    private let engine: Engine
    private let tokenizer: Codec
    private var seen: Picture?
    private var kept = 0
    private var prefixTime = 0.0
    private var busy = false
    private var waiting: [CheckedContinuation<Void, Never>] = []

    public init(
        _ engine: Engine, _ tokenizer: Codec, labels: [Manifest.Label], scoring: Manifest.Scoring,
        maxNewTokens: Int = 128
    ) {
        (self.engine, self.tokenizer) = (engine, tokenizer)
        (self.labels, self.scoring, self.maxNewTokens) = (labels, scoring, maxNewTokens)
    }

    /// Answer a question about a page greedily, piece by piece, as PULSE is evaluated.
    ///
    /// The answer ends at the end token, at `maxNewTokens` or where the model's context does. Cancelling the
    /// task that reads the stream stops the model after the token in progress.
    ///
    /// - Parameters:
    ///   - question: free text, without `<image>`.
    ///   - picture: upright.
    ///   - maxNewTokens: the session's bound by default.
    public nonisolated func ask(
        _ question: String, about picture: Picture, maxNewTokens: Int? = nil
    ) -> AsyncThrowingStream<String, any Error> {
        AsyncThrowingStream { continuation in
            let task = Task {
                do {
                    try await self.answer(question, picture, maxNewTokens ?? self.maxNewTokens) {
                        continuation.yield($0)
                    }
                    continuation.finish()
                } catch {
                    continuation.finish(throwing: error)
                }
            }
            continuation.onTermination = { _ in task.cancel() }
        }
    }

    /// Probability of every label, in the manifest's order: that of the positive answer to its closed question,
    /// against the negative one.
    public func label(_ picture: Picture) async throws -> [(label: Manifest.Label, probability: Double)] {
        await takeTurn()
        defer { endTurn() }
        var probabilities: [(Manifest.Label, Double)] = []
        for label in labels {
            let logits = try await read(picture, try Prompt.fill(scoring.question, label.fields))
            let probability = try Sampling.probability(
                of: scoring.positive, against: scoring.negative, logits, tokenizer)
            probabilities.append((label, probability))
        }
        return probabilities
    }

    /// Logits `[V]` behind picture and question, for comparing engines.
    public func logits(_ picture: Picture, _ question: String) async throws -> [Float] {
        await takeTurn()
        defer { endTurn() }
        return try await read(picture, question)
    }

    private func answer(
        _ question: String, _ picture: Picture, _ most: Int, _ give: @Sendable (String) -> Void
    ) async throws {
        await takeTurn()
        defer { endTurn() }
        var logits = try await read(picture, question)
        let room = engine.context - (await engine.position()) + 1  // the last token is not read again
        let budget = min(most, room)
        var stream = TextStream(tokenizer)
        let clock = ContinuousClock()
        let start = clock.now
        while stream.tokens.count < budget {
            try Task.checkCancellation()
            let token = try Sampling.greedy(logits)
            if token == tokenizer.eosID { break }
            if let text = stream.append(token) { give(text) }
            timing.decodePerToken = (clock.now - start).milliseconds / Double(stream.tokens.count)
            if stream.tokens.count < budget { logits = try await engine.extend([token]) }
        }
        if let text = stream.finish() { give(text) }
    }

    private func read(_ picture: Picture, _ question: String) async throws -> [Float] {
        try Task.checkCancellation()
        guard !Prompt.contains(question, Contract.imageToken) else {
            throw PulseEdgeError(
                .input,
                "The question must not contain \(Contract.imageToken). Leave it out: the picture comes first."
            )
        }
        let prompt = Prompt.encode(Prompt.build([Prompt.Turn(question)]), with: tokenizer)
        let (before, after) = try Prompt.splitAtImage(prompt)
        try await see(picture, before)
        try await engine.rewind(to: kept)
        let clock = ContinuousClock()
        let start = clock.now
        let logits = try await engine.extend(after)
        timing.prefill = prefixTime + (clock.now - start).milliseconds
        return logits
    }

    /// Bring the engine to where the picture has been read, unless it is there already.
    private func see(_ picture: Picture, _ before: [Int]) async throws {
        if seen == picture { return }
        (seen, kept, prefixTime, timing) = (nil, 0, 0, Timing())
        let clock = ContinuousClock()
        let start = clock.now
        let tiles = try Tiles(picture)
        let cut = clock.now
        let embeddings = try await engine.encode(tiles)
        let encoded = clock.now
        try Task.checkCancellation()
        _ = try await engine.prefill(embeddings, before)
        prefixTime = (clock.now - encoded).milliseconds
        kept = await engine.position()
        seen = picture
        timing.preprocess = (cut - start).milliseconds
        timing.vision = (encoded - cut).milliseconds
    }

    // An actor lets other calls in while one waits for the engine, and all share one cache: hence turns.

    private func takeTurn() async {
        if busy { await withCheckedContinuation { waiting.append($0) } }
        busy = true
    }

    private func endTurn() {
        if waiting.isEmpty { busy = false } else { waiting.removeFirst().resume() }
    }
}

extension Duration {
    fileprivate var milliseconds: Double {
        Double(components.seconds) * 1e3 + Double(components.attoseconds) * 1e-15
    }
}
