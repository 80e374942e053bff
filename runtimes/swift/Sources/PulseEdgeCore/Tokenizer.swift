import Foundation

/// Text to token ids and back. ``Tokenizer`` is the one that a bundle brings; an app that has another for the
/// same model may hand that to ``Session``.
public protocol TextTokenizer: Sendable {
    var eosID: Int { get }

    /// Token ids of a text; `bos` puts the beginning-of-sequence token first.
    func encode(_ text: String, bos: Bool) -> [Int]

    /// Text of token ids, special tokens left out. Ids without a piece are ignored.
    func decode(_ ids: [Int]) -> String
}

/// Llama's SentencePiece tokenizer as PULSE was trained with it: the slow `LlamaTokenizer` of transformers,
/// which `pulse_edge/model/tokenizer.py` reproduces in Python and the golden vectors hold both to.
public struct Tokenizer: TextTokenizer {
    public static let file = "tokenizer.model"
    public static let configuration = "tokenizer_config.json"

    public var bosID: Int { model.bosID }
    public var eosID: Int { model.eosID }
    public var unkID: Int { model.unkID }
    /// Number of pieces; ids run from 0 to one less.
    public var vocabularySize: Int { model.pieces.count }

    private let model: SentencePiece
    private let legacy: Bool
    private let special: [(piece: [UInt8], id: Int)]
    private let guardLength: Int

    /// Open the tokenizer of a bundle, with the settings of its `tokenizer_config.json`.
    ///
    /// - Throws: `PulseEdgeError` (`.checkpoint`): a file is absent or cannot be used.
    public init(folder: URL) throws {
        let settings = folder.appendingPathComponent(Self.configuration)
        var legacy = true  // transformers takes a missing setting as true
        if FileManager.default.fileExists(atPath: settings.path) {
            do {
                legacy = try JSON(Data(contentsOf: settings))["legacy"]?.bool != false
            } catch {
                throw PulseEdgeError(
                    .checkpoint,
                    "\(settings.path) cannot be read: \(Self.reason(error)). Copy the bundle again.")
            }
        }
        try self.init(file: folder.appendingPathComponent(Self.file), legacy: legacy)
    }

    /// - Parameters:
    ///   - file: `tokenizer.model`.
    ///   - legacy: as in `tokenizer_config.json`. True puts a space before text that follows a special token;
    ///     false does so at the very start only.
    public init(file: URL, legacy: Bool) throws {
        do {
            var model = try SentencePiece(Data(contentsOf: file))
            model.addDummyPrefix = legacy
            self.model = model
        } catch {
            throw PulseEdgeError(
                .checkpoint,
                "\(file.path) cannot be used as a SentencePiece model: \(Self.reason(error)). "
                    + "Use the tokenizer.model that belongs to the model.")
        }
        let ids = [model.bosID, model.eosID, model.unkID]
        guard ids.allSatisfy(model.pieces.indices.contains) else {
            throw PulseEdgeError(
                .checkpoint,
                "\(file.path) lacks <s>, </s> or <unk>, which every Llama tokenizer has. "
                    + "Use the tokenizer.model that belongs to the model.")
        }
        self.legacy = legacy
        special = [model.bosID, model.eosID, model.unkID].map { [model] in (Array(model.pieces[$0].utf8), $0)
        }
        guardLength = model.encode("<unk>").count
    }

    /// Token ids of a text; `<s>`, `</s>` and `<unk>` in it become their tokens.
    public func encode(_ text: String, bos: Bool = true) -> [Int] {
        let start = bos ? [bosID] : []
        guard !text.isEmpty else { return start }
        let space = SentencePiece.space
        let prepared = legacy ? text : space + Prompt.split(text, at: space).joined(separator: " ")
        var ids: [Int] = []
        for part in parts(Array(prepared.utf8)) {
            switch part {
            case .special(let id): ids.append(id)
            case .text(let text): ids += encodePart(text)
            }
        }
        if !legacy, ids.count > 1, special.contains(where: { $0.id == ids[1] }), model.pieces[ids[0]] == space
        {
            // The prefix stands alone before a special token: it belongs to no text.
            ids.removeFirst()
        }
        return start + ids
    }

    public func decode(_ ids: [Int]) -> String { decode(ids, skipSpecial: true) }

    /// Text of token ids.
    ///
    /// - Parameters:
    ///   - ids: ids without a piece (the picture's sentinel, rows that only pad an embedding table) are left out.
    ///   - skipSpecial: leave out `<s>`, `</s>` and `<unk>`.
    public func decode(_ ids: [Int], skipSpecial: Bool) -> String {
        let named = Set(special.map(\.id))
        let known = ids.filter { model.pieces.indices.contains($0) && !(skipSpecial && named.contains($0)) }
        var pieces = known.map { model.pieces[$0] }
        if let first = pieces.first, first.unicodeScalars.first == SentencePiece.space.unicodeScalars.first {
            // `encode` put it there.
            pieces[0] = String(String.UnicodeScalarView(first.unicodeScalars.dropFirst()))
        }
        let names = Set(named.map { model.pieces[$0] })
        var (text, run, afterSpecial) = ("", [String](), false)
        for (place, piece) in pieces.enumerated() {
            if names.contains(piece) {
                let gap = legacy && place > 0 && !afterSpecial ? " " : ""
                text += gap + decodeRun(run) + piece
                (run, afterSpecial) = ([], true)
            } else {
                run.append(piece)
                afterSpecial = false
            }
        }
        return text + decodeRun(run)
    }

    private enum Part {
        case text(String)
        case special(Int)
    }

    private func parts(_ bytes: [UInt8]) -> [Part] {
        var parts: [Part] = []
        var (start, at) = (0, 0)
        func flush() {
            if start < at { parts.append(.text(String(decoding: bytes[start..<at], as: UTF8.self))) }
        }
        while at < bytes.count {
            if let found = special.first(where: { bytes[at...].starts(with: $0.piece) }) {
                flush()
                parts.append(.special(found.id))
                at += found.piece.count
                start = at
            } else {
                at += 1
            }
        }
        flush()
        return parts
    }

    /// Encode text that holds no special token.
    private func encodePart(_ part: String) -> [Int] {
        let first = part.unicodeScalars.first
        if legacy || (first != " " && first != SentencePiece.space.unicodeScalars.first) {
            return model.encode(part)
        }
        // SentencePiece may drop leading spaces; behind "<unk>" they are inner ones.
        return Array(model.encode("<unk>" + part).dropFirst(guardLength))
    }

    private func decodeRun(_ pieces: [String]) -> String { pieces.isEmpty ? "" : model.decode(pieces) }

    private static func reason(_ error: any Error) -> String {
        (error as? PulseEdgeError)?.message ?? error.localizedDescription
    }
}
