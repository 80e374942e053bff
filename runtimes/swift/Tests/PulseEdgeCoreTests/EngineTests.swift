import Foundation
import Testing

@testable import PulseEdgeCore

/// What the packages of `golden._Packages` compute, and a record of the decoder's calls.
actor Recorder {
    private(set) var calls: [[Int]] = []
    func add(_ call: [Int]) { calls.append(call) }
}

struct ToyPackage: ModelPackage {
    let role: String
    let recorder: Recorder

    func reset() {}

    func run(_ inputs: [String: Feature], function: String?) async throws -> [String: Feature] {
        switch role {
        case "vision": vision(inputs)
        case "embed": embed(inputs)
        case "decoder-0": try await first(inputs, function)
        default: try await second(inputs, function)
        }
    }

    private func vision(_ inputs: [String: Feature]) -> [String: Feature] {
        guard case .picture(let stack) = inputs["tiles"]!, case .floats(let shown, [5]) = inputs["shown"]!
        else {
            return [:]
        }
        let size = 336 * 336 * 3
        var values: [Float] = []
        for tile in 0..<5 {
            let sum = stack.pixels[(tile * size)..<((tile + 1) * size)].reduce(0) { $0 + Int($1) }
            #expect(shown[tile] == 1 || sum == 0)
            for token in 0..<4 { values += [Float(100 * tile + token), Float(sum % 251)] }
        }
        return ["image_features": .floats(values, shape: [5, 4, 2])]
    }

    private func embed(_ inputs: [String: Feature]) -> [String: Feature] {
        guard case .ints(let ids, let shape) = inputs["input_ids"]! else { return [:] }
        #expect(shape == [1, ids.count])
        return [
            "inputs_embeds": .floats(ids.flatMap { [Float($0), Float($0 % 7)] }, shape: [1, ids.count, 2])
        ]
    }

    private func first(_ inputs: [String: Feature], _ function: String?) async throws -> [String: Feature] {
        let (rows, length, position, shown) = try read(inputs, "inputs_embeds", function)
        #expect(inputs["last"] == nil)
        let sum = Int(rows.reduce(0, +))
        await recorder.add([length, position, -1, shown, sum])
        return ["hidden_out": .floats(rows.map { $0 + 1 }, shape: [1, length, 2])]
    }

    private func second(_ inputs: [String: Feature], _ function: String?) async throws -> [String: Feature] {
        let (rows, length, position, shown) = try read(inputs, "hidden", function)
        var last = 0
        if case .ints(let values, [1])? = inputs["last"] { last = Int(values[0]) }
        #expect((inputs["last"] == nil) == (length == 1))
        await recorder.add([length, position, length > 1 ? last : -1, shown])
        let logits = [rows[2 * last], rows[2 * last + 1], Float(position), Float(shown)]
        return ["logits": .floats(logits, shape: [1, 4])]
    }

    private func read(_ inputs: [String: Feature], _ name: String, _ function: String?) throws
        -> (rows: [Float], length: Int, position: Int, shown: Int)
    {
        guard case .floats(let rows, let shape) = try #require(inputs[name]),
            case .ints(let position, [1]) = try #require(inputs["position"]),
            case .floats(let mask, let maskShape) = try #require(inputs["mask"])
        else { throw PulseEdgeError(.failure, "an input has another type") }
        let length = shape[1]
        #expect(function == (length == 1 ? "decode" : "prefill"))
        #expect(shape == [1, length, 2] && maskShape == [1, 1, length, 192])
        #expect(mask.allSatisfy { $0 == 0 || $0 == -10000 })
        for row in 0..<length {  // what is shown lies in front, without gaps
            let part = mask[(row * 192)..<((row + 1) * 192)]
            #expect(part.drop { $0 == 0 }.allSatisfy { $0 != 0 })
        }
        return (rows, length, Int(position[0]), mask.filter { $0 == 0 }.count)
    }
}

@Suite struct EngineTests {
    private func manifest(_ merge: String) throws -> Manifest {
        let graph = #"{"file": "x", "functions": {"prefill": {"inputs": {"#
        let text = """
            {"model": {"name": "toy"}, "target": "coreml", "preprocessing": {"merge": "\(merge)"},
             "generation": {"context": 160, "max_new_tokens": 8}, "labels": {}, "files": {},
             "scoring": {"question": "", "positive": "", "negative": ""}, "intended_use": "",
             "graphs": {"decoder-0": \(graph)}}}}, "decoder-1": \(graph)"last": {}}}}}},
             "coreml": {"decoder": {"graphs": ["decoder-0", "decoder-1"], "cache": 192, "prefill": 32,
                                    "masked": -10000.0}}}
            """
        return try Manifest(JSON(Data(text.utf8)), file: URL(fileURLWithPath: "manifest.json"))
    }

