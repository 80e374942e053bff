"""Evaluation: label scores on real records, and parity of a bundle with its reference."""
