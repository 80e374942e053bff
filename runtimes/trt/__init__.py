"""TensorRT on the device: its interface, memory, engines, and building them; `tensorrt.py` runs a bundle."""

from __future__ import annotations
