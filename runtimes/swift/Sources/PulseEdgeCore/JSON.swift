import Foundation

/// JSON as the manifest holds it. Numbers keep their spelling, because the manifest's digest is computed over
/// the spelling that Python wrote; Foundation's reader would lose it.
public enum JSON: Equatable, Sendable {
    case null
    case bool(Bool)
    case number(String)
    case string(String)
    case array([JSON])
    case object(Fields)

    /// Members of an object in the order of the text, which labels are shown in.
    public struct Fields: Equatable, Sendable {
        public private(set) var names: [String] = []
        private var values: [String: JSON] = [:]

        init() {}

        /// The value of a name. Setting one that exists keeps its place, as in Python.
        public internal(set) subscript(name: String) -> JSON? {
            get { values[name] }
            set {
                if values[name] == nil { names.append(name) }
                values[name] = newValue
            }
        }

        public var pairs: [(name: String, value: JSON)] { names.map { ($0, values[$0]!) } }
    }

    /// Nesting that no manifest has; deeper input is refused instead of exhausting the stack.
    static let deepest = 200

    /// Read a document.
    ///
    /// - Throws: `PulseEdgeError` (`.bundle`) with a short reason.
    public init(_ data: Data) throws {
        guard let text = String(data: data, encoding: .utf8) else {
            throw PulseEdgeError(.bundle, "it is not UTF-8")
        }
        var reader = Reader(Array(text.utf8))
        self = try reader.document()
    }

    public subscript(key: String) -> JSON? { object?[key] }
    public var object: Fields? { if case .object(let value) = self { value } else { nil } }
    public var array: [JSON]? { if case .array(let value) = self { value } else { nil } }
    public var string: String? { if case .string(let value) = self { value } else { nil } }
    public var bool: Bool? { if case .bool(let value) = self { value } else { nil } }
    /// A whole number written as one: `1`, not `1.0` and not `true`.
    public var int: Int? { if case .number(let text) = self { Int(text) } else { nil } }
    public var double: Double? { if case .number(let text) = self { Double(text) } else { nil } }

    /// The text that Python's `json.dumps(value, sort_keys=True)` gives.
    public var canonical: String {
        switch self {
        case .null: "null"
        case .bool(let value): value ? "true" : "false"
        case .number(let text): text
        case .string(let text): Self.quoted(text)
        case .array(let items): "[" + items.map(\.canonical).joined(separator: ", ") + "]"
        case .object(let fields):
            "{"
                + fields.pairs.sorted {
                    $0.name.unicodeScalars.lexicographicallyPrecedes($1.name.unicodeScalars)
                }
                .map { Self.quoted($0.name) + ": " + $0.value.canonical }.joined(separator: ", ") + "}"
        }
    }

    private static func quoted(_ text: String) -> String {
        var out = "\""
        for unit in text.utf16 {
            switch unit {
            case 0x22: out += "\\\""
            case 0x5C: out += "\\\\"
            case 0x08: out += "\\b"
            case 0x0C: out += "\\f"
            case 0x0A: out += "\\n"
            case 0x0D: out += "\\r"
            case 0x09: out += "\\t"
            case 0x20...0x7E: out.unicodeScalars.append(Unicode.Scalar(UInt8(unit)))
            default:
                let digits = String(unit, radix: 16)
                out += "\\u" + String(repeating: "0", count: 4 - digits.count) + digits
            }
        }
        return out + "\""
    }
}

/// RFC 8259, plus the `NaN` and `Infinity` that Python writes.
private struct Reader {
    private let bytes: [UInt8]
    private var at = 0

    init(_ bytes: [UInt8]) { self.bytes = bytes }

    mutating func document() throws -> JSON {
        let value = try value(depth: 0)
        skipSpace()
        guard at == bytes.count else { throw fault("text after the document") }
        return value
    }

    private mutating func value(depth: Int) throws -> JSON {
        guard depth < JSON.deepest else { throw fault("nested too deeply") }
        skipSpace()
        switch peek {
        case UInt8(ascii: "{"): return try object(depth)
        case UInt8(ascii: "["): return try array(depth)
        case UInt8(ascii: "\""): return .string(try string())
        case UInt8(ascii: "t") where take("true"): return .bool(true)
        case UInt8(ascii: "f") where take("false"): return .bool(false)
        case UInt8(ascii: "n") where take("null"): return .null
        default:
            for word in ["NaN", "Infinity", "-Infinity"] where take(word) { return .number(word) }
            return .number(try number())
        }
    }

