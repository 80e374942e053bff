"""Which way up: pages of every layout, turned; and that no turn is preferred."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pulse_edge.ecg.paper import LAYOUTS, PaperStyle, render
from pulse_edge.ecg.record import read_record
from pulse_edge.runtimes.capture.orientation import WEIGHTS, ink, quarter_turns, score


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_pages_without_names_or_text_are_put_upright(root: Path, layout: str) -> None:
    """The traces alone must do: names are not drawn, and what stands in the margins is cut off."""
    for k, path in enumerate(sorted((root / "pulse_edge" / "assets" / "samples").glob("*.hea"))):
        style = PaperStyle(layout=layout, lead_names=False, calibration=False, dpi=152.4)
        page = render(read_record(path), style).image[: -(6 * 6)]
        turned = np.ascontiguousarray(np.rot90(page, -k))
        turns, sure = quarter_turns(turned, 6.0)
        assert (turns, path.name) == (k % 4, path.name)
        assert sure > 0.5


def test_a_turned_page_gives_the_turned_answer(root: Path) -> None:
    record = read_record(root / "pulse_edge" / "assets" / "samples" / "00452.hea")
    page = render(record, PaperStyle(dpi=152.4)).image
    found = [quarter_turns(np.ascontiguousarray(np.rot90(page, k)), 6.0) for k in range(4)]
    assert [turns for turns, _ in found] == [0, 3, 2, 1]
    assert np.ptp([sure for _, sure in found]) < 0.05


def test_the_network_agrees_with_pytorch(root: Path) -> None:
    torch = pytest.importorskip("torch")
    record = read_record(root / "pulse_edge" / "assets" / "samples" / "00452.hea")
    thumbnail = ink(render(record, PaperStyle(dpi=152.4)).image, 6.0)
    features = torch.from_numpy(thumbnail)[None, None]
    with np.load(WEIGHTS) as stored:
        count = len(stored.files) // 2
        for k in range(count):
            weight = torch.from_numpy(stored[f"weight{k}"].astype(np.float32)).permute(3, 2, 0, 1)
            bias = torch.from_numpy(stored[f"bias{k}"].astype(np.float32))
            stride = 2 if k < 4 else 1
            features = torch.nn.functional.conv2d(features, weight, bias, stride, weight.shape[-1] // 2)
            features = features.relu() if k < count - 1 else features
    assert score(thumbnail) == pytest.approx(float(features.mean()), abs=1e-4)


def test_the_weights_are_small() -> None:
    assert WEIGHTS.stat().st_size < 5e6
