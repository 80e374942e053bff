import Foundation

/// The folder that `pulse-edge export` wrote: what its manifest says, and whether its files still agree.
public struct ModelBundle: Sendable {
    /// One entry of the manifest's `files`.
    public struct File: Equatable, Sendable {
        /// Path inside the bundle.
        public let name: String
        public let sha256: String
        public let bytes: Int
    }

    public let folder: URL
    public let manifest: Manifest

    private static let required = [
        "schema", "model", "target", "graphs", "files", "preprocessing", "prompt", "generation",
    ]

    /// Read and check the manifest's form, not the files: those are compared by ``problems(progress:)``.
    ///
    /// - Throws: `PulseEdgeError` (`.bundle`): there is no manifest, it is not one, it lacks a field, or its
    ///   schema is newer than this package.
    public init(folder: URL) throws {
        self.folder = folder
        self.manifest = try Manifest(
            Self.readManifest(folder), file: folder.appendingPathComponent(Contract.manifest))
    }

    /// Compare a bundle with its manifest.
    ///
    /// - Parameters:
    ///   - keys: raw Ed25519 public keys; if there are any, one of them must have signed.
    ///   - progress: called with the share of bytes that were compared so far, 0 to 1.
    /// - Returns: one sentence for each problem, none if the bundle is sound. They are the sentences of
    ///   `pulse-edge verify`, in its order.
    /// - Throws: only `CancellationError`.
    public static func problems(
        in folder: URL, keys: [Data] = [], progress: (@Sendable (Double) -> Void)? = nil
    ) throws
        -> [String]
    {
        let manifest: JSON
        do { manifest = try readManifest(folder) } catch let error as PulseEdgeError {
            return [error.message]
        }
        let listed = manifest["files"]?.object ?? JSON.Fields()
        let total = listed.pairs.reduce(0) { $0 + ($1.value["bytes"]?.int ?? 0) }
        var done = 0
        var problems: [String] = []
        for (name, entry) in listed.pairs {
            if let problem = try problem(folder, name, entry) { problems.append(problem) }
            done += entry["bytes"]?.int ?? 0
            progress?(total > 0 ? min(1, Double(done) / Double(total)) : 1)
        }
        if manifest["digest"]?.string != digest(manifest) {
            problems.append("\(Contract.manifest) differs from what was exported; copy the bundle again.")
        }
        for (role, graph) in manifest["graphs"]?.object?.pairs ?? [] {
            // A Core ML package is a folder of files.
            let file = graph["file"]?.string
            let held = file.map { file in
                listed[file] != nil || listed.names.contains { $0.hasPrefix("\(file)/") }
            }
            if held != true {
                problems.append("The graph \(role) names no file of the bundle; export the bundle again.")
            }
        }
        do {
            for name in try files(folder) where listed[name] == nil {
                problems.append("\(name) is not part of the bundle; delete it or copy the bundle again.")
            }
        } catch let error as PulseEdgeError {
            problems.append(error.message)
        }
        if let problem = Signature.problem(manifest, required: keys) { problems.append(problem) }
        return problems
    }

    /// Throw what ``problems(in:progress:)`` finds first, as `pulse-edge run` does.
    public func verify(keys: [Data] = [], progress: (@Sendable (Double) -> Void)? = nil) throws {
        let problems = try Self.problems(in: folder, keys: keys, progress: progress)
        guard let first = problems.first else { return }
        let count = problems.count > 1 ? " (\(problems.count) problems)" : ""
        throw PulseEdgeError(.bundle, "The bundle \(folder.path) is not sound\(count): \(first)")
    }