    private mutating func object(_ depth: Int) throws -> JSON {
        var fields = JSON.Fields()
        at += 1
        skipSpace()
        if take("}") { return .object(fields) }
        repeat {
            skipSpace()
            guard peek == UInt8(ascii: "\"") else { throw fault("a name in quotes was expected") }
            let name = try string()
            skipSpace()
            guard take(":") else { throw fault("':' was expected") }
            fields[name] = try value(depth: depth + 1)
            skipSpace()
        } while take(",")
        guard take("}") else { throw fault("',' or '}' was expected") }
        return .object(fields)
    }

    private mutating func array(_ depth: Int) throws -> JSON {
        var items: [JSON] = []
        at += 1
        skipSpace()
        if take("]") { return .array(items) }
        repeat {
            items.append(try value(depth: depth + 1))
            skipSpace()
        } while take(",")
        guard take("]") else { throw fault("',' or ']' was expected") }
        return .array(items)
    }

    private mutating func string() throws -> String {
        var text: [UInt16] = []
        var run: [UInt8] = []
        func flush() {
            text += Array(String(decoding: run, as: UTF8.self).utf16)
            run = []
        }
        at += 1
        while let byte = peek {
            at += 1
            if byte == UInt8(ascii: "\"") {
                flush()
                return try scalars(text)
            }
            guard byte >= 0x20 else { throw fault("a control character inside a string") }
            guard byte == UInt8(ascii: "\\") else {
                run.append(byte)
                continue
            }
            flush()
            text.append(try escape())
        }
        throw fault("a string has no end")
    }

    private mutating func escape() throws -> UInt16 {
        guard let byte = peek else { throw fault("a string has no end") }
        at += 1
        switch byte {
        case UInt8(ascii: "\""), UInt8(ascii: "\\"), UInt8(ascii: "/"): return UInt16(byte)
        case UInt8(ascii: "b"): return 0x08
        case UInt8(ascii: "f"): return 0x0C
        case UInt8(ascii: "n"): return 0x0A
        case UInt8(ascii: "r"): return 0x0D
        case UInt8(ascii: "t"): return 0x09
        case UInt8(ascii: "u"):
            let digits = bytes[at..<min(at + 4, bytes.count)]
            let hexadecimal = digits.allSatisfy { Character(Unicode.Scalar($0)).isHexDigit }
            guard digits.count == 4, hexadecimal,
                let unit = UInt16(String(decoding: digits, as: UTF8.self), radix: 16)
            else { throw fault("\\u wants four hexadecimal digits") }
            at += 4
            return unit
        default: throw fault("an unknown escape")
        }
    }

    private func scalars(_ units: [UInt16]) throws -> String {
        guard let text = String(wellFormed: units) else { throw fault("half of a surrogate pair") }
        return text
    }

    private mutating func number() throws -> String {
        let start = at
        func digits() -> Bool {
            let first = at
            while let byte = peek, (0x30...0x39).contains(byte) { at += 1 }
            return at > first
        }
        _ = take("-")
        let zero = peek == 0x30
        let first = at
        guard digits(), !(zero && at > first + 1) else { throw fault("a value was expected") }
        if take(".") { guard digits() else { throw fault("digits were expected") } }
        if take("e") || take("E") {
            if !take("+") { _ = take("-") }
            guard digits() else { throw fault("digits were expected") }
        }
        return String(decoding: bytes[start..<at], as: UTF8.self)
    }

    private var peek: UInt8? { at < bytes.count ? bytes[at] : nil }

    private mutating func take(_ word: String) -> Bool {
        guard bytes[at...].starts(with: word.utf8) else { return false }
        at += word.utf8.count
        return true
    }

    private mutating func skipSpace() {
        while let byte = peek, byte == 0x20 || (0x09...0x0A).contains(byte) || byte == 0x0D { at += 1 }
    }

    private func fault(_ reason: String) -> PulseEdgeError {
        PulseEdgeError(.bundle, "\(reason) at byte \(at)")
    }
}

extension String {
    /// Text of UTF-16 code units, or nil where half of a surrogate pair stands alone.
    init?(wellFormed units: [UInt16]) {
        var parser = Unicode.UTF16.ForwardParser()
        var iterator = units.makeIterator()
        var text = ""
        while true {
            switch parser.parseScalar(from: &iterator) {
            case .valid(let scalar): text.unicodeScalars.append(Unicode.UTF16.decode(scalar))
            case .emptyInput:
                self = text
                return
            case .error: return nil
            }
        }
    }
}
