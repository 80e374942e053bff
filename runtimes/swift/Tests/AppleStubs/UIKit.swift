import AVFoundation
import Foundation

@MainActor open class UIView: NSObject {
    open class var layerClass: AnyClass { CALayer.self }
    open var layer: CALayer { CALayer() }
}