    private func packages(_ recorder: Recorder) -> [String: ToyPackage] {
        var packages: [String: ToyPackage] = [:]
        for role in ["vision", "embed", "decoder-0", "decoder-1"] {
            packages[role] = ToyPackage(role: role, recorder: recorder)
        }
        return packages
    }

    /// numpy's file of the float32 row [7, 8].
    private var newline: Data {
        let text = "{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }"
        let header = text.padding(toLength: 117, withPad: " ", startingAt: 0) + "\n"
        let values: [Float] = [7, 8]
        return Data([0x93]) + Data("NUMPY".utf8) + Data([1, 0, 118, 0]) + Data(header.utf8)
            + values.withUnsafeBytes { Data($0) }
    }

    @Test(arguments: Golden.cases("engine", "cases").indices)
    func packagesAreCalledInPythonsOrder(_ index: Int) async throws {
        let row = Golden.cases("engine", "cases")[index]
        let recorder = Recorder()
        let engine = try BundleEngine(
            packages(recorder), try manifest(row["merge"]!.string!), newline: newline)
        let shape = row["picture"]!.ints
        let rows = try await engine.encode(Tiles(Golden.picture(shape[0], shape[1], shape[2])))
        let prompt = row["before"]!.ints + [Contract.imageTokenID] + row["after"]!.ints
        var logits = [try await engine.prefill(rows, prompt)]
        let kept = await engine.position()
        #expect(kept == row["kept"]!.int)
        for tokens in [Array(60..<95), [9], [10, 11]] { logits.append(try await engine.extend(tokens)) }
        try await engine.rewind(to: kept)
        logits.append(try await engine.extend([12]))
        #expect(logits == row["logits"]!.array!.map(\.floats))
        let calls = await recorder.calls
        let wanted = row["calls"]!.array!.map(\.ints)
        #expect(calls.count == 2 * wanted.count)
        for (number, call) in wanted.enumerated() {
            #expect(calls[2 * number] == [call[0], call[1], -1, call[3], call[4]])
            #expect(calls[2 * number + 1] == Array(call.prefix(4)))
        }
    }

    @Test func whatDoesNotFitTheContextIsRefusedAndNothingIsLost() async throws {
        let engine = try BundleEngine(packages(Recorder()), try manifest("flat"))
        _ = try await engine.extend(Array(0..<150))
        await #expect(throws: PulseEdgeError.self) { try await engine.extend(Array(0..<11)) }
        #expect(await engine.position() == 150)
        _ = try await engine.extend(Array(0..<10))
        await #expect(throws: PulseEdgeError.self) { try await engine.rewind(to: 161) }
        await #expect(throws: PulseEdgeError.self) { try await engine.extend([]) }
    }

