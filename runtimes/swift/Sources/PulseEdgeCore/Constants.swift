// Generated from pulse_edge/contract.py by runtimes/swift/generate.py. Do not edit.
// swift-format-ignore-file

/// The constants that every port of PULSE shares.
public enum Contract {
    /// Side of a tile in pixels.
    public static let tileSize = 336
    /// Tiles of a page, the view of the whole page included.
    public static let maxTiles = 5
    /// Grids that a picture is fitted into, (width, height) in pixels.
    public static let gridPinpoints: [(Int, Int)] = [(336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008)]
    /// RGB of the canvas beside the picture.
    public static let padColour: (UInt8, UInt8, UInt8) = (0, 0, 0)
    /// CLIP's mean of the channels, RGB.
    public static let imageMean = [0.48145466, 0.4578275, 0.40821073]
    /// CLIP's standard deviation of the channels, RGB.
    public static let imageStd = [0.26862954, 0.26130258, 0.27577711]
    /// Stands for the picture in a prompt.
    public static let imageToken = "<image>"
    /// Stands for the picture in token ids.
    public static let imageTokenID = -200
    /// Opens every prompt.
    public static let system = "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, detailed, and polite answers to the human's questions."
    /// The person's and the model's.
    public static let roles = ["USER", "ASSISTANT"]
    /// Behind the system text and a question.
    public static let sep = " "
    /// Behind an answer.
    public static let sep2 = "</s>"
    /// Newest manifest that is read.
    public static let bundleSchema = 1
    /// File name of the manifest.
    public static let manifest = "manifest.json"
}
