import Foundation
import Testing

@testable import PulseEdgeCore

@Suite struct TextTests {
    private let tokenizers = [false: Golden.tokenizer(legacy: false), true: Golden.tokenizer(legacy: true)]

    @Test func textBecomesTheIDsOfTheReference() {
        let cases = Golden.cases("text", "encode")
        #expect(cases.count > 100)
        for row in cases {
            let ids = tokenizers[row["legacy"]!.bool!]!.encode(row["text"]!.string!)
            #expect(ids == row["ids"]!.ints, "\(row)")
        }
    }

    @Test func idsBecomeTheTextOfTheReference() {
        let cases = Golden.cases("text", "decode")
        #expect(cases.count > 100)
        for row in cases {
            let tokenizer = tokenizers[row["legacy"]!.bool!]!
            #expect(row["text"]!.isExactly(tokenizer.decode(row["ids"]!.ints)), "\(row)")
            #expect(row["all"]!.isExactly(tokenizer.decode(row["ids"]!.ints, skipSpecial: false)), "\(row)")
        }
    }

    @Test func conversationsBecomeThePromptsOfTheReference() {
        for row in Golden.cases("text", "prompts") {
            let turns = row["turns"]!.array!.map {
                Prompt.Turn($0.array![0].string!, answer: $0.array![1].string)
            }
            let prompt = Prompt.build(turns, image: row["image"]!.bool!)
            #expect(row["prompt"]!.isExactly(prompt))
            #expect(
                Prompt.encode(prompt, with: tokenizers[row["legacy"]!.bool!]!) == row["ids"]!.ints, "\(row)")
        }
    }

    /// Prompts and ids that PULSE's own code gave, on another tokenizer, where the folder is at hand.
    @Test func theReferenceAgrees() throws {
        guard let shared = ProcessInfo.processInfo.environment["PULSE_EDGE_SHARED"] else { return }
        let folder = URL(fileURLWithPath: shared).appendingPathComponent("golden/tokens")
        let gold = try JSON(Data(contentsOf: folder.appendingPathComponent("tokens.json")))
        for legacy in [false, true] {
            let tokenizer = try Tokenizer(file: folder.appendingPathComponent(Tokenizer.file), legacy: legacy)
            for row in gold["prompts"]!.array! {
                #expect(
                    Prompt.encode(row["prompt"]!.string!, with: tokenizer)
                        == row["ids_legacy_\(legacy)"]!.ints)
            }
            for row in gold["encode"]!.array! {
                #expect(tokenizer.encode(row["text"]!.string!) == row["legacy_\(legacy)"]!.ints)
            }
            for row in gold["decode"]!.array! where !legacy {
                #expect(row["raw"]!.isExactly(tokenizer.decode(row["ids"]!.ints, skipSpecial: false)))
            }
        }
    }

    @Test func theSettingsComeFromTheFolder() throws {
        let tokenizer = try Tokenizer(folder: Golden.nano)
        #expect(tokenizer.vocabularySize == 768)
        #expect(tokenizer.encode("</s>USER") == tokenizers[false]!.encode("</s>USER"))
        #expect(tokenizer.encode("</s>USER") != tokenizers[true]!.encode("</s>USER"))
    }

    @Test func aDamagedTokenizerIsRefusedWhereverItIsCut() throws {
        let whole = try Data(contentsOf: Golden.nano.appendingPathComponent(Tokenizer.file))
        let file = FileManager.default.temporaryDirectory.appendingPathComponent(UUID().uuidString)
        defer { try? FileManager.default.removeItem(at: file) }
        for length in [0, 1, 7, 100, whole.count / 2, whole.count - 1] {
            try whole.prefix(length).write(to: file)
            #expect(throws: PulseEdgeError.self) { try Tokenizer(file: file, legacy: true) }
        }
        #expect(throws: PulseEdgeError.self) { try Tokenizer(folder: file) }
    }

    @Test func theScoringQuestionIsFilled() throws {
        #expect(
            try Prompt.fill("Does {it} show {{x}} {phrase}?", ["it": "a", "phrase": "b"])
                == "Does a show {x} b?")
        for question in ["{phrase", "phrase}", "{other}", "{}", "{phrase!r}"] {
            #expect(throws: PulseEdgeError.self) { try Prompt.fill(question, ["phrase": "b"]) }
        }
    }
}
