"""The Core ML target: a bundle of `.mlpackage` folders that an app on iOS 18 or macOS 15 embeds.

One file per graph (``preprocess``, ``vision``, ``embedding``, ``decoder`` with its ``layout``), one for what
is stored in them (``compress``), one that writes packages (``package``) with their ``metadata``, and
``bundle``, which makes all of them from a checkpoint. ``player`` runs a bundle on any machine through
`export.milrun`.

Programs are written in MIL, Core ML's own intermediate language, through coremltools' builder, as the
ONNX decoder is written operator by operator: types, layouts and compressed weights are then exactly
what is written here, on every version of torch. Only the vision tower comes from a trace, since its
architecture is the checkpoint's. coremltools is imported when an export starts.
"""

from __future__ import annotations
