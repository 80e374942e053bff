import Foundation

/// A SentencePiece BPE model with byte fallback, read from `tokenizer.model`: what every Llama tokenizer is.
///
/// Written against the published format (`sentencepiece_model.proto`) and held to the ids that the
/// sentencepiece library gives. Not covered, and refused: unigram models, normalisation rules,
/// user-defined pieces, models without byte pieces.
struct SentencePiece: Sendable {
    enum Kind: Int {
        case normal = 1
        case unknown, control, userDefined, unused, byte
    }

    private(set) var pieces: [String] = []
    private(set) var kinds: [Kind] = []
    private var scores: [Float] = []
    /// Pieces that merging may form, by their bytes.
    private var normal: [[UInt8]: Int] = [:]
    /// Every piece by its bytes.
    private var ids: [[UInt8]: Int] = [:]
    private var byteIDs = [Int](repeating: -1, count: 256)

    private(set) var bosID = 1
    private(set) var eosID = 2
    private(set) var unkID = 0
    var addDummyPrefix = true

    static let space = "▁"  // how SentencePiece writes a space inside a piece
    private static let spaceBytes = Array(space.utf8)

    /// - Throws: `PulseEdgeError` (`.checkpoint`) with a short reason: not such a model.
    init(_ data: Data) throws {
        var message = Protobuf(Array(data))
        while let field = try message.next() {
            switch (field.number, field.value) {
            case (1, .bytes(let bytes)): try addPiece(bytes)
            case (2, .bytes(let bytes)): try readTrainer(bytes)
            case (3, .bytes(let bytes)): try readNormalizer(bytes)
            default: break
            }
        }
        guard !pieces.isEmpty else { throw Self.fault("it holds no pieces") }
        guard byteIDs.allSatisfy({ $0 >= 0 }) else { throw Self.fault("it has no byte pieces") }
        guard kinds.indices.contains(unkID), kinds[unkID] == .unknown else {
            throw Self.fault("it has no <unk>")
        }
    }

    func id(of piece: String) -> Int { ids[Array(piece.utf8)] ?? unkID }

    // MARK: encode

    /// Token ids of a text: spaces become "▁", the best-scored neighbours are merged again and again, and
    /// characters without a piece become their bytes.
    func encode(_ text: String) -> [Int] {
        guard !text.isEmpty else { return [] }
        var bytes: [UInt8] = addDummyPrefix ? Self.spaceBytes : []
        for byte in text.utf8 {
            if byte == 0x20 { bytes += Self.spaceBytes } else { bytes.append(byte) }
        }
        var out: [Int] = []
        for symbol in merge(bytes) {
            if let id = ids[Array(symbol)], kinds[id] != .unknown {
                out.append(id)
            } else {
                out += symbol.map { byteIDs[Int($0)] }
            }
        }
        return out
    }

    /// A pair of neighbours that form a piece; the best score goes first, then the leftmost.
    private struct Merge {
        let score: Float
        let left: Int
        let right: Int
        let size: Int

        func precedes(_ other: Merge) -> Bool {
            score != other.score ? score > other.score : left < other.left
        }
    }

    private func merge(_ bytes: [UInt8]) -> [ArraySlice<UInt8>] {
        var spans: [Range<Int>] = []  // one for each character at first; an empty one was merged away
        for at in bytes.indices where bytes[at] & 0xC0 != 0x80 {
            let end = bytes[(at + 1)...].firstIndex { $0 & 0xC0 != 0x80 } ?? bytes.endIndex
            spans.append(at..<end)
        }
        var previous = spans.indices.map { $0 - 1 }
        var next = spans.indices.map { $0 + 1 < spans.count ? $0 + 1 : -1 }
        var agenda = Heap<Merge> { $0.precedes($1) }
        func propose(_ left: Int, _ right: Int) {
            guard left >= 0, right >= 0 else { return }
            let joined = spans[left].lowerBound..<spans[right].upperBound
            if let id = normal[Array(bytes[joined])] {
                agenda.push(Merge(score: scores[id], left: left, right: right, size: joined.count))
            }
        }
        for left in spans.indices.dropLast() { propose(left, left + 1) }
        while let best = agenda.pop() {
            let (left, right) = (spans[best.left], spans[best.right])
            guard !left.isEmpty, !right.isEmpty, left.count + right.count == best.size else { continue }
            spans[best.left] = left.lowerBound..<right.upperBound
            spans[best.right] = right.upperBound..<right.upperBound
            next[best.left] = next[best.right]
            if next[best.left] >= 0 { previous[next[best.left]] = best.left }
            propose(previous[best.left], best.left)
            propose(best.left, next[best.left])
        }
        return spans.filter { !$0.isEmpty }.map { bytes[$0] }
    }

    // MARK: decode

