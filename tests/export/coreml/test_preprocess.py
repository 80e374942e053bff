"""The package that preprocesses, played by milrun, against PULSE's own tiles."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pulse_edge.contract import GRID_PINPOINTS
from pulse_edge.export.coreml import preprocess as coreml
from pulse_edge.export.coreml.package import finish
from pulse_edge.export.milrun import load_package
from pulse_edge.model.preprocess import tiles


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    path = tmp_path_factory.mktemp("preprocess") / "preprocess.mlpackage"
    finish(coreml.convert_preprocess(path, half=True), path)
    return load_package(path)


def gap(package, picture):
    """Largest difference in grey levels, and share of the values that differ."""
    made, expected = package.run(None, {"image": picture}), tiles(picture)
    count = len(expected)
    assert made["shown"].tolist() == [1.0] * count + [0.0] * (5 - count)
    stack = made["tiles"].reshape(5, 336, 336, 3)
    assert not stack[count:].any()
    difference = np.abs(stack[:count].astype(int) - expected)
    return difference.max(), (difference > 0).mean()


@pytest.mark.parametrize(
    ("height", "width"),
    [
        (336, 336), (672, 672), (480, 640), (777, 1003), (1003, 777), (600, 1900), (1900, 600), (100, 60),
        (16, 1500), (1500, 16), (1008, 1344), (1050, 1400), (40, 30), (335, 673),
    ],
)  # fmt: skip
def test_any_size_is_cut_as_pulse_cuts_it(package, height, width):
    """Noise is the hardest picture there is: every grey level counts."""
    picture = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    worst, changed = gap(package, picture)
    assert worst <= 2  # a rounding in each of two passes
    assert changed < 1e-3


def test_a_shipped_page_is_cut_as_pulse_cuts_it(package, root):
    with Image.open(root / "pulse_edge/assets/samples/normal.png") as page:
        worst, changed = gap(package, np.asarray(page.convert("RGB")))
    assert worst <= 2  # a rounding in each of two passes
    assert changed < 1e-4


def test_a_size_that_needs_no_resizing_is_exact(package):
    picture = np.random.default_rng(1).integers(0, 256, (672, 672, 3), dtype=np.uint8)
    stack = package.run(None, {"image": picture})["tiles"].reshape(5, 336, 336, 3)
    assert np.array_equal(stack[1], picture[:336, :336])
    assert np.array_equal(stack[4], picture[336:, 336:])


SLACK, STEPS = coreml._slack(), coreml._steps()


@given(
    side=st.sampled_from(sorted({side for pair in GRID_PINPOINTS for side in pair})),
    divisor=st.integers(*coreml.SIDES),
    whole=st.integers(1, 1008),
    extra=st.sampled_from([0, 0, 0, 1, -1]),
)
def test_the_table_repeats_what_float64_does(side, divisor, whole, extra):
    """Floor and ceiling of ``length * (side / divisor)``, above all where the true product is whole."""
    unit = divisor // math.gcd(side, divisor)
    length = max(1, whole * unit // (unit * (side // math.gcd(side, divisor)) or 1) * unit + extra)
    product = length * (side / divisor)
    quotient, rest = divmod(length * side, divisor)
    if quotient > 1008:
        return
    slack = SLACK[sorted({s for pair in GRID_PINPOINTS for s in pair}).index(side), divisor]
    least, most = (table[quotient] for table in STEPS)
    assert math.floor(product) == quotient - (rest == 0 and slack < least)
    assert math.ceil(product) == quotient + (rest != 0 or slack > most)
