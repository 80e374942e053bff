import CoreVideo
@_exported import Dispatch
import Foundation

/// Of Dispatch on Apple's systems; Linux has none.
public final class DispatchSerialQueue: SerialExecutor {
    public init(label: String) {}
    public func enqueue(_ job: consuming ExecutorJob) {}
    public func asUnownedSerialExecutor() -> UnownedSerialExecutor { UnownedSerialExecutor(ordinary: self) }
}

public enum MLComputeUnits: Int { case cpuOnly, cpuAndGPU, all, cpuAndNeuralEngine }
public enum MLMultiArrayDataType: Int { case double, float32, float16, int32 }

open class MLModelConfiguration: NSObject {
    open var computeUnits: MLComputeUnits = .all
    open var functionName: String?
}
open class MLPredictionOptions: NSObject {}
open class MLMultiArrayConstraint: NSObject { open var dataType: MLMultiArrayDataType { .float32 } }
open class MLFeatureDescription: NSObject { open var multiArrayConstraint: MLMultiArrayConstraint? { nil } }
open class MLModelDescription: NSObject {
    open var inputDescriptionsByName: [String: MLFeatureDescription] { [:] }
    open var outputDescriptionsByName: [String: MLFeatureDescription] { [:] }
    open var stateDescriptionsByName: [String: MLFeatureDescription] { [:] }
}
open class MLMultiArray: NSObject {
    public init(shape: [NSNumber], dataType: MLMultiArrayDataType) throws {}
    public func withUnsafeMutableBytes<R>(_ body: (UnsafeMutableRawBufferPointer, [Int]) throws -> R) rethrows
        -> R
    {
        fatalError()
    }
}
public protocol MLShapedArrayScalar {}
extension Float: MLShapedArrayScalar {}
public struct MLShapedArray<Scalar: MLShapedArrayScalar>: @unchecked Sendable {
    public init(converting multiArray: MLMultiArray) { fatalError() }
    public var scalars: [Scalar] { [] }
    public var shape: [Int] { [] }
}
open class MLFeatureValue: NSObject {
    public init(multiArray: MLMultiArray) {}
    public init(pixelBuffer: CVPixelBuffer) {}
    open var multiArrayValue: MLMultiArray? { nil }
}
public protocol MLFeatureProvider {
    var featureNames: Set<String> { get }
    func featureValue(for name: String) -> MLFeatureValue?
}
open class MLDictionaryFeatureProvider: NSObject, MLFeatureProvider {
    public init(dictionary: [String: Any]) throws {}
    public var featureNames: Set<String> { [] }
    public func featureValue(for name: String) -> MLFeatureValue? { nil }
}
public final class MLState: NSObject, @unchecked Sendable {}
open class MLModel: NSObject {
    open var modelDescription: MLModelDescription { fatalError() }
    public class func compileModel(at url: URL) async throws -> URL { url }
    public class func load(contentsOf url: URL, configuration: MLModelConfiguration = MLModelConfiguration())
        async throws -> MLModel
    { fatalError() }
    public func makeState() -> MLState { MLState() }
    public func prediction(from input: any MLFeatureProvider) throws -> any MLFeatureProvider { input }
    public func prediction(from input: any MLFeatureProvider, using state: MLState) throws
        -> any MLFeatureProvider
    {
        input
    }
    public func prediction(
        from input: any MLFeatureProvider, options: MLPredictionOptions = MLPredictionOptions()
    ) async throws -> any MLFeatureProvider { input }
    public func prediction(
        from input: any MLFeatureProvider, using state: MLState,
        options: MLPredictionOptions = MLPredictionOptions()
    ) async throws -> any MLFeatureProvider { input }
}