    /// Text of pieces; runs of byte pieces become characters, and bytes that form none become U+FFFD.
    func decode(_ run: [String]) -> String {
        var text: [UInt8] = []
        var raw: [UInt8] = []
        var (start, spaceWasDropped) = (true, false)
        for piece in run {
            let id = id(of: piece)
            if kinds[id] == .byte {
                raw.append(UInt8(byteIDs.firstIndex(of: id)!))
                continue
            }
            text += Self.characters(raw)
            raw = []
            start = start && !spaceWasDropped && text.isEmpty
            var bytes = Array(piece.utf8)[...]
            if kinds[id] == .control { continue }
            if kinds[id] == .unknown {
                text += pieces[id] == piece ? Array(" ⁇ ".utf8) : Array(bytes)
                continue
            }
            spaceWasDropped = start && addDummyPrefix && bytes.starts(with: Self.spaceBytes)
            if spaceWasDropped { bytes = bytes.dropFirst(Self.spaceBytes.count) }
            text += Self.withSpaces(bytes)
        }
        text += Self.characters(raw)
        return String(decoding: text, as: UTF8.self)
    }

    private static func withSpaces(_ bytes: ArraySlice<UInt8>) -> [UInt8] {
        var out: [UInt8] = []
        var rest = bytes
        while let first = rest.first {
            if rest.starts(with: spaceBytes) {
                out.append(0x20)
                rest = rest.dropFirst(spaceBytes.count)
            } else {
                out.append(first)
                rest = rest.dropFirst()
            }
        }
        return out
    }

    /// UTF-8 with every byte that belongs to no character replaced by U+FFFD, one for each.
    static func characters(_ bytes: [UInt8]) -> [UInt8] {
        var out: [UInt8] = []
        var at = 0
        while at < bytes.count {
            let length = characterLength(bytes[at...])
            if length > 0 {
                out += bytes[at..<(at + length)]
                at += length
            } else {
                out += [0xEF, 0xBF, 0xBD]
                at += 1
            }
        }
        return out
    }

    /// Length of the character that the bytes begin with; 0 if they begin with none.
    private static func characterLength(_ bytes: ArraySlice<UInt8>) -> Int {
        guard let first = bytes.first else { return 0 }
        let length =
            first < 0x80
            ? 1 : first & 0xE0 == 0xC0 ? 2 : first & 0xF0 == 0xE0 ? 3 : first & 0xF8 == 0xF0 ? 4 : 0
        guard length > 0, bytes.count >= length else { return 0 }
        let character = bytes.prefix(length)
        guard character.dropFirst().allSatisfy({ $0 & 0xC0 == 0x80 }) else { return 0 }
        return Bool(wellFormed: character) ? length : 0
    }

    // MARK: reading the file

    private mutating func addPiece(_ bytes: [UInt8]) throws {
        var message = Protobuf(bytes)
        var (piece, score, kind) = ([UInt8](), Float(0), Kind.normal)
        while let field = try message.next() {
            switch (field.number, field.value) {
            case (1, .bytes(let text)): piece = text
            case (2, .fixed32(let bits)): score = Float(bitPattern: bits)
            case (3, .varint(let number)):
                guard let known = Kind(rawValue: Int(clamping: number)) else {
                    throw Self.fault("an unknown kind of piece")
                }
                kind = known
            default: break
            }
        }
        let id = pieces.count
        let text = String(decoding: piece, as: UTF8.self)
        switch kind {
        case .userDefined, .unused: throw Self.fault("user-defined pieces are not supported")
        case .byte:
            guard text.count == 6, text.hasPrefix("<0x"),
                let byte = UInt8(text.dropFirst(3).prefix(2), radix: 16)
            else { throw Self.fault("a byte piece without a byte") }
            byteIDs[Int(byte)] = id
        case .normal: normal[piece] = id
        case .unknown, .control: break
        }
        pieces.append(text)
        kinds.append(kind)
        scores.append(score)
        ids[piece] = id
    }

    private mutating func readTrainer(_ bytes: [UInt8]) throws {
        var message = Protobuf(bytes)
        var model: UInt64 = 1
        while let field = try message.next() {
            guard case .varint(let value) = field.value else { continue }
            switch field.number {
            case 3: model = value
            case 40: unkID = Int(truncatingIfNeeded: value)
            case 41: bosID = Int(truncatingIfNeeded: value)
            case 42: eosID = Int(truncatingIfNeeded: value)
            default: break
            }
        }
        guard model == 2 else { throw Self.fault("it is not a BPE model") }
    }

    private mutating func readNormalizer(_ bytes: [UInt8]) throws {
        var message = Protobuf(bytes)
        while let field = try message.next() {
            switch (field.number, field.value) {
            case (2, .bytes(let rules)) where !rules.isEmpty, (6, .bytes(let rules)) where !rules.isEmpty:
                throw Self.fault("its normalisation rules are not supported")
            case (3, .varint(let value)): addDummyPrefix = value != 0
            case (4, .varint(let value)) where value != 0: throw Self.fault("it strips white space")
            case (5, .varint(0)): throw Self.fault("it does not escape white space")
            default: break
            }
        }
    }

    private static func fault(_ reason: String) -> PulseEdgeError { PulseEdgeError(.checkpoint, reason) }
}

extension Bool {
    /// Whether bytes are one well-formed run of UTF-8.
    fileprivate init(wellFormed bytes: ArraySlice<UInt8>) {
        self = bytes.elementsEqual(String(decoding: bytes, as: UTF8.self).utf8)
    }
}
