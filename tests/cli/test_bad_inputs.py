"""Bad pictures, records, tables and bundles through the command: one sentence, nothing written."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from pulse_edge.samples import SAMPLES


@pytest.fixture
def picture(tmp_path, page):
    """Make a bad picture by its name."""

    def make(kind: str):
        path = tmp_path / f"{kind}.png"
        if kind == "truncated":
            path.write_bytes(page.read_bytes()[: page.stat().st_size // 2])
        elif kind == "no-picture":
            path.write_text("Dear doctor,\n" * 50)
        elif kind == "empty":
            path.touch()
        elif kind == "1x1":
            Image.new("RGB", (1, 1)).save(path)
        elif kind == "20000x20000":
            Image.new("1", (20_000, 20_000)).save(path)
        elif kind == "animated":
            path = path.with_suffix(".gif")
            frames = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")]
            frames[0].save(path, save_all=True, append_images=frames[1:])
        elif kind == "folder":
            path.mkdir()
        return path

    return make


@pytest.mark.parametrize(
    ("kind", "what", "next_step"),
    [
        ("missing", "There is no picture", "Check the path"),
        ("truncated", "damaged or cut short", "again"),
        ("no-picture", "is not a picture", "Use PNG"),
        ("empty", "0 bytes", "again"),
        ("1x1", "1 x 1 pixels", "again"),
        ("20000x20000", "more than 100 megapixels", "Scale it down"),
        ("animated", "2 frames", "Save the one"),
        ("folder", "is a folder", "Name one picture"),
    ],
)
def test_bad_pictures(kind, what, next_step, picture, pulse, small_bundle) -> None:
    path = picture(kind)
    sentence = pulse("run", small_bundle, "--image", path).refused()
    assert str(path) in sentence
    assert what in sentence
    assert next_step in sentence


def labels(pulse, bundle, path) -> dict[str, float]:
    done = pulse("run", bundle, "--image", path, "--labels", "--json")
    assert (done.code, done.err) == (0, "")
    return done.json["labels"]


def test_sixteen_bits_are_read_as_eight(pulse, small_bundle, page, tmp_path) -> None:
    grey = np.asarray(Image.open(page).convert("L"))
    Image.fromarray(grey).save(tmp_path / "8.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "16.png")
    assert labels(pulse, small_bundle, tmp_path / "16.png") == labels(pulse, small_bundle, tmp_path / "8.png")


def test_cmyk_is_read_as_rgb(pulse, small_bundle, page, tmp_path) -> None:
    Image.open(page).convert("CMYK").save(tmp_path / "cmyk.tiff")
    Image.open(page).convert("CMYK").convert("RGB").save(tmp_path / "rgb.png")
    assert labels(pulse, small_bundle, tmp_path / "cmyk.tiff") == labels(
        pulse, small_bundle, tmp_path / "rgb.png"
    )


@pytest.mark.parametrize(("orientation", "turn"), [(3, 180), (6, 90), (8, 270)])
def test_a_photo_turned_by_exif_is_the_upright_page(
    orientation, turn, pulse, small_bundle, page, tmp_path
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.open(page).rotate(turn, expand=True).save(tmp_path / "turned.png", exif=exif)
    upright = labels(pulse, small_bundle, page)
    assert labels(pulse, small_bundle, tmp_path / "turned.png") == upright
    Image.open(page).rotate(turn, expand=True).save(tmp_path / "plain.png")
    assert labels(pulse, small_bundle, tmp_path / "plain.png") != upright


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (lambda text: "\x00\xff garbage", "damaged"),
        (lambda text: text.replace(" 200 2000", " 2x0 2000", 1), "damaged"),
        (lambda text: text[: len(text) // 2], ""),
        (lambda text: "", "damaged"),
        (lambda text: text.replace(".dat", ".gone"), "names a signal file that is not there"),
    ],
    ids=["garbage", "rate", "cut", "empty", "no signal file"],
)
def test_a_damaged_header(damage, what, pulse, small_bundle, tmp_path) -> None:
    for end in ("hea", "dat"):
        shutil.copy(SAMPLES / f"00057.{end}", tmp_path)
    header = tmp_path / "00057.hea"
    sound = header.read_text()
    header.write_text(damage(sound), encoding="latin-1")
    assert header.read_text(encoding="latin-1") != sound
    sentence = pulse("run", small_bundle, "--record", tmp_path / "00057").refused()
    assert "00057" in sentence
    assert what in sentence


@pytest.mark.parametrize("name", ["none", "", ".", "/"])
def test_a_missing_record(name, pulse, small_bundle, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "no header" in pulse("run", small_bundle, "--record", name).refused()


def test_a_bundle_with_one_flipped_byte(pulse, own_bundle, page) -> None:
    for name in ("decoder.onnx", "tokenizer.model"):
        data = bytearray((own_bundle / name).read_bytes())
        data[len(data) // 3] ^= 4
        (own_bundle / name).write_bytes(data)
        sentence = pulse("run", own_bundle, "--image", page).refused()
        assert "is not sound" in sentence
        assert "copy the bundle again" in sentence


def test_a_bundle_without_one_of_its_files(pulse, own_bundle, page) -> None:
    (own_bundle / "vision.onnx").unlink()
    assert "vision.onnx is missing" in pulse("run", own_bundle, "--image", page).refused()


def test_a_bundle_of_a_newer_schema(pulse, own_bundle, page) -> None:
    path = own_bundle / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema": 99}))
    sentence = pulse("run", own_bundle, "--image", page).refused()
    assert "schema 99" in sentence
    assert "pip install --upgrade pulse-edge" in sentence
    assert "schema 99" in pulse("verify", own_bundle, "--json").json["problems"][0]


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (None, "There is no"),
        (b"", "lacks the column"),
        (b"record,age\nx,3\n", "lacks the column superclass"),
        (b"record,superclass\n", "no rows"),
        (b"record,superclass\n\xff\xfe\x00,MI\n", "UTF-8"),
        (b'record,superclass\n"x' + b"y" * 200_000 + b'",MI\n', "cannot be read as CSV"),
        (b"record,superclass\ngone,MI\n", "record cannot be read"),
        (b"record,superclass\ngone,OTHER\n", "no superclass"),
    ],
    ids=["missing", "empty", "column", "rows", "encoding", "field", "records", "labels"],
)
def test_a_labels_csv_that_cannot_be_used(content, what, pulse, small_bundle, tmp_path) -> None:
    path = tmp_path / "labels.csv"
    if content is not None:
        path.write_bytes(content)
    sentence = pulse("eval", small_bundle, "--records", path).refused()
    assert str(path) in sentence
    assert what in sentence


@pytest.mark.parametrize(
    ("option", "value", "what"),
    [
        ("--split", "tset", "Did you mean 'test'?"),
        ("--layout", "3x4+2", "Did you mean '3x4+1'?"),
        ("--limit", "0", "at least 1"),
        ("--records", "{folder}", "There is no"),
    ],
)
def test_eval_options(option, value, what, pulse, small_bundle, records) -> None:
    value = value.format(folder=records.parent)
    assert what in pulse("eval", small_bundle, "--records", records, option, value).refused()
