"""The frequency of a grid in windows of a picture, against gratings whose frequency is known."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from pulse_edge.runtimes.capture.frequency import SURE, WINDOW, peaks, spectra


def _waves(frequency: NDArray[np.float64], side: int = 600) -> NDArray[np.float32]:
    y, x = np.mgrid[:side, :side]
    return np.asarray(sum(np.cos(2 * np.pi * (f[0] * x + f[1] * y)) for f in frequency), np.float32)


@pytest.mark.parametrize("angle", [0.0, 0.3, -0.5, 1.2])
@pytest.mark.parametrize("spacing", [3.1, 6.7, 14.0])
def test_peaks_are_where_the_waves_are(angle, spacing):
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    true = turn / spacing
    found = spectra(_waves(true))
    around = np.broadcast_to(true * 1.03, (len(found.centre), 2, 2))
    where, weight = peaks(found, around, 0.1)
    assert (weight > SURE).all()
    np.testing.assert_allclose(where, np.broadcast_to(true, where.shape), atol=0.15 / WINDOW)


def test_what_a_window_cannot_resolve_is_left_as_it_is():
    found = spectra(_waves(np.array([[0.2, 0.0], [0.0, 0.2]])))
    beyond = np.array([[[0.499, 0.01], [0.01, 0.2]]] * len(found.centre))
    where, weight = peaks(found, beyond, 0.1)
    assert (weight[:, 0] == 0).all()
    np.testing.assert_array_equal(where[:, 0], beyond[:, 0])
    assert (weight[:, 1] > SURE).all()
    nothing, none = peaks(found, np.full((len(found.centre), 2, 2), 0.6), 0.1)
    assert not none.any()
    assert (nothing == 0.6).all()
