"""Run bundles on devices. Nothing in this package imports torch or transformers for a bundle."""