    static func readManifest(_ folder: URL) throws -> JSON {
        let file = folder.appendingPathComponent(Contract.manifest)
        guard isPlainFile(file, throughLinks: true) else {
            throw PulseEdgeError(
                .bundle,
                "\(folder.path) is not a bundle: it has no \(Contract.manifest). Make one with: pulse-edge export"
            )
        }
        let manifest: JSON
        do {
            manifest = try JSON(Data(contentsOf: file))
        } catch {
            let reason = (error as? PulseEdgeError)?.message ?? error.localizedDescription
            throw PulseEdgeError(.bundle, "\(file.path) cannot be read: \(reason). Copy the bundle again.")
        }
        guard let schema = manifest["schema"]?.int, schema >= 1 else {
            throw PulseEdgeError(
                .bundle, "\(file.path) is not a manifest of pulse-edge. Copy the bundle again.")
        }
        guard schema <= Contract.bundleSchema else {
            throw PulseEdgeError(
                .bundle,
                "The bundle \(folder.path) has schema \(schema); this app reads up to "
                    + "\(Contract.bundleSchema). Update it to a newer PulseEdge.")
        }
        var missing = required.filter { manifest[$0] == nil }
        if missing.isEmpty { missing = ["files", "graphs"].filter { manifest[$0]?.object == nil } }
        guard missing.isEmpty else {
            throw PulseEdgeError(
                .bundle, "\(file.path) lacks \(missing.joined(separator: ", ")). Export the bundle again.")
        }
        return manifest
    }

    /// SHA-256 of a manifest's fields but `digest` and `signature`, however it is laid out.
    static func digest(_ manifest: JSON) -> String {
        var fields = JSON.Fields()
        for (name, value) in manifest.object?.pairs ?? [] where name != "digest" && name != "signature" {
            fields[name] = value
        }
        return Hash.sha256(Array(JSON.object(fields).canonical.utf8))
    }

    /// Compare one file with its entry in the manifest.
    private static func problem(_ folder: URL, _ name: String, _ entry: JSON) throws -> String? {
        if name.hasPrefix("/") || name.split(separator: "/").contains("..") {
            return "\(name) lies outside the bundle; do not use this bundle."
        }
        let file = folder.appendingPathComponent(name)
        guard isPlainFile(file, throughLinks: false) else {
            return "\(name) is missing; copy the bundle again."
        }
        let size = try? FileManager.default.attributesOfItem(atPath: file.path)[.size] as? NSNumber
        guard let bytes = entry["bytes"]?.int, size?.intValue == bytes else {
            return "\(name) has another size than the manifest says; copy the bundle again."
        }
        do {
            let same = try Hash.sha256(file: file) == entry["sha256"]?.string
            return same ? nil : "\(name) differs from what was exported; copy the bundle again."
        } catch let error as CancellationError {
            throw error
        } catch {
            return
                "\(name) cannot be read (\(error.localizedDescription)); check its rights or copy the bundle again."
        }
    }

    /// Names of the plain files in a folder, relative to it and sorted, without the manifest.
    static func files(_ folder: URL) throws -> [String] {
        let names = FileManager.default.enumerator(atPath: folder.path)?.compactMap { $0 as? String } ?? []
        var found: [String] = []
        for name in names.sorted(by: { precedes($0.split(separator: "/"), $1.split(separator: "/")) }) {
            let file = folder.appendingPathComponent(name)
            let kind =
                try? FileManager.default.attributesOfItem(atPath: file.path)[.type] as? FileAttributeType
            if kind == .typeSymbolicLink {
                throw PulseEdgeError(
                    .bundle,
                    "\(file.path) is a symbolic link; a bundle holds plain files. Copy the file itself.")
            }
            if kind == .typeRegular, name != Contract.manifest { found.append(name) }
        }
        return found
    }

    private static func isPlainFile(_ file: URL, throughLinks: Bool) -> Bool {
        let file = throughLinks ? file.resolvingSymlinksInPath() : file
        let kind = try? FileManager.default.attributesOfItem(atPath: file.path)[.type] as? FileAttributeType
        return kind == .typeRegular
    }

    /// Python's order of paths: part by part, by code points.
    private static func precedes(_ a: [Substring], _ b: [Substring]) -> Bool {
        a.lexicographicallyPrecedes(b) { $0.unicodeScalars.lexicographicallyPrecedes($1.unicodeScalars) }
    }
}
