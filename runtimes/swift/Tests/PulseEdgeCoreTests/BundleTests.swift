import Foundation
import Testing

@testable import PulseEdgeCore

@Suite struct BundleTests {
    @Test func hashesAreThePublishedOnes() throws {
        // FIPS 180-2, appendix B
        #expect(
            Hash.portable(Array("abc".utf8))
                == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")
        #expect(
            Hash.portable(Array("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq".utf8))
                == "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1")
        #expect(
            Hash.portable([UInt8](repeating: UInt8(ascii: "a"), count: 1_000_000))
                == "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0")
        for row in Golden.cases("bundle", "sha256") {
            let bytes = (0..<row["length"]!.int!).map { UInt8($0 * 31 % 251) }
            #expect(Hash.portable(bytes) == row["sha256"]!.string)
            #expect(Hash.sha256(bytes) == row["sha256"]!.string)
            // fed in uneven parts
            var digest = PortableSHA256()
            for start in stride(from: 0, to: bytes.count, by: 37) {
                digest.update(data: Array(bytes[start..<min(start + 37, bytes.count)]))
            }
            #expect(digest.finalize().map { String(format: "%02x", $0) }.joined() == row["sha256"]!.string)
        }
    }

    @Test(arguments: Golden.cases("bundle", "bundles").indices)
    func verifySaysWhatPythonSays(_ index: Int) throws {
        let row = Golden.cases("bundle", "bundles")[index]
        try withBundle(row) { folder in
            let problems = try ModelBundle.problems(in: folder).map { problem in
                problem.replacingOccurrences(of: folder.path, with: "{folder}")
                    .replacingOccurrences(
                        of: #"(cannot be read: ).*(\. Copy)"#, with: "$1…$2", options: .regularExpression)
            }
            #expect(problems == row["problems"]!.strings, "\(row["name"]!)")
            if let digest = row["digest"]?.string {
                let manifest = try ModelBundle.readManifest(folder)
                #expect(ModelBundle.digest(manifest) == digest)
                #expect(Signature.message(manifest) == Data(row["message"]!.string!.utf8))
            }
        }
    }

    @Test func aSoundBundleOpens() throws {
        try withBundle(Golden.cases("bundle", "bundles")[0]) { folder in
            let bundle = try ModelBundle(folder: folder)
            let seen = Progress()
            try bundle.verify { seen.add($0) }
            #expect(seen.values.last == 1)
            #expect(seen.values.count == 2)
            #expect(bundle.manifest.modelName == "tiny")
            #expect(bundle.manifest.labels.map(\.name) == ["NORM", "MI", "STTC", "CD", "HYP"])
            #expect(bundle.manifest.context == 1024)
            #expect(bundle.manifest.files.map(\.name) == ["decoder.bin", "models/vision.bin"])
            try Data("decodes".utf8).write(to: folder.appendingPathComponent("decoder.bin"))
            #expect(throws: PulseEdgeError.self) { try bundle.verify() }
        }
    }

    @Test func aNewerSchemaIsRefusedByItsNumber() throws {
        try withBundle(Golden.cases("bundle", "bundles")[0]) { folder in
            let file = folder.appendingPathComponent("manifest.json")
            let text = try String(contentsOf: file, encoding: .utf8)
            try text.replacingOccurrences(of: "\"schema\": 1,", with: "\"schema\": 99,")
                .write(to: file, atomically: true, encoding: .utf8)
            #expect(throws: PulseEdgeError.self) { try ModelBundle(folder: folder) }
            #expect(try ModelBundle.problems(in: folder).first?.contains("schema 99") == true)
        }
    }

    @Test func aFieldThatRunningNeedsIsNamed() throws {
        try withBundle(Golden.cases("bundle", "bundles")[0]) { folder in
            let file = folder.appendingPathComponent("manifest.json")
            let text = try String(contentsOf: file, encoding: .utf8)
            try text.replacingOccurrences(of: "\"merge\"", with: "\"mergo\"")
                .write(to: file, atomically: true, encoding: .utf8)
            do {
                _ = try ModelBundle(folder: folder)
                Issue.record("it opened")
            } catch let error as PulseEdgeError {
                #expect(error.message.contains("'preprocessing.merge'"))
            }
        }
    }

    @Test(arguments: [
        "", "{", "{\"a\"}", "[1,]", "[1 2]", "01", "1.", ".5", "1e", "-", "+1", "\"", "\"\\x\"", "\"\\u12\"",
        "\"\\ud83e\"", "\"a\nb\"", "tru", "nulls", "{} {}", "{\"a\": 1,}",
        String(repeating: "[", count: 5000),
    ])
    func whatIsNotJSONIsRefused(_ text: String) {
        #expect(throws: PulseEdgeError.self) { try JSON(Data(text.utf8)) }
    }

    @Test func jsonKeepsSpellingAndOrder() throws {
        let json = try JSON(
            Data(" {\"b\": 1e-05, \"a\": [-0.0, 12, true, null, \"\\ud83e\\udec0\\u00e9\"], \"b\": 2}".utf8))
        #expect(json.object?.names == ["b", "a"])
        #expect(json.canonical == "{\"a\": [-0.0, 12, true, null, \"\\ud83e\\udec0\\u00e9\"], \"b\": 2}")
        #expect(throws: PulseEdgeError.self) { try JSON(Data([0x22, 0xFF, 0x22])) }
    }

    private func withBundle(_ row: JSON, _ body: (URL) throws -> Void) throws {
        let files = FileManager.default
        let folder = files.temporaryDirectory.appendingPathComponent(UUID().uuidString).standardizedFileURL
        defer { try? files.removeItem(at: folder) }
        try files.createDirectory(at: folder, withIntermediateDirectories: true)
        for (name, text) in row["files"]!.object!.pairs {
            let file = folder.appendingPathComponent(name)
            try files.createDirectory(at: file.deletingLastPathComponent(), withIntermediateDirectories: true)
            try Data(text.string!.utf8).write(to: file)
        }
        try files.createDirectory(
            at: folder.appendingPathComponent("models"), withIntermediateDirectories: true)
        for (name, target) in row["links"]!.object!.pairs {
            try files.createSymbolicLink(
                atPath: folder.appendingPathComponent(name).path, withDestinationPath: target.string!)
        }
        try body(folder)
    }
}

/// What a progress callback was told.
private final class Progress: @unchecked Sendable {
    private let lock = NSLock()
    private var told: [Double] = []
    var values: [Double] { lock.withLock { told } }
    func add(_ value: Double) { lock.withLock { told.append(value) } }
}
