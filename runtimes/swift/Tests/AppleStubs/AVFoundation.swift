import CoreMedia
import CoreVideo
@_exported import Dispatch
import Foundation

public struct AVMediaType: Sendable { public static let video = AVMediaType() }
open class AVCaptureDevice: NSObject {
    public struct DeviceType: Sendable { public static let builtInWideAngleCamera = DeviceType() }
    public enum Position: Int { case unspecified, back, front }
    public class func requestAccess(for type: AVMediaType) async -> Bool { true }
    public class func `default`(_ type: DeviceType, for media: AVMediaType?, position: Position)
        -> AVCaptureDevice?
    {
        nil
    }
}
open class AVCaptureInput: NSObject {}
open class AVCaptureDeviceInput: AVCaptureInput { public init(device: AVCaptureDevice) throws {} }
open class AVCaptureConnection: NSObject { open var videoRotationAngle: CGFloat = 0 }
open class AVCaptureOutput: NSObject {
    public func connection(with type: AVMediaType) -> AVCaptureConnection? { nil }
}
open class AVCapturePhotoSettings: NSObject {}
open class AVCapturePhoto: NSObject { public func fileDataRepresentation() -> Data? { nil } }
public protocol AVCapturePhotoCaptureDelegate: NSObjectProtocol {
    func photoOutput(
        _ output: AVCapturePhotoOutput, didFinishProcessingPhoto photo: AVCapturePhoto, error: (any Error)?)
}
open class AVCapturePhotoOutput: AVCaptureOutput {
    public func capturePhoto(
        with settings: AVCapturePhotoSettings, delegate: any AVCapturePhotoCaptureDelegate
    ) {}
}
public protocol AVCaptureVideoDataOutputSampleBufferDelegate: NSObjectProtocol {
    func captureOutput(
        _ output: AVCaptureOutput, didOutput sampleBuffer: CMSampleBuffer,
        from connection: AVCaptureConnection)
}
open class AVCaptureVideoDataOutput: AVCaptureOutput {
    open var videoSettings: [String: Any]! = [:]
    open var alwaysDiscardsLateVideoFrames = true
    public func setSampleBufferDelegate(
        _ delegate: (any AVCaptureVideoDataOutputSampleBufferDelegate)?, queue: DispatchQueue?
    ) {}
}
open class AVCaptureSession: NSObject {
    public struct Preset: Sendable { public static let photo = Preset() }
    open var sessionPreset = Preset.photo
    open var inputs: [AVCaptureInput] { [] }
    open var isRunning: Bool { false }
    public func beginConfiguration() {}
    public func commitConfiguration() {}
    public func canAddInput(_ input: AVCaptureInput) -> Bool { true }
    public func canAddOutput(_ output: AVCaptureOutput) -> Bool { true }
    public func addInput(_ input: AVCaptureInput) {}
    public func addOutput(_ output: AVCaptureOutput) {}
    public func startRunning() {}
    public func stopRunning() {}
}
public enum AVLayerVideoGravity { case resizeAspect, resizeAspectFill }
open class CALayer: NSObject {}
open class AVCaptureVideoPreviewLayer: CALayer {
    open var session: AVCaptureSession?
    open var videoGravity = AVLayerVideoGravity.resizeAspect
}
