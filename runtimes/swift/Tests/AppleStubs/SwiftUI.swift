import CoreGraphics
import Foundation
@_exported import Observation
import UIKit
import UniformTypeIdentifiers

// MARK: structure

@MainActor public protocol View {
    associatedtype Body: View
    @ViewBuilder var body: Body { get }
}
extension Never: View { public var body: Never { fatalError() } }
extension Optional: View where Wrapped: View { public var body: Never { fatalError() } }
public struct EmptyView: View {
    public nonisolated init() {}
    public var body: Never { fatalError() }
}
public struct AnyPair<A: View, B: View>: View { public var body: Never { fatalError() } }
@resultBuilder public enum ViewBuilder {
    public static func buildBlock() -> EmptyView { fatalError() }
    public static func buildPartialBlock<A: View>(first: A) -> A { first }
    public static func buildPartialBlock<A: View, B: View>(accumulated: A, next: B) -> AnyPair<A, B> {
        fatalError()
    }
    public static func buildIf<A: View>(_ content: A?) -> A? { content }
    public static func buildEither<A: View, B: View>(first: A) -> AnyPair<A, B> { fatalError() }
    public static func buildEither<A: View, B: View>(second: B) -> AnyPair<A, B> { fatalError() }
}
@MainActor public protocol Scene {}
@MainActor public protocol App {
    associatedtype Content: Scene
    var body: Content { get }
    init()
}
extension App { public static func main() {} }
public struct WindowGroup<Content: View>: Scene { public init(@ViewBuilder content: () -> Content) {} }
@MainActor public protocol UIViewRepresentable: View where Body == Never {
    associatedtype UIViewType: UIView
    typealias Context = UIViewRepresentableContext<Self>
    func makeUIView(context: Context) -> UIViewType
    func updateUIView(_ view: UIViewType, context: Context)
}
public struct UIViewRepresentableContext<Representable> {}
extension UIViewRepresentable { public var body: Never { fatalError() } }

// MARK: state

@dynamicMemberLookup @propertyWrapper public struct Binding<Value> {
    public init(projectedValue: Binding<Value>) {}
    public var wrappedValue: Value {
        get { fatalError() }
        nonmutating set {}
    }
    public subscript<Part>(dynamicMember path: WritableKeyPath<Value, Part>) -> Binding<Part> { fatalError() }
}
@propertyWrapper public struct State<Value> {
    public init(wrappedValue: Value) {}
    public var wrappedValue: Value {
        get { fatalError() }
        nonmutating set {}
    }
    public var projectedValue: Binding<Value> { fatalError() }
}

// MARK: views

public struct LocalizedStringKey: ExpressibleByStringInterpolation {
    public init(stringLiteral value: String) {}
}
public struct Text: View {
    public init(_ key: LocalizedStringKey) {}
    @_disfavoredOverload public init<S: StringProtocol>(_ text: S) {}
    public init<F: FormatStyle>(_ value: F.FormatInput, format: F) where F.FormatOutput == String {}
    public func monospacedDigit() -> Text { self }
    public var body: Never { fatalError() }
}
public struct Image: View {
    public init(decorative: CGImage, scale: CGFloat) {}
    public func resizable() -> Image { self }
    public var body: Never { fatalError() }
}
public struct Spacer: View {
    public init() {}
    public var body: Never { fatalError() }
}
public struct Button: View {
    public init(_ key: LocalizedStringKey, action: @escaping @MainActor () -> Void) {}
    public var body: Never { fatalError() }
}
public struct TextField: View {
    public init(_ key: LocalizedStringKey, text: Binding<String>) {}
    public var body: Never { fatalError() }
}
public struct ProgressView: View {
    public init<L: View>(@ViewBuilder label: () -> L) {}
    public init<V: BinaryFloatingPoint>(value: V?) {}
    public init<V: BinaryFloatingPoint, L: View>(value: V?, @ViewBuilder label: () -> L) {}
    public var body: Never { fatalError() }
}
public enum HorizontalAlignment { case leading, center, trailing }
public enum Alignment { case bottom, center }
public struct VStack<Content: View>: View {
    public init(alignment: HorizontalAlignment = .center, @ViewBuilder content: () -> Content) {}
    public var body: Never { fatalError() }
}
public struct HStack<Content: View>: View {
    public init(@ViewBuilder content: () -> Content) {}
    public var body: Never { fatalError() }
}
public struct ZStack<Content: View>: View {
    public init(alignment: Alignment = .center, @ViewBuilder content: () -> Content) {}
    public var body: Never { fatalError() }
}
public struct List<Content: View>: View {
    public init(@ViewBuilder content: () -> Content) {}
    public var body: Never { fatalError() }
}
public struct Section<Content: View>: View {
    public init(@ViewBuilder content: () -> Content) {}
    public init(_ title: LocalizedStringKey, @ViewBuilder content: () -> Content) {}
    public var body: Never { fatalError() }
}
public struct NavigationStack<Content: View>: View {
    public init(@ViewBuilder root: () -> Content) {}
    public var body: Never { fatalError() }
}
public struct ForEach<Data: RandomAccessCollection, Content: View>: View {
    public init<ID: Hashable>(
        _ data: Data, id: KeyPath<Data.Element, ID>, @ViewBuilder content: @escaping (Data.Element) -> Content
    ) {}
    public init(_ data: Data, @ViewBuilder content: @escaping (Data.Element) -> Content)
    where Data.Element: Identifiable {}
    public var body: Never { fatalError() }
}

// MARK: modifiers

public enum Style { case orange, secondary, thinMaterial, primary }
public enum Font { case footnote, body }
public enum ButtonLook { case borderedProminent, plain }
public enum Selectability { case enabled, disabled }
public enum AccessibilityChildBehavior { case combine, ignore }
extension View {
    public func foregroundStyle(_ style: Style) -> some View { self }
    public func background(_ style: Style) -> some View { self }
    public func font(_ font: Font?) -> some View { self }
    public func padding() -> some View { self }
    public func scaledToFit() -> some View { self }
    public func ignoresSafeArea() -> some View { self }
    public func disabled(_ disabled: Bool) -> some View { self }
    public func navigationTitle(_ key: LocalizedStringKey) -> some View { self }
    public func textSelection(_ selectability: Selectability) -> some View { self }
    public func buttonStyle(_ look: ButtonLook) -> some View { self }
    public func accessibilityElement(children: AccessibilityChildBehavior) -> some View { self }
    public func task(_ action: @escaping @MainActor @Sendable () async -> Void) -> some View { self }
    public func onDisappear(perform action: @escaping @MainActor () -> Void) -> some View { self }
    public func onChange<V: Equatable>(of value: V, _ action: @escaping @MainActor (V, V) -> Void)
        -> some View
    { self }
    public func sheet<C: View>(isPresented: Binding<Bool>, @ViewBuilder content: @escaping () -> C)
        -> some View
    { self }
    public func fileImporter(
        isPresented: Binding<Bool>, allowedContentTypes: [UTType],
        onCompletion: @escaping @MainActor (Result<URL, any Error>) -> Void
    ) -> some View { self }
    public func alert<A: View, M: View>(
        _ key: LocalizedStringKey, isPresented: Binding<Bool>, @ViewBuilder actions: () -> A,
        @ViewBuilder message: () -> M
    ) -> some View { self }
}
