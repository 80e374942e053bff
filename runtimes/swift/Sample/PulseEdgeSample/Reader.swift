import CoreGraphics
import Foundation
import Observation
import PulseEdge

/// What the screen shows: the model, one page, and what the model says of it.
@MainActor @Observable
final class Reader {
    enum Phase: Equatable {
        case noModel
        case loading(String, Double?)
        case ready
        case reading
    }

    struct Bar: Identifiable, Equatable {
        let id: String
        let phrase: String
        let probability: Double
    }

    private(set) var phase = Phase.noModel
    private(set) var page: CGImage?
    private(set) var reasons: [String] = []
    private(set) var report = ""
    private(set) var bars: [Bar] = []
    private(set) var intendedUse = "Research and software testing. Not a medical device."
    private(set) var problem: String?
    var hasProblem: Bool {
        get { problem != nil }
        set { problem = newValue ? problem : nil }
    }

    private var model: PulseModel?
    private var picture: Picture?
    private var work: Task<Void, Never>?

    static let question = "Write a report of this ECG."

    /// The bundle that was imported earlier, or the one that the app carries as a folder reference.
    func loadWhatIsThere() {
        let places = [Self.imported, Bundle.main.url(forResource: "Model", withExtension: nil)].compactMap {
            $0
        }
        let isBundle = { (folder: URL) in
            FileManager.default.fileExists(atPath: folder.appendingPathComponent(Contract.manifest).path)
        }
        if model == nil, let folder = places.first(where: isBundle) { load(folder) }
    }

    /// Copy a bundle that the person chose in Files, then load it.
    func importModel(_ chosen: URL) {
        run {
            self.phase = .loading("Copying the bundle", nil)
            let target = Self.imported
            try await Task.detached {
                let granted = chosen.startAccessingSecurityScopedResource()
                defer { if granted { chosen.stopAccessingSecurityScopedResource() } }
                let files = FileManager.default
                let parent = target.deletingLastPathComponent()
                try files.createDirectory(at: parent, withIntermediateDirectories: true)
                let fresh = parent.appendingPathComponent(UUID().uuidString)
                try files.copyItem(at: chosen, to: fresh)
                if files.fileExists(atPath: target.path) { try files.removeItem(at: target) }
                try files.moveItem(at: fresh, to: target)
            }.value
            try await self.open(target)
        }
    }

    func load(_ folder: URL) { run { try await self.open(folder) } }

    /// Read a page: label bars first, then the streamed report.
    func read(_ picture: Picture, _ verdict: CaptureReport? = nil) {
        self.picture = picture
        page = picture.image
        reasons = verdict?.reasons ?? []
        (report, bars) = ("", [])
        guard verdict?.grade != .refuse else { return }
        ask(Self.question, labelsToo: true)
    }

    func read(_ data: Data) {
        do { read(try Picture(data: data)) } catch { problem = error.localizedDescription }
    }

    func ask(_ question: String, labelsToo: Bool = false) {
        guard let model, let picture else { return }
        run {
            self.phase = .reading
            self.report = ""
            if labelsToo {
                self.bars = try await model.label(picture).map { scored in
                    Bar(
                        id: scored.label.name, phrase: scored.label.fields["phrase"] ?? scored.label.name,
                        probability: scored.probability)
                }
            }
            for try await text in model.ask(question, about: picture) { self.report += text }
        }
    }

    /// Stop what is going on; the model stops after the token in progress.
    func cancel() { work?.cancel() }

    private func open(_ folder: URL) async throws {
        model = nil
        model = try await PulseModel.load(folder) { step in
            Task { @MainActor in self.show(step) }
        }
        intendedUse = model?.intendedUse ?? intendedUse
    }

    private func show(_ step: PulseModel.Step) {
        guard case .loading = phase else { return }  // a late message of a load that has ended
        switch step {
        case .verifying(let share): phase = .loading("Checking the bundle", share)
        case .compiling(let role): phase = .loading("Compiling \(role) for this device, once", nil)
        case .loading(let role): phase = .loading("Loading \(role)", nil)
        }
    }

    private func run(_ body: @escaping @MainActor () async throws -> Void) {
        let earlier = work
        earlier?.cancel()
        work = Task {
            await earlier?.value
            phase = .loading("Preparing", nil)
            do {
                try await body()
            } catch is CancellationError {
            } catch {
                problem = error.localizedDescription
            }
            phase = model == nil ? .noModel : .ready
        }
    }

    private static let imported = FileManager.default
        .urls(for: .applicationSupportDirectory, in: .userDomainMask)[0]
        .appendingPathComponent("Model", isDirectory: true)
}
