import Foundation
import Testing

@testable import PulseEdgeCore

/// `golden.Toy`: logits are a hash of all tokens that were read.
actor Toy: Backend {
    nonisolated let context: Int
    private let vocabulary: Int
    private var read = [1]
    private(set) var encoded = 0
    private(set) var extended = 0

    init(_ vocabulary: Int, _ context: Int) { (self.vocabulary, self.context) = (vocabulary, context) }

    func position() -> Int { read.count - 1 }

    func encode(_ tiles: Tiles) -> [Int] {
        encoded += 1
        return [tiles.geometry.size.width, tiles.geometry.size.height, tiles.views]
    }

    func prefill(_ embeddings: [Int], _ tokens: [Int]) -> [Float] {
        read = [1]
        return tokens.map { extend($0 < 0 ? embeddings : [$0]) }.last!
    }

    func extend(_ tokens: [Int]) -> [Float] {
        extended += 1
        for token in tokens { read.append((read.last! * 33 + token + 7) % Golden.modulus) }
        let state = read.last!
        return (0..<vocabulary).map { Float((state / 64 * ($0 + 3) + $0 * 17) % 1009) / 256 }
    }

    func rewind(to position: Int) { read = Array(read[...position]) }
}

@Suite struct SessionTests {
    private let tokenizer = try! Tokenizer(folder: Golden.nano)
    private let labels = ["NORM", "MI"].map { Manifest.Label(name: $0, fields: ["phrase": "x"]) }
    private let scoring = Manifest.Scoring(question: "{phrase}?", positive: "Yes", negative: "No")

    @Test func choicesAndProbabilitiesArePythons() throws {
        for row in Golden.cases("session", "choices") {
            let logits = row["logits"]!.floats
            #expect(try Sampling.greedy(logits) == row["greedy"]!.int)
            let probability = try Sampling.probability(of: "Yes", against: "No", logits, tokenizer)
            #expect(abs(probability - row["probability"]!.double!) <= 1e-12)
        }
    }

    @Test func textIsStreamedInPythonsPieces() {
        for row in Golden.cases("session", "streams") {
            var stream = TextStream(tokenizer)
            var pieces = row["ids"]!.ints.compactMap { stream.append($0) }
            if let rest = stream.finish() { pieces.append(rest) }
            #expect(pieces == row["pieces"]!.strings)
        }
    }

    @Test(arguments: Golden.cases("session", "sessions").indices)
    func aSessionAnswersAsPythons(_ index: Int) async throws {
        let row = Golden.cases("session", "sessions")[index]
        let toy = Toy(tokenizer.vocabularySize, row["context"]!.int!)
        let sound = Golden.cases("bundle", "bundles")[0]["files"]!["manifest.json"]!.string!
        let manifest = try Manifest(JSON(Data(sound.utf8)), file: URL(fileURLWithPath: "manifest.json"))
        let session = Session(
            toy, tokenizer, labels: manifest.labels, scoring: manifest.scoring,
            maxNewTokens: row["max_new_tokens"]!.int!)
        for step in row["steps"]!.array! {
            let shape = step["picture"]!.ints
            let picture = Golden.picture(shape[0], shape[1], shape[2])
            if let question = step["question"]?.string {
                var pieces: [String] = []
                for try await piece in session.ask(question, about: picture) { pieces.append(piece) }
                #expect(pieces == step["pieces"]!.strings)
            } else {
                let scored = try await session.label(picture)
                #expect(scored.map(\.label.name) == step["labels"]!.array!.map { $0.array![0].string! })
                for (found, wanted) in zip(scored, step["labels"]!.array!) {
                    #expect(abs(found.probability - wanted.array![1].double!) <= 1e-12)
                }
            }
            #expect(await toy.position() == step["position"]!.int)
        }
        #expect(await toy.encoded == 3)  // once for each change of the picture, not for each question
    }

    @Test func outputThatIsNoNumberIsNoAnswer() {
        for logits in [[], [1, .nan], [.infinity, 0], [0, -.infinity]] as [[Float]] {
            #expect(throws: PulseEdgeError.self) { try Sampling.greedy(logits) }
        }
    }

    @Test func aQuestionThatHoldsThePictureIsRefused() async {
        let session = Session(Toy(768, 900), tokenizer, labels: labels, scoring: scoring)
        await #expect(throws: PulseEdgeError.self) {
            for try await _ in session.ask("a <image>", about: Golden.picture(64, 48, 2)) {}
        }
    }

    @Test func cancellingStopsTheModelAndTheSessionGoesOn() async throws {
        let toy = Toy(768, 100_000)
        let session = Session(toy, tokenizer, labels: labels, scoring: scoring, maxNewTokens: 50_000)
        let picture = Golden.picture(64, 48, 2)
        let task = Task {
            for try await _ in session.ask("A long story?", about: picture) { break }  // ends the stream
        }
        try await task.value
        let fresh = Session(Toy(768, 900), tokenizer, labels: labels, scoring: scoring)
        let wanted = try await fresh.label(picture).map(\.probability)
        #expect(try await session.label(picture).map(\.probability) == wanted)
        #expect(await toy.extended < 40_000)
    }

    @Test func overlappingCallsDoNotMixTheirTokens() async throws {
        let session = Session(Toy(768, 900), tokenizer, labels: labels, scoring: scoring, maxNewTokens: 20)
        let alone = Session(Toy(768, 900), tokenizer, labels: labels, scoring: scoring, maxNewTokens: 20)
        let pictures = [Golden.picture(64, 48, 2), Golden.picture(48, 64, 3)]
        var wanted: [String] = []
        for k in 0..<8 { wanted.append(try await whole(alone, "Question \(k)?", pictures[k % 2])) }
        let found = try await withThrowingTaskGroup(of: (Int, String).self) { group in
            for k in 0..<8 {
                group.addTask { (k, try await whole(session, "Question \(k)?", pictures[k % 2])) }
            }
            var texts = [String](repeating: "", count: 8)
            for try await (k, text) in group { texts[k] = text }
            return texts
        }
        #expect(found == wanted)
    }
}

private func whole(_ session: Session<Toy, Tokenizer>, _ question: String, _ picture: Picture) async throws
    -> String
{
    var text = ""
    for try await piece in session.ask(question, about: picture) { text += piece }
    return text
}
