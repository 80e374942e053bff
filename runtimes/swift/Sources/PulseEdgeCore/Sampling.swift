import Foundation

/// Choosing tokens and scoring answers from logits: `pulse_edge.runtimes.generate`.
public enum Sampling {
    /// The most likely token; of equals the first, as numpy's `argmax`.
    ///
    /// - Parameter logits: `[V]`.
    /// - Throws: `PulseEdgeError`: the logits are not numbers.
    public static func greedy(_ logits: [Float]) throws -> Int {
        try checkNumbers(logits)
        var best = 0
        for token in logits.indices where logits[token] > logits[best] { best = token }
        return best
    }

    /// Probability of the positive answer's first token against the negative's, 0 to 1.
    public static func probability(
        of positive: String, against negative: String, _ logits: [Float], _ tokenizer: some TextTokenizer
    ) throws -> Double {
        try checkNumbers(logits)
        let (yes, no) = (try answerID(positive, tokenizer), try answerID(negative, tokenizer))
        guard logits.indices.contains(yes), logits.indices.contains(no) else {
            throw PulseEdgeError(
                .bundle, "The tokenizer knows more tokens than the model gives. Export the bundle again.")
        }
        let gap = min(max(Double(logits[no]) - Double(logits[yes]), -80), 80)
        return 1 / (1 + exp(gap))
    }

    /// The first token of an answer where it stands: behind `ASSISTANT:`.
    public static func answerID(_ word: String, _ tokenizer: some TextTokenizer) throws -> Int {
        let asked = tokenizer.encode("\(Contract.roles[1]):", bos: false)
        let answered = tokenizer.encode("\(Contract.roles[1]): \(word)", bos: false)
        guard answered.count > asked.count else {
            throw PulseEdgeError(.bundle, "The answer \"\(word)\" has no token. Export the bundle again.")
        }
        return answered[asked.count]
    }

    /// Overflowed weights or activations must not become an answer.
    private static func checkNumbers(_ logits: [Float]) throws {
        guard !logits.isEmpty, logits.allSatisfy(\.isFinite) else {
            throw PulseEdgeError(
                .failure,
                "The model's output is not a number: its weights are damaged or overflow in this precision. "
                    + "Check the model with `pulse-edge verify`, or export it again with a higher --precision."
            )
        }
    }
}

/// Text of a growing list of tokens, given out as soon as it is final.
public struct TextStream<Codec: TextTokenizer>: Sendable {
    public private(set) var tokens: [Int] = []
    private var shown: [Unicode.Scalar] = []
    private let tokenizer: Codec

    public init(_ tokenizer: Codec) { self.tokenizer = tokenizer }

    /// Take a token; return new text, nil while the bytes of a character are incomplete.
    public mutating func append(_ token: Int) -> String? {
        tokens.append(token)
        let text = Array(tokenizer.decode(tokens).unicodeScalars)
        guard text.last != "\u{FFFD}", text.count > shown.count else { return nil }
        return show(text)
    }

    /// What was held back, at the end.
    public mutating func finish() -> String? {
        let text = Array(tokenizer.decode(tokens).unicodeScalars)
        return text.count > shown.count ? show(text) : nil
    }

    private mutating func show(_ text: [Unicode.Scalar]) -> String {
        var piece = String.UnicodeScalarView()
        piece.append(contentsOf: text[shown.count...])
        shown = text
        return String(piece)
    }
}
