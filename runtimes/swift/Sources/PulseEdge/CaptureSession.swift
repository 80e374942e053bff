#if canImport(CoreML) && os(iOS)
@preconcurrency import AVFoundation
import CoreMedia
import CoreVideo
import Foundation
import PulseEdgeCore

/// The back camera, with a quality gate in front of the model: live guidance while the person aims, and a verdict
/// on the photo.
///
/// Show ``session`` in an `AVCaptureVideoPreviewLayer`. All camera work happens on one queue.
public final class CaptureSession: NSObject, @unchecked Sendable {
    public let session = AVCaptureSession()
    /// Verdicts of the gate on live frames; frames that come while it is busy are dropped.
    public let guidance: AsyncStream<CaptureReport>

    private let queue = DispatchQueue(label: "pulse-edge.camera")
    private let photos = AVCapturePhotoOutput()
    private let frames = AVCaptureVideoDataOutput()
    private let gate: (any CaptureGate)?
    private let tell: AsyncStream<CaptureReport>.Continuation
    // Only touched on `queue`.
    private var judging = false
    private var waiting: CheckedContinuation<Picture, any Error>?

    /// - Parameter gate: of the app; without one there is no guidance and every photo is taken.
    public init(gate: (any CaptureGate)? = nil) {
        self.gate = gate
        (guidance, tell) = AsyncStream.makeStream(bufferingPolicy: .bufferingNewest(1))
    }

    deinit { tell.finish() }

    /// Ask for the camera and start it.
    ///
    /// - Throws: `PulseEdgeError` (`.input`): no permission, or no camera.
    public func start() async throws {
        guard await AVCaptureDevice.requestAccess(for: .video) else {
            throw PulseEdgeError(
                .input,
                "This app may not use the camera. Allow it in Settings, or choose a photo from the library.")
        }
        try await withCheckedThrowingContinuation { (done: CheckedContinuation<Void, any Error>) in
            queue.async {
                do {
                    try self.configure()
                    self.session.startRunning()
                    done.resume()
                } catch {
                    done.resume(throwing: error)
                }
            }
        }
    }

    public func stop() { queue.async { self.session.stopRunning() } }

    /// Take a photo, upright, and have the gate judge it; nil where there is no gate.
    public func photo() async throws -> (picture: Picture, report: CaptureReport?) {
        let picture = try await withCheckedThrowingContinuation {
            (done: CheckedContinuation<Picture, any Error>) in
            queue.async {
                guard self.waiting == nil, self.session.isRunning else {
                    done.resume(
                        throwing: PulseEdgeError(.input, "The camera is not ready. Try again in a moment."))
                    return
                }
                self.waiting = done
                self.photos.capturePhoto(with: AVCapturePhotoSettings(), delegate: self)
            }
        }
        return (picture, try await gate?.judge(picture))
    }

    private func configure() throws {
        guard session.inputs.isEmpty else { return }
        session.beginConfiguration()
        defer { session.commitConfiguration() }
        session.sessionPreset = .photo
        guard let camera = AVCaptureDevice.default(.builtInWideAngleCamera, for: .video, position: .back),
            let input = try? AVCaptureDeviceInput(device: camera), session.canAddInput(input),
            session.canAddOutput(photos)
        else {
            throw PulseEdgeError(.input, "There is no usable camera. Choose a photo from the library.")
        }
        session.addInput(input)
        session.addOutput(photos)
        guard gate != nil, session.canAddOutput(frames) else { return }
        frames.videoSettings = [kCVPixelBufferPixelFormatTypeKey as String: kCVPixelFormatType_32BGRA]
        frames.alwaysDiscardsLateVideoFrames = true
        frames.setSampleBufferDelegate(self, queue: queue)
        session.addOutput(frames)
        frames.connection(with: .video)?.videoRotationAngle = 90  // upright in portrait
    }
}

extension CaptureSession: AVCapturePhotoCaptureDelegate {
    public func photoOutput(
        _ output: AVCapturePhotoOutput, didFinishProcessingPhoto photo: AVCapturePhoto, error: (any Error)?
    ) {
        let data = photo.fileDataRepresentation()
        queue.async {
            let done = self.waiting
            self.waiting = nil
            if let data {
                done?.resume(with: Result { try Picture(data: data) })
            } else {
                let reason = error?.localizedDescription ?? "no data"
                done?.resume(
                    throwing: PulseEdgeError(.failure, "The photo was not taken: \(reason). Take it again."))
            }
        }
    }
}

extension CaptureSession: AVCaptureVideoDataOutputSampleBufferDelegate {
    public func captureOutput(
        _ output: AVCaptureOutput, didOutput sampleBuffer: CMSampleBuffer,
        from connection: AVCaptureConnection
    ) {
        guard !judging, let gate, let buffer = CMSampleBufferGetImageBuffer(sampleBuffer),
            let picture = Self.picture(buffer)
        else { return }
        judging = true
        Task {
            // A gate that fails says nothing about this frame; the photo itself is judged again.
            if let report = try? await gate.judge(picture) { tell.yield(report) }
            queue.async { self.judging = false }
        }
    }

    private static func picture(_ buffer: CVPixelBuffer) -> Picture? {
        guard CVPixelBufferLockBaseAddress(buffer, .readOnly) == kCVReturnSuccess else { return nil }
        defer { CVPixelBufferUnlockBaseAddress(buffer, .readOnly) }
        guard let base = CVPixelBufferGetBaseAddress(buffer)?.assumingMemoryBound(to: UInt8.self) else {
            return nil
        }
        let (width, height) = (CVPixelBufferGetWidth(buffer), CVPixelBufferGetHeight(buffer))
        let stride = CVPixelBufferGetBytesPerRow(buffer)
        let pixels = [UInt8](unsafeUninitializedCapacity: width * height * 3) { out, count in
            for y in 0..<height {
                for x in 0..<width {
                    let (from, to) = (y * stride + x * 4, (y * width + x) * 3)
                    out[to] = base[from + 2]
                    out[to + 1] = base[from + 1]
                    out[to + 2] = base[from]
                }
            }
            count = width * height * 3
        }
        return try? Picture(width: width, height: height, pixels: pixels)
    }
}
#endif
