import Foundation

#if canImport(CryptoKit)
import CryptoKit
#endif

/// Who made a bundle: Ed25519 over the digest of its manifest, as `pulse-edge bundle sign` writes it.
public enum Signature {
    /// What is signed.
    static func message(_ manifest: JSON) -> Data {
        Data("pulse-edge bundle 1\n\(ModelBundle.digest(manifest))\n".utf8)
    }

    /// Check a manifest's signature.
    ///
    /// - Parameter required: raw public keys of 32 bytes, of which one must have signed. Without any, no
    ///   signature is needed, but one that is there must hold.
    /// - Returns: one sentence if it does not hold.
    static func problem(_ manifest: JSON, required: [Data]) -> String? {
        guard let entry = manifest["signature"], entry != .null else {
            return required.isEmpty
                ? nil
                : "The bundle has no signature, and one is required. "
                    + "Its maker signs it with: pulse-edge bundle sign BUNDLE --key KEY"
        }
        let damaged =
            "The signature of the bundle does not hold: it was changed after signing. Get the bundle again from its maker."
        guard entry["algorithm"]?.string == "ed25519",
            let key = entry["public_key"]?.string.flatMap({ Data(base64Encoded: $0) }),
            let signature = entry["signature"]?.string.flatMap({ Data(base64Encoded: $0) })
        else { return damaged }
        guard required.isEmpty || required.contains(key) else {
            return
                "The bundle is signed with another key than the required one. Do not use it, or require the key "
                + "of its maker. Get the bundle again from its maker."
        }
        return holds(key, signature, message(manifest)) ? nil : damaged
    }

    private static func holds(_ key: Data, _ signature: Data, _ message: Data) -> Bool {
        #if canImport(CryptoKit)
        guard let key = try? Curve25519.Signing.PublicKey(rawRepresentation: key) else { return false }
        return key.isValidSignature(signature, for: message)
        #else
        // Without CryptoKit nothing can be checked, and what was not checked does not hold.
        return false
        #endif
    }
}
