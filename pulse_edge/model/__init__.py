"""PULSE itself: from a picture and a question to tiles, token ids and logits."""

from __future__ import annotations
