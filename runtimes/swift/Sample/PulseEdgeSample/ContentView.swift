import Foundation
import PhotosUI
import PulseEdge
import SwiftUI
import UniformTypeIdentifiers

struct ContentView: View {
    @State private var reader = Reader()
    @State private var chosen: PhotosPickerItem?
    @State private var importing = false
    @State private var aiming = false
    @State private var question = ""

    var body: some View {
        NavigationStack {
            List {
                Section { status }
                if let page = reader.page {
                    Section {
                        Image(decorative: page, scale: 1).resizable().scaledToFit()
                        ForEach(reader.reasons, id: \.self) { Text($0).foregroundStyle(.orange) }
                    }
                }
                if !reader.bars.isEmpty {
                    Section("Findings") { ForEach(reader.bars) { LabelBar(bar: $0) } }
                }
                if !reader.report.isEmpty {
                    Section("Report") {
                        Text(reader.report).textSelection(.enabled)
                        HStack {
                            TextField("Ask about this page", text: $question)
                            Button("Ask") { reader.ask(question) }.disabled(question.isEmpty)
                        }
                    }
                }
                Section { Text(reader.intendedUse).font(.footnote).foregroundStyle(.secondary) }
            }
            .navigationTitle("PULSE")
        }
        .task { reader.loadWhatIsThere() }
        .onChange(of: chosen) { _, item in
            guard let item else { return }
            Task {
                if let data = try? await item.loadTransferable(type: Data.self) { reader.read(data) }
                chosen = nil
            }
        }
        .fileImporter(isPresented: $importing, allowedContentTypes: [.folder]) { result in
            if case .success(let folder) = result { reader.importModel(folder) }
        }
        .sheet(isPresented: $aiming) {
            CameraView { picture, report in
                aiming = false
                reader.read(picture, report)
            }
        }
        .alert("PULSE", isPresented: $reader.hasProblem) {
            Button("OK") {}
        } message: {
            Text(reader.problem ?? "")
        }
    }

    @ViewBuilder private var status: some View {
        switch reader.phase {
        case .noModel:
            Text("Choose the folder that `pulse-edge export --target coreml` wrote.")
            Button("Choose the bundle") { importing = true }
        case .loading(let what, let share):
            if let share { ProgressView(value: share) { Text(what) } } else { ProgressView { Text(what) } }
            Button("Stop") { reader.cancel() }
        case .ready:
            PhotosPicker("Choose a photo", selection: $chosen, matching: .images)
            Button("Take a photo") { aiming = true }
        case .reading:
            ProgressView { Text("Reading the page") }
            Button("Stop") { reader.cancel() }
        }
    }
}

/// One finding: its name, and a bar as long as its probability.
struct LabelBar: View {
    let bar: Reader.Bar

    var body: some View {
        VStack(alignment: .leading) {
            HStack {
                Text(bar.phrase)
                Spacer()
                Text(bar.probability, format: .percent.precision(.fractionLength(0))).monospacedDigit()
            }
            ProgressView(value: bar.probability)
        }
        .accessibilityElement(children: .combine)
    }
}
