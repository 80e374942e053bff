#if canImport(CoreML)
import Foundation

#if os(iOS) || os(tvOS) || os(visionOS) || os(watchOS)
import os
#endif

/// What the system still grants this app.
public enum Memory {
    /// Bytes. On iOS the limit of the app less what it uses, which the entitlements
    /// `com.apple.developer.kernel.increased-memory-limit` and `.extended-virtual-addressing` raise; on macOS,
    /// where apps have no such limit, the machine's memory.
    public static var available: Int {
        #if os(iOS) || os(tvOS) || os(visionOS) || os(watchOS)
        return Int(os_proc_available_memory())
        #else
        return Int(ProcessInfo.processInfo.physicalMemory)
        #endif
    }
}
#endif
