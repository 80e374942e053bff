// swift-tools-version: 6.0
import PackageDescription

let package = Package(
    name: "PulseEdge",
    platforms: [.iOS(.v18), .macOS(.v15)],
    products: [
        .library(name: "PulseEdge", targets: ["PulseEdge"]),
        .library(name: "PulseEdgeCore", targets: ["PulseEdgeCore"]),
    ],
    targets: [
        // Foundation only: also compiled and tested on Linux.
        .target(name: "PulseEdgeCore"),
        // Core ML, camera, memory. Every file stands inside `#if canImport(CoreML)`: empty on Linux.
        .target(name: "PulseEdge", dependencies: ["PulseEdgeCore"]),
        .testTarget(
            name: "PulseEdgeCoreTests", dependencies: ["PulseEdgeCore"], resources: [.copy("Golden")]),
    ]
)