    @Test func anIncompleteBundleIsRefused() throws {
        let whole = packages(Recorder())
        for role in whole.keys {
            #expect(throws: PulseEdgeError.self) {
                try BundleEngine(whole.filter { $0.key != role }, try manifest("flat"))
            }
        }
        #expect(throws: PulseEdgeError.self) { try BundleEngine(whole, try manifest("other")) }
        #expect(throws: PulseEdgeError.self) { try BundleEngine(whole, try manifest("spatial_unpad")) }
        #expect(throws: PulseEdgeError.self) {
            try BundleEngine(whole, try manifest("spatial_unpad"), newline: newline.dropLast())
        }
        let jetson = try JSON(
            Data(Golden.cases("bundle", "bundles")[0]["files"]!["manifest.json"]!.string!.utf8))
        #expect(throws: PulseEdgeError.self) {
            try BundleEngine(whole, try Manifest(jetson, file: URL(fileURLWithPath: "manifest.json")))
        }
    }

    /// A bundle of `pulse-edge export --target coreml`, where `tests/runtimes/test_swift.py` names one.
    @Test func anExportedBundleIsSoundAndHasEverythingTheEngineNeeds() throws {
        guard let path = ProcessInfo.processInfo.environment["PULSE_EDGE_COREML_BUNDLE"] else { return }
        let folder = URL(fileURLWithPath: path)
        #expect(try ModelBundle.problems(in: folder) == [])
        let bundle = try ModelBundle(folder: folder)
        let roles = bundle.manifest.json["graphs"]!.object!.names
        #expect(Set(roles).isSuperset(of: ["vision", "embed"]))
        let recorder = Recorder()
        let pairs = roles.map { ($0, ToyPackage(role: $0, recorder: recorder)) }
        let engine = try BundleEngine(Dictionary(uniqueKeysWithValues: pairs), bundle.manifest)
        #expect(engine.context == bundle.manifest.context)
        let layout = try bundle.manifest.decoderLayout()
        let last = bundle.manifest.json["graphs"]![layout.graphs.last!]!["functions"]!
        #expect(last["prefill"]!["inputs"]!["last"] != nil && last["decode"]!["inputs"]!["last"] == nil)
        #expect(last["decode"]!["inputs"]!["mask"]!["shape"]!.ints == [1, 1, 1, layout.cache])
        #expect(last["prefill"]!["inputs"]!["mask"]!["shape"]!.ints == [1, 1, layout.prefill, layout.cache])
        let units = bundle.manifest.json["coreml"]!["compute_units"]!.object!
        #expect(Set(units.names).isSuperset(of: ["vision", "embed", "decoder"]))
        let need = MemoryNeed(bundle.manifest)
        #expect(need.weights > 10_000 && need.cache > 1000)
        let tokenizer = try Tokenizer(folder: folder)
        #expect(try Sampling.answerID(bundle.manifest.scoring.positive, tokenizer) > 2)
        #expect(bundle.manifest.labels.count == 5)
    }

    @Test func memoryIsCountedFromTheManifest() throws {
        let text = """
            {"model": {"name": "toy"}, "target": "coreml", "preprocessing": {"merge": "flat"},
             "generation": {"context": 160, "max_new_tokens": 8}, "labels": {}, "intended_use": "",
             "scoring": {"question": "", "positive": "", "negative": ""},
             "files": {"vision.mlpackage/w": {"sha256": "", "bytes": 1000000000},
                       "decoder.mlpackage/w": {"sha256": "", "bytes": 3000000000},
                       "preprocess.mlpackage/w": {"sha256": "", "bytes": 5}, "visionary": {"sha256": "", "bytes": 7}},
             "graphs": {"vision": {"file": "vision.mlpackage"}, "preprocess": {"file": "preprocess.mlpackage"},
                        "decoder": {"file": "decoder.mlpackage", "functions": {"decode": {"states": {
                          "k_cache": {"dtype": "float16", "shape": [2, 4, 64, 32]},
                          "v_cache": {"dtype": "float32", "shape": [2, 4, 64, 32]}}}}}}}
            """
        let need = MemoryNeed(
            try Manifest(JSON(Data(text.utf8)), file: URL(fileURLWithPath: "manifest.json")))
        #expect(need.weights == 4_000_000_000)
        #expect(need.cache == 2 * 4 * 64 * 32 * (2 + 4))
        #expect(need.problem(available: need.total) == nil)
        let problem = try #require(need.problem(available: 2_900_000_000))
        #expect(
            problem.contains("4.7 GB") && problem.contains("2.9 GB") && problem.contains("weights 4.0 GB"))
    }

    @Test func theGatesVerdictIsReadAsCaptureWritesIt() throws {
        let text = """
            {"grade": "refuse", "reasons": ["Move closer: 2.9 px/mm, at least 4 needed."], "px_per_mm": [2.9, 3.0],
             "rotation": 90.0, "residual_mm": 0.2, "timing_ms": {"decode": 5.0}}
            """
        let report = try JSONDecoder().decode(CaptureReport.self, from: Data(text.utf8))
        #expect(report.grade == .refuse && report.reasons.count == 1)
        #expect(report.pxPerMm == [2.9, 3.0] && report.residualMm == 0.2)
        #expect(throws: (any Error).self) {
            try JSONDecoder().decode(
                CaptureReport.self, from: Data(#"{"grade": "fine", "reasons": []}"#.utf8))
        }
    }

    @Test func aSignatureIsRequiredOnlyWithAKey() throws {
        let unsigned = try JSON(Data(#"{"a": 1, "signature": null}"#.utf8))
        #expect(Signature.problem(unsigned, required: []) == nil)
        #expect(Signature.problem(unsigned, required: [Data(count: 32)]) != nil)
        let broken = try JSON(Data(#"{"a": 1, "signature": {"algorithm": "none"}}"#.utf8))
        #expect(Signature.problem(broken, required: []) != nil)
    }
}
