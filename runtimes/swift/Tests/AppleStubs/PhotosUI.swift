import Foundation
import SwiftUI

public struct PhotosPickerItem: Equatable, Sendable {
    public func loadTransferable<T: Sendable>(type: T.Type) async throws -> T? { nil }
}
public enum PHPickerFilter { case images, videos }
public struct PhotosPicker: View {
    public init(_ key: LocalizedStringKey, selection: Binding<PhotosPickerItem?>, matching: PHPickerFilter?) {
    }
    public var body: Never { fatalError() }
}
