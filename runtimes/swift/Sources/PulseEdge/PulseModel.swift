#if canImport(CoreML)
import CoreML
import Foundation
@_exported import PulseEdgeCore

/// A bundle that is ready to answer questions about ECG pages.
///
/// ```swift
/// let model = try await PulseModel.load(folder) { print($0) }
/// for try await text in model.ask("What does this ECG show?", about: picture) { print(text, terminator: "") }
/// ```
public struct PulseModel: Sendable {
    /// What loading is at.
    public enum Step: Equatable, Sendable {
        /// Comparing every file with the manifest; 0 to 1.
        case verifying(Double)
        /// Core ML compiles a package for this device: once for each bundle and system version.
        case compiling(String)
        case loading(String)
    }

    public let bundle: ModelBundle
    public let session: Session<BundleEngine<CoreMLPackage>, Tokenizer>

    /// The sentence to show beside every answer.
    public var intendedUse: String { bundle.manifest.intendedUse }

    /// Check, compile and load a bundle.
    ///
    /// - Parameters:
    ///   - folder: the bundle as `pulse-edge export --target coreml` wrote it.
    ///   - keys: raw Ed25519 public keys; if there are any, one of them must have signed the bundle.
    ///   - checksMemory: refuse a model that does not fit what the system still grants this app.
    ///   - progress: called from any thread.
    /// - Throws: `PulseEdgeError`: the bundle is not sound, not for Core ML, or does not fit; `CancellationError`.
    public static func load(
        _ folder: URL, keys: [Data] = [], checksMemory: Bool = true,
        progress: @escaping @Sendable (Step) -> Void = { _ in }
    ) async throws -> PulseModel {
        let bundle = try ModelBundle(folder: folder)
        if checksMemory, let problem = MemoryNeed(bundle.manifest).problem(available: Memory.available) {
            throw PulseEdgeError(.memory, problem)
        }
        // Hashing gigabytes takes seconds: not on the caller's actor.
        try await Task.detached { try bundle.verify(keys: keys) { progress(.verifying($0)) } }.value
        let tokenizer = try Tokenizer(folder: folder)
        var packages: [String: CoreMLPackage] = [:]
        for (role, graph) in bundle.manifest.json["graphs"]?.object?.pairs ?? [] where role != "preprocess" {
            try Task.checkCancellation()
            let compiled = try await compile(bundle, role, graph, progress)
            progress(.loading(role))
            let units = bundle.manifest.json["coreml"]?["compute_units"]?[
                role.hasPrefix("decoder") ? "decoder" : role]
            packages[role] = try await CoreMLPackage.load(
                compiled, functions: graph["functions"]?.object?.names ?? [],
                units: units?.string ?? "cpuAndGPU")
        }
        let newline = try? Data(contentsOf: folder.appendingPathComponent("image_newline.npy"))
        let engine = try BundleEngine(packages, bundle.manifest, newline: newline)
        let manifest = bundle.manifest
        return PulseModel(
            bundle: bundle,
            session: Session(
                engine, tokenizer, labels: manifest.labels, scoring: manifest.scoring,
                maxNewTokens: manifest.maxNewTokens))
    }

    /// Answer a question about a page, piece by piece; see ``Session/ask(_:about:maxNewTokens:)``.
    public func ask(
        _ question: String, about picture: Picture, maxNewTokens: Int? = nil
    ) -> AsyncThrowingStream<String, any Error> {
        session.ask(question, about: picture, maxNewTokens: maxNewTokens)
    }

    /// Probability of every label of the bundle; see ``Session/label(_:)``.
    public func label(_ picture: Picture) async throws -> [(label: Manifest.Label, probability: Double)] {
        try await session.label(picture)
    }

    /// Compile a package once; what was compiled stays in the app's caches, which the system may clear.
    private static func compile(
        _ bundle: ModelBundle, _ role: String, _ graph: JSON, _ progress: @Sendable (Step) -> Void
    ) async throws -> URL {
        let files = FileManager.default
        guard let file = graph["file"]?.string, let digest = bundle.manifest.json["digest"]?.string else {
            throw PulseEdgeError(
                .bundle, "The graph \(role) names no file of the bundle; export the bundle again.")
        }
        let system = ProcessInfo.processInfo.operatingSystemVersionString.filter {
            $0.isLetter || $0.isNumber
        }
        let folder = try files.url(
            for: .cachesDirectory, in: .userDomainMask, appropriateFor: nil, create: true
        )
        .appendingPathComponent("PulseEdge/\(digest.prefix(16))-\(system)", isDirectory: true)
        let kept = folder.appendingPathComponent("\(role).mlmodelc", isDirectory: true)
        if files.fileExists(atPath: kept.path) { return kept }
        progress(.compiling(role))
        try files.createDirectory(at: folder, withIntermediateDirectories: true)
        do {
            let made = try await MLModel.compileModel(at: bundle.folder.appendingPathComponent(file))
            // A move within one volume is whole or not at all; another task may have been first.
            if !files.fileExists(atPath: kept.path) { try files.moveItem(at: made, to: kept) }
        } catch {
            throw PulseEdgeError(
                .bundle,
                "\(file) cannot be compiled: \(error.localizedDescription). Free some space, or export the bundle again."
            )
        }
        return kept
    }
}
#endif
