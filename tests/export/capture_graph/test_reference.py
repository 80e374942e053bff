"""The graph's numbers are those of the numpy path."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest

from pulse_edge.export.capture_graph import page, reference
from pulse_edge.runtimes.capture import (
    contrast,
    field,
    frequency,
    lattice,
    light,
    lines,
    mesh,
    orientation,
    phase,
    rectify,
)

SAME = {
    contrast: {"LONG_SIDE": "LONG_SIDE", "REACH": "_REACH", "CLIP": "_CLIP", "FLOOR": "_FLOOR"},
    frequency: {
        "WINDOW": "WINDOW", "HOP": "_HOP", "ANGLES": "_ANGLES", "PERIODS": "_PERIODS", "STEPS": "_STEPS",
        "COMB": "_COMB", "CAP": "_CAP", "SKEW": "_SKEW", "RATIO": "_RATIO", "FOLLOWED": "_REACH",
        "SURE": "SURE", "TRIED": "_TRIED",
    },
    phase: {"STIFF": "_STIFF"},
    lines: {
        "PX_PER_MM": "PX_PER_MM", "HARMONICS": "_HARMONICS", "GRID": "GRID", "SHIFTS": "SHIFTS",
        "PER_MM": "_PER_MM", "MINOR": "MINOR", "WAVE": "_WAVE",
    },
    field: {"DECAY": "_DECAY"},
    mesh: {"STEP_MM": "STEP_MM"},
    lattice: {
        "NO_MAJOR": "_NO_MAJOR", "WIDER": "_WIDER", "TRIES": "_TRIES", "STRONG": "_STRONG",
        "COMING": "_COMING", "DOUBT": "_DOUBT", "IRREGULAR": "_IRREGULAR",
    },
    rectify: {"SEEN": "SEEN", "PAGE_PX_PER_MM": "PX_PER_MM"},
    light: {"CELL_MM": "_CELL_MM", "SMOOTH_MM": "_SMOOTH_MM", "WHITE": "_WHITE"},
    orientation: {"STRIDES": "_STRIDES", "INK": "_INK", "FAINTEST": "_FAINTEST", "WEIGHTS": "WEIGHTS"},
}  # fmt: skip


@pytest.mark.parametrize(("module", "names"), SAME.items(), ids=lambda x: getattr(x, "__name__", ""))
def test_every_number_is_the_reference_s(module, names):
    for here, there in names.items():
        ours, theirs = getattr(reference, here), getattr(module, there)
        if here == "WEIGHTS":
            assert ours.read_bytes() == theirs.read_bytes()
        else:
            assert np.array_equal(ours, theirs) if isinstance(ours, np.ndarray) else ours == theirs, here


def test_passes_are_the_reference_s():
    assert [asdict(turn) for turn in reference.FIRST] == [asdict(turn) for turn in lattice.FIRST]
    assert [asdict(turn) for turn in reference.LAST] == [asdict(turn) for turn in lattice.LAST]
    assert asdict(reference.GROWING) == asdict(lattice.GROWING)


def test_every_number_is_looked_at():
    known = {name for names in SAME.values() for name in names} | {"FIRST", "LAST", "GROWING"}
    assert {name for name in vars(reference) if name.isupper()} == known
    assert page.PX_PER_CELL == reference.PAGE_PX_PER_MM * reference.STEP_MM
