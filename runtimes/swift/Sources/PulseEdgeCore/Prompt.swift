/// Prompts in the conversation format `llava_v1`, which PULSE was trained with.
public enum Prompt {
    /// One question and, if it was given already, its answer.
    public struct Turn: Equatable, Sendable {
        public let question: String
        public let answer: String?

        public init(_ question: String, answer: String? = nil) {
            self.question = question
            self.answer = answer
        }
    }

    /// Write a conversation as PULSE reads it, `<image>` standing for the picture.
    ///
    /// - Parameters:
    ///   - turns: the answer of the last one is nil where the model shall speak.
    ///   - image: put the picture before the first question, unless a question already says where it goes.
    public static func build(_ turns: [Turn], image: Bool = true) -> String {
        let place = image && !turns.contains { contains($0.question, Contract.imageToken) }
        var messages: [(role: String, text: String?)] = []
        for (number, turn) in turns.enumerated() {
            let first = place && number == 0
            messages.append(
                (Contract.roles[0], first ? "\(Contract.imageToken)\n\(turn.question)" : turn.question))
            messages.append((Contract.roles[1], turn.answer))
        }
        return render(messages)
    }

    /// Write single messages, in any order of speakers; an empty text or nil leaves the turn open.
    public static func render(_ messages: [(role: String, text: String?)]) -> String {
        var text = Contract.system + Contract.sep
        for (number, message) in messages.enumerated() {
            guard let said = message.text, !said.isEmpty else {
                text += "\(message.role):"
                continue
            }
            // Separators alternate by position, not by speaker, as in the reference.
            text += "\(message.role): \(said)\(number % 2 == 0 ? Contract.sep : Contract.sep2)"
        }
        return text
    }

    /// Token ids of a prompt, ``Contract/imageTokenID`` standing for each `<image>`. Every piece of text
    /// between pictures is tokenised as if it stood alone, as the reference does.
    public static func encode(_ prompt: String, with tokenizer: some TextTokenizer) -> [Int] {
        let parts = split(prompt, at: Contract.imageToken)
        var ids = tokenizer.encode(parts[0], bos: true)
        for text in parts.dropFirst() {
            ids.append(Contract.imageTokenID)
            ids += tokenizer.encode(text, bos: false)
        }
        return ids
    }

    /// Split token ids behind their picture; the first part ends with it.
    public static func splitAtImage(_ ids: [Int]) throws -> (before: [Int], after: [Int]) {
        guard let at = ids.firstIndex(of: Contract.imageTokenID) else {
            throw PulseEdgeError(.input, "The prompt holds no picture. Build it with Prompt.build.")
        }
        return (Array(ids[...at]), Array(ids[(at + 1)...]))
    }

    /// Put a label's fields into the scoring question, as Python's `str.format` does with plain names.
    ///
    /// - Throws: `PulseEdgeError` (`.bundle`): a placeholder that the label has no field for.
    public static func fill(_ question: String, _ fields: [String: String]) throws -> String {
        var out = ""
        var rest = Substring(question)
        while let at = rest.firstIndex(where: { $0 == "{" || $0 == "}" }) {
            out += rest[..<at]
            let after = rest.index(after: at)
            if after < rest.endIndex, rest[after] == rest[at] {  // "{{" and "}}" stand for themselves
                out.append(rest[at])
                rest = rest[rest.index(after: after)...]
                continue
            }
            guard rest[at] == "{", let end = rest.firstIndex(of: "}"),
                let value = fields[String(rest[after..<end])]
            else {
                throw PulseEdgeError(
                    .bundle, "The scoring question \"\(question)\" cannot be filled. Export the bundle again."
                )
            }
            out += value
            rest = rest[rest.index(after: end)...]
        }
        return out + rest
    }

    // Swift compares characters, so that "<image>" and a combining mark is another text; these compare bytes.

    static func contains(_ text: String, _ part: String) -> Bool { split(text, at: part).count > 1 }

    static func split(_ text: String, at separator: String) -> [String] {
        let (bytes, part) = (Array(text.utf8), Array(separator.utf8))
        var pieces: [String] = []
        var (start, at) = (0, 0)
        while at + part.count <= bytes.count {
            if bytes[at..<(at + part.count)].elementsEqual(part) {
                pieces.append(String(decoding: bytes[start..<at], as: UTF8.self))
                at += part.count
                start = at
            } else {
                at += 1
            }
        }
        return pieces + [String(decoding: bytes[start...], as: UTF8.self)]
    }
}
