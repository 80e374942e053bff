/// Protocol buffers' wire format, field by field.
struct Protobuf {
    enum Value {
        case varint(UInt64)
        case fixed64(UInt64)
        case fixed32(UInt32)
        case bytes([UInt8])
    }

    private let bytes: [UInt8]
    private var at = 0

    init(_ bytes: [UInt8]) { self.bytes = bytes }

    /// The next field, nil at the end.
    mutating func next() throws -> (number: Int, value: Value)? {
        guard at < bytes.count else { return nil }
        let tag = try varint()
        let number = Int(truncatingIfNeeded: tag >> 3)
        switch tag & 7 {
        case 0: return (number, .varint(try varint()))
        case 1: return (number, .fixed64(try take(8).reversed().reduce(0) { $0 << 8 | UInt64($1) }))
        case 2:
            let length = try varint()
            guard length <= UInt64(bytes.count) else { throw Self.cut }
            return (number, .bytes(Array(try take(Int(length)))))
        case 5: return (number, .fixed32(try take(4).reversed().reduce(0) { $0 << 8 | UInt32($1) }))
        default: throw PulseEdgeError(.checkpoint, "it is not a protocol buffer")
        }
    }

    private mutating func varint() throws -> UInt64 {
        var value: UInt64 = 0
        for shift in stride(from: UInt64(0), to: 64, by: 7) {
            guard at < bytes.count else { throw Self.cut }
            let byte = bytes[at]
            at += 1
            value |= UInt64(byte & 0x7F) << shift
            if byte < 0x80 { return value }
        }
        throw PulseEdgeError(.checkpoint, "it is not a protocol buffer")
    }

    private mutating func take(_ count: Int) throws -> ArraySlice<UInt8> {
        guard at + count <= bytes.count else { throw Self.cut }
        defer { at += count }
        return bytes[at..<(at + count)]
    }

    private static let cut = PulseEdgeError(.checkpoint, "it ends in the middle of a field")
}
