"""A watched folder: whole files only, each once, results whole, and bad files stop nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from PIL import Image

from pulse_edge.errors import UserError
from pulse_edge.runtimes.capture import watch as module
from pulse_edge.runtimes.capture.watch import pending, take_once, watch

LONG_AGO = 1_600_000_000


def settled(path):
    """Make a file look as if it had lain there for long."""
    os.utime(path, (LONG_AGO, LONG_AGO))
    return path


@pytest.fixture
def cart(tmp_path, plain):
    """A folder with a good page, a picture of nothing, a broken file and things that are no pictures."""
    Image.fromarray(plain[0].image).save(tmp_path / "ecg.jpg", quality=92)
    Image.fromarray(np.full((200, 300, 3), 90, np.uint8)).save(tmp_path / "wall.png")
    (tmp_path / "broken.jpg").write_bytes((tmp_path / "ecg.jpg").read_bytes()[:5000])
    (tmp_path / "notes.txt").write_text("not a picture")
    (tmp_path / ".upload.jpg").write_bytes(b"half")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "sub.jpg").mkdir()
    for path in tmp_path.iterdir():
        settled(path)
    return tmp_path


def run(folder, until):
    """Watch until so many pictures are done; return what was reported."""
    seen = []

    def report(name, result):
        seen.append((name, result))

    watch(folder, report, lambda: len(seen) >= until)
    return dict(seen)


def read(folder, name):
    return json.loads((folder / name).read_text())


def test_every_picture_is_taken_once_and_bad_ones_stop_nothing(cart):
    assert sorted(path.name for path in pending(cart)) == ["broken.jpg", "ecg.jpg", "wall.png"]
    results = run(cart, 3)
    assert {name: result["grade"] for name, result in results.items()} == {
        "ecg.jpg": "good",
        "wall.png": "refuse",
        "broken.jpg": "refuse",
    }
    assert pending(cart) == []
    good = read(cart, "ecg.jpg.capture.json")
    assert {"grade", "reasons", "px_per_mm", "rotation", "residual_mm", "timing_ms", "source"} == set(good)
    with Image.open(cart / "ecg.jpg.page.png") as page:
        assert page.size[0] > 1000
    assert len(read(cart, "ecg.jpg.grid.json")[0]) == 4
    assert "damaged or cut short" in read(cart, "broken.jpg.capture.json")["reasons"][0]
    assert not (cart / "wall.png.page.png").exists()  # refused
    assert not list(cart.glob(".*.partial"))


def test_a_file_that_still_grows_is_left_alone(cart):
    for name in ("broken.jpg", "wall.png", "ecg.jpg"):
        os.utime(cart / name)
    assert pending(cart) == []
    assert len(pending(cart, settled_s=0)) == 3
    os.utime(cart / "ecg.jpg", (time.time() + 3600,) * 2)  # a clock that runs ahead
    assert len(pending(cart, settled_s=0)) == 2


def test_a_replaced_picture_is_taken_again(cart):
    (cart / "ecg.jpg").unlink()
    (cart / "broken.jpg").unlink()
    run(cart, 1)
    assert take_once(cart / "wall.png") is None
    Image.fromarray(np.full((200, 310, 3), 90, np.uint8)).save(cart / "wall.png")
    settled(cart / "wall.png")
    assert [path.name for path in pending(cart)] == ["wall.png"]
    assert take_once(cart / "wall.png")["grade"] == "refuse"
    assert pending(cart) == []


def test_a_refused_picture_takes_the_earlier_page_away(cart):
    """Nobody may read the page of the patient before."""
    (cart / "wall.png.page.png").write_bytes(b"of somebody else")
    take_once(cart / "wall.png")
    assert not (cart / "wall.png.page.png").exists()
    (cart / "broken.jpg.page.png").write_bytes(b"of somebody else")
    take_once(cart / "broken.jpg")
    assert not (cart / "broken.jpg.page.png").exists()


def test_two_watchers_share_a_folder(cart, monkeypatch):
    """Each picture goes to one of them, whoever comes first."""
    taken = []
    real = module.take_file

    def slow(path):
        taken.append(path.name)
        time.sleep(0.05)
        return real(path)

    monkeypatch.setattr(module, "take_file", slow)
    deadline = time.time() + 60
    threads = [
        threading.Thread(
            target=watch, args=(cart, lambda *_: None, lambda: not pending(cart) or time.time() > deadline)
        )
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == ["broken.jpg", "ecg.jpg", "wall.png"]


def test_an_unexpected_failure_is_reported_with_its_picture(cart, monkeypatch):
    def fails(path):
        raise RuntimeError("no more luck")

    monkeypatch.setattr(module, "take_file", fails)
    results = run(cart, 3)
    assert results["ecg.jpg"]["reasons"] == ["Unexpected RuntimeError: no more luck"]
    assert pending(cart) == []


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="There is no folder"):
        watch(tmp_path / "no")


@pytest.mark.skipif(os.name == "nt", reason="signals of Unix")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_the_command_stops_on_a_signal_with_a_summary(cart, how):
    (cart / "ecg.jpg").unlink()
    command = [sys.executable, "-m", "pulse_edge.cli", "capture", "--watch", str(cart), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.time() + 60
        while len(list(cart.glob("*.capture.json"))) < 2 and time.time() < deadline:
            time.sleep(0.05)
        time.sleep(0.3)
        process.send_signal(how)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert json.loads(out) == {"watched": str(cart), "good": 0, "usable": 0, "refuse": 2}
    said = [json.loads(line)["guidance"] for line in err.splitlines()]
    assert sorted(text.split(":")[0] for text in said) == ["broken.jpg", "wall.png"]
