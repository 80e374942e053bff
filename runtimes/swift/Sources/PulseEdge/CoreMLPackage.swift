#if canImport(CoreML)
import Accelerate
@preconcurrency import CoreML
import CoreVideo
import Foundation
import PulseEdgeCore

/// One `.mlpackage` on this device: a model for each of its functions, and the state that they share.
///
/// Predictions are synchronous, on a queue of the package's own, so that they block no thread of Swift's pool.
public actor CoreMLPackage: ModelPackage {
    private let queue: DispatchSerialQueue
    private let models: [String: MLModel]
    private var state: MLState?

    public nonisolated var unownedExecutor: UnownedSerialExecutor { queue.asUnownedSerialExecutor() }

    /// Load a compiled package.
    ///
    /// - Parameters:
    ///   - url: of the `.mlmodelc`.
    ///   - functions: to load; empty for a package with one.
    ///   - units: `cpuOnly`, `cpuAndGPU`, `cpuAndNeuralEngine` or `all`, as the manifest says.
    /// - Throws: `PulseEdgeError` (`.bundle`) with Core ML's reason.
    public static func load(_ url: URL, functions: [String], units: String) async throws -> CoreMLPackage {
        var models: [String: MLModel] = [:]
        for function in functions.isEmpty ? [only] : functions {
            let configuration = MLModelConfiguration()
            configuration.computeUnits = Self.units[units] ?? .cpuAndGPU
            if function != only { configuration.functionName = function }
            do {
                models[function] = try await MLModel.load(contentsOf: url, configuration: configuration)
            } catch {
                throw PulseEdgeError(
                    .bundle,
                    "\(url.lastPathComponent) cannot be loaded: \(error.localizedDescription). "
                        + "Export the bundle again, or update the system to what its manifest asks for.")
            }
        }
        return CoreMLPackage(models, label: url.lastPathComponent)
    }

    private init(_ models: [String: MLModel], label: String) {
        self.models = models
        queue = DispatchSerialQueue(label: "pulse-edge.\(label)")
    }

    public func reset() { state = nil }

    public func run(_ inputs: [String: Feature], function: String?) throws -> [String: Feature] {
        guard let model = models[function ?? Self.only] else {
            throw PulseEdgeError(
                .bundle, "The package has no function \(function ?? "main"). Export the bundle again.")
        }
        let described = model.modelDescription.inputDescriptionsByName
        var values: [String: MLFeatureValue] = [:]
        for (name, feature) in inputs { values[name] = try Self.value(feature, described[name]) }
        let given = try MLDictionaryFeatureProvider(dictionary: values)
        let made: any MLFeatureProvider
        if model.modelDescription.stateDescriptionsByName.isEmpty {
            made = try model.prediction(from: given)
        } else {
            let state = self.state ?? model.makeState()
            self.state = state
            made = try model.prediction(from: given, using: state)
        }
        var outputs: [String: Feature] = [:]
        for name in made.featureNames {
            // The converting initialiser follows strides: an output need not lie densely in memory.
            guard let array = made.featureValue(for: name)?.multiArrayValue else { continue }
            let values = MLShapedArray<Float>(converting: array)
            outputs[name] = .floats(values.scalars, shape: values.shape)
        }
        return outputs
    }

    private static let only = ""
    private static let units: [String: MLComputeUnits] = [
        "cpuOnly": .cpuOnly, "cpuAndGPU": .cpuAndGPU, "cpuAndNeuralEngine": .cpuAndNeuralEngine, "all": .all,
    ]

    private static func value(_ feature: Feature, _ description: MLFeatureDescription?) throws
        -> MLFeatureValue
    {
        switch feature {
        case .picture(let picture):
            return MLFeatureValue(pixelBuffer: try pixelBuffer(picture))
        case .ints(let values, let shape):
            let array = try MLMultiArray(shape: shape.map { NSNumber(value: $0) }, dataType: .int32)
            array.withUnsafeMutableBytes { bytes, _ in
                values.withUnsafeBytes { bytes.copyMemory(from: $0) }
            }
            return MLFeatureValue(multiArray: array)
        case .floats(let values, let shape):
            let half = description?.multiArrayConstraint?.dataType == .float16
            let array = try MLMultiArray(
                shape: shape.map { NSNumber(value: $0) }, dataType: half ? .float16 : .float32)
            array.withUnsafeMutableBytes { bytes, _ in
                values.withUnsafeBytes { source in
                    if half { toHalf(source, bytes, values.count) } else { bytes.copyMemory(from: source) }
                }
            }
            return MLFeatureValue(multiArray: array)
        }
    }

    /// Float32 to float16; vImage, because Swift has no `Float16` on Intel Macs.
    private static func toHalf(
        _ source: UnsafeRawBufferPointer, _ target: UnsafeMutableRawBufferPointer, _ count: Int
    ) {
        var from = vImage_Buffer(
            data: UnsafeMutableRawPointer(mutating: source.baseAddress), height: 1,
            width: vImagePixelCount(count),
            rowBytes: count * 4)
        var to = vImage_Buffer(
            data: target.baseAddress, height: 1, width: vImagePixelCount(count), rowBytes: count * 2)
        vImageConvert_PlanarFtoPlanar16F(&from, &to, vImage_Flags(kvImageNoFlags))
    }

    private static func pixelBuffer(_ picture: Picture) throws -> CVPixelBuffer {
        var made: CVPixelBuffer?
        let attributes = [kCVPixelBufferIOSurfacePropertiesKey: [:] as CFDictionary] as CFDictionary
        CVPixelBufferCreate(
            kCFAllocatorDefault, picture.width, picture.height, kCVPixelFormatType_32BGRA, attributes, &made)
        guard let buffer = made, CVPixelBufferLockBaseAddress(buffer, []) == kCVReturnSuccess else {
            throw PulseEdgeError(.memory, "There is no memory for the tiles. Close other apps and try again.")
        }
        defer { CVPixelBufferUnlockBaseAddress(buffer, []) }
        let stride = CVPixelBufferGetBytesPerRow(buffer)
        let base = CVPixelBufferGetBaseAddress(buffer)!.assumingMemoryBound(to: UInt8.self)
        for y in 0..<picture.height {
            for x in 0..<picture.width {
                let (from, to) = ((y * picture.width + x) * 3, y * stride + x * 4)
                base[to] = picture.pixels[from + 2]
                base[to + 1] = picture.pixels[from + 1]
                base[to + 2] = picture.pixels[from]
                base[to + 3] = 255
            }
        }
        return buffer
    }
}
#endif
