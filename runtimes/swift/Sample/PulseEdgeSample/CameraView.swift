import AVFoundation
import PulseEdge
import SwiftUI
import UIKit

/// The camera with the gate's guidance. This app brings no gate of its own: see README.md, "The quality gate".
struct CameraView: View {
    let taken: (Picture, CaptureReport?) -> Void

    @State private var camera = CaptureSession()
    @State private var message = "Hold the phone flat over the page, until the grid is sharp."

    var body: some View {
        ZStack(alignment: .bottom) {
            Preview(session: camera.session).ignoresSafeArea()
            VStack {
                Text(message).padding().background(.thinMaterial)
                Button("Take the photo") {
                    Task {
                        do {
                            let (picture, report) = try await camera.photo()
                            taken(picture, report)
                        } catch {
                            message = error.localizedDescription
                        }
                    }
                }
                .buttonStyle(.borderedProminent)
            }
            .padding()
        }
        .task {
            do { try await camera.start() } catch { message = error.localizedDescription }
            for await report in camera.guidance { message = report.reasons.first ?? "Good. Take the photo." }
        }
        .onDisappear { camera.stop() }
    }
}

private struct Preview: UIViewRepresentable {
    let session: AVCaptureSession

    func makeUIView(context: Context) -> PreviewView {
        let view = PreviewView()
        view.preview.session = session
        view.preview.videoGravity = .resizeAspectFill
        return view
    }

    func updateUIView(_ view: PreviewView, context: Context) {}
}

private final class PreviewView: UIView {
    override class var layerClass: AnyClass { AVCaptureVideoPreviewLayer.self }
    var preview: AVCaptureVideoPreviewLayer { layer as! AVCaptureVideoPreviewLayer }
}
