"""Pictures that people hand over: the usable ones are opened as they look, the others named in a sentence."""

from __future__ import annotations

import io
import struct
import sys
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from pulse_edge.errors import ImageError
from pulse_edge.image_io import MAX_PIXELS, MIN_SIDE, open_image, open_reduced

ORIENTATION = 0x0112


def page(width=64, height=40):
    """A picture whose corners differ, so that turning it shows."""
    y, x = np.mgrid[:height, :width]
    rgb = np.stack([x * 255 // (width - 1), y * 255 // (height - 1), np.full_like(x, 60)], axis=2)
    return Image.fromarray(rgb.astype(np.uint8))


def save(folder, image, name="page.png", **more):
    image.save(folder / name, **more)
    return folder / name


def png(width, height, depth=8, colour=0, data=b""):
    """A PNG written by hand: any size in its header, few bytes of content."""

    def chunk(kind, content):
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(data))
        + chunk(b"IEND", b"")
    )


# --- what can be used ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["p.png", "p.bmp", "p.tiff", "p.webp", "p.gif", "p.ppm", "p.jpg", "p.jp2"])
@pytest.mark.parametrize("upright", [False, True])
def test_usual_formats(tmp_path, name, upright):
    lossless = {"lossless": True} if name.endswith("webp") else {}
    image = open_image(save(tmp_path, page(), name, **lossless), upright)
    difference = np.abs(np.asarray(image.convert("RGB")).astype(int) - np.asarray(page()))
    assert difference.mean() < (6 if name[2:] in ("jpg", "gif") else 2)
    if upright:
        assert image.mode == "RGB"


def test_the_name_does_not_decide(tmp_path):
    save(tmp_path, page(), "p.png").rename(tmp_path / "p.txt")
    np.testing.assert_array_equal(np.asarray(open_image(tmp_path / "p.txt")), np.asarray(page()))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_a_photo_only_if_it_is_to_stand_upright(tmp_path, orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = save(tmp_path, page(), exif=exif)
    stored = np.asarray(page())
    undo = {  # what a viewer does for each value, by the EXIF standard
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.transpose(1, 0, 2),
        6: stored.transpose(1, 0, 2)[:, ::-1],
        7: stored[::-1, ::-1].transpose(1, 0, 2),
        8: stored.transpose(1, 0, 2)[::-1],
    }
    np.testing.assert_array_equal(np.asarray(open_image(path, upright=True)), undo[orientation])
    np.testing.assert_array_equal(np.asarray(open_image(path)), stored)


@pytest.mark.parametrize("exif", [b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"Exif\0\0junk", b"\xff" * 40])
def test_damaged_exif_turns_nothing(tmp_path, exif):
    path = save(tmp_path, page(), "p.jpg", exif=exif, quality=100, subsampling=0)
    assert open_image(path, upright=True).size == (64, 40)


@pytest.mark.parametrize("upright", [False, True])
def test_cmyk_becomes_rgb(tmp_path, upright):
    path = save(tmp_path, page().convert("CMYK"), "p.jpg", quality=100, subsampling=0)
    image = open_image(path, upright)
    assert image.mode == "RGB"
    assert np.abs(np.asarray(image).astype(int) - np.asarray(page())).mean() < 4


def test_sixteen_bit_grey_keeps_its_levels(tmp_path):
    levels = np.linspace(0, 65535, 64 * 40).reshape(40, 64).astype(np.uint16)
    path = save(tmp_path, Image.fromarray(levels))
    image = np.asarray(open_image(path, upright=True)).astype(int)
    assert image.shape == (40, 64, 3)
    assert np.abs(image[..., 0] - levels / 257).max() <= 1
    raw = open_image(path)  # as PULSE sees it
    np.testing.assert_array_equal(np.asarray(raw).astype(int), levels)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "1"])
def test_other_modes_stand_on_white(tmp_path, mode):
    picture = page().convert("RGBA")
    picture.putalpha(
        Image.fromarray(np.where(np.arange(64) < 32, 0, 255).astype(np.uint8)[None].repeat(40, 0))
    )
    path = save(tmp_path, picture.convert(mode) if mode != "P" else picture.quantize(64))
    image = np.asarray(open_image(path, upright=True))
    assert image.shape == (40, 64, 3)
    if mode in ("RGBA", "LA", "P"):
        assert (image[:, :32] == 255).all()
        assert image[:, 40:].mean() < 250


def test_a_phone_photo_with_a_second_picture_behind_it(tmp_path):
    preview = Image.new("RGB", (32, 20), "red")
    path = save(tmp_path, page(), "p.jpg", format="MPO", save_all=True, append_images=[preview], quality=100)
    with Image.open(path) as image:
        assert (image.format, image.n_frames) == ("MPO", 2)
    assert np.abs(np.asarray(open_image(path)).astype(int) - np.asarray(page())).mean() < 6


@pytest.mark.parametrize(("width", "height"), [(MIN_SIDE, MIN_SIDE), (MIN_SIDE, 500)])
def test_the_smallest(tmp_path, width, height):
    assert open_image(save(tmp_path, page(width, height))).size == (width, height)


# --- what cannot --------------------------------------------------------------------------------


def refused(path, message):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # and none is turned into an ImageError: the message tells
        with pytest.raises(ImageError, match=message) as caught:
            open_image(path)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_missing(tmp_path):
    refused(tmp_path / "no.png", r"There is no picture .*no\.png\. Check the path")


@pytest.mark.parametrize("name", ["n" * 300, "a\0b"])
def test_impossible_names(tmp_path, name):
    refused(tmp_path / name, "There is no picture")


def test_a_folder(tmp_path):
    refused(tmp_path, "is a folder")


def test_empty(tmp_path):
    (tmp_path / "e.png").touch()
    refused(tmp_path / "e.png", "empty")


@pytest.mark.parametrize(
    "content", [b"x", b"not a picture " * 50, b"%PDF-1.4\n1 0 obj", b"\0" * 1000, b"\x89PNG\r\n"]
)
def test_no_picture(tmp_path, content):
    (tmp_path / "p.png").write_bytes(content)
    refused(tmp_path / "p.png", "is not a picture that can be read. Use PNG")


HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100)


@pytest.mark.parametrize("name", ["photo.HEIC", "photo.jpg"])
def test_heic_without_a_codec(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (tmp_path / name).write_bytes(HEIC)
    refused(tmp_path / name, r'pip install "pulse-edge\[heic\]", or export the photo as JPEG')


def test_heic_with_the_codec(tmp_path):
    heif = pytest.importorskip("pillow_heif", reason='needs pip install "pulse-edge[heic]"')
    try:
        heif.from_pillow(page(640, 400)).save(tmp_path / "photo.heic", quality=95)
    except RuntimeError:
        pytest.skip("this build of the codec writes no HEIC")
    difference = np.abs(np.asarray(open_image(tmp_path / "photo.heic")).astype(int) - page(640, 400))
    assert difference.mean() < 4
    (tmp_path / "cut.heic").write_bytes((tmp_path / "photo.heic").read_bytes()[:700])
    refused(tmp_path / "cut.heic", "damaged or cut short|not a picture")


@pytest.mark.parametrize("name", ["p.png", "p.jpg", "p.tiff", "p.webp", "p.gif", "p.bmp"])
@pytest.mark.parametrize("kept", [0.3, 0.6, 0.9])
def test_truncated(tmp_path, name, kept):
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    path = save(tmp_path, Image.fromarray(noise), name)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    refused(path, "damaged or cut short|not a picture")


def test_truncation_is_never_tolerated(tmp_path, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    refused(save(tmp_path, page()), "LOAD_TRUNCATED_IMAGES")


@pytest.mark.parametrize(("width", "height"), [(1, 1), (15, 400), (400, 15)])
def test_too_small(tmp_path, width, height):
    refused(save(tmp_path, Image.new("RGB", (width, height))), f"{width} x {height} pixels")


@pytest.mark.parametrize(
    ("width", "height"), [(20_000, 20_000), (12_000, 12_000), (10_001, 10_000), (2**31 - 1, 16)]
)
def test_too_large_is_refused_before_decoding(tmp_path, monkeypatch, width, height):
    """The file is some hundred bytes; decoding it would fail, or fill the memory."""

    def decoded(*_):
        pytest.fail("the picture was decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", decoded)
    (tmp_path / "p.png").write_bytes(png(width, height))
    refused(tmp_path / "p.png", f"more than {MAX_PIXELS // 10**6} megapixels. Scale it down")


@pytest.mark.parametrize("name", ["p.gif", "p.png", "p.webp", "p.tiff"])
def test_several_frames(tmp_path, name):
    path = save(tmp_path, page(), name, save_all=True, append_images=[page().rotate(180)])
    refused(path, "has 2 frames or pages. Save the one with the ECG")


@pytest.mark.parametrize("name", ["p.eps", "p.ico", "p.pdf"])
def test_other_kinds_of_file(tmp_path, name):
    refused(save(tmp_path, page(), name), r"Use PNG, JPEG, TIFF or WebP")


def test_no_file_stays_open(tmp_path):
    path = save(tmp_path, page())
    image = open_image(path)
    assert getattr(image, "fp", None) is None
    path.unlink()
    np.testing.assert_array_equal(np.asarray(image), np.asarray(page()))


# --- reduced ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["p.jpg", "p.png", "p.tiff"])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_a_large_picture_is_opened_small_and_upright(tmp_path, name, orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = save(tmp_path, page(900, 600), name, exif=exif)
    whole = open_image(path, upright=True)
    image, size = open_reduced(path, 300)
    assert size == whole.size
    assert image.mode == "RGB"
    assert max(image.size) == 300
    expected = np.asarray(whole.resize(image.size, Image.Resampling.BOX)).astype(int)
    assert np.abs(np.asarray(image) - expected).mean() < 4


def test_a_picture_within_the_bound_stays_as_it_is(tmp_path):
    path = save(tmp_path, page())
    image, size = open_reduced(path, 64)
    assert size == image.size == (64, 40)
    np.testing.assert_array_equal(np.asarray(image), np.asarray(page()))


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "I;16", "CMYK"])
def test_every_mode_is_reduced(tmp_path, mode):
    levels = np.linspace(0, 65535, 900 * 600).reshape(600, 900).astype(np.uint16)
    picture = Image.fromarray(levels) if mode == "I;16" else page(900, 600).convert(mode)
    path = save(tmp_path, picture, "p.tiff")
    image, size = open_reduced(path, 300)
    assert (image.mode, size) == ("RGB", (900, 600))
    expected = np.asarray(open_image(path, upright=True).resize(image.size, Image.Resampling.BOX)).astype(int)
    assert np.abs(np.asarray(image) - expected).mean() < 4


def test_a_jpeg_above_the_bound_of_the_others_is_decoded_in_part(tmp_path, monkeypatch):
    monkeypatch.setattr("pulse_edge.image_io.MAX_PIXELS", 100_000)
    image, size = open_reduced(save(tmp_path, page(900, 600), "p.jpg"), 300)
    assert (image.size, size) == ((300, 200), (900, 600))
    with pytest.raises(ImageError, match="megapixels"):
        open_reduced(save(tmp_path, page(900, 600), "p.png"), 300)


# --- damaged bytes ------------------------------------------------------------------------------


def sound():
    """Small real files of the usual kinds."""
    files = []
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    for kind in ("PNG", "JPEG", "TIFF", "WEBP", "GIF", "BMP"):
        stream = io.BytesIO()
        page().save(stream, kind, **({"exif": exif} if kind in ("PNG", "JPEG", "WEBP", "TIFF") else {}))
        files.append(stream.getvalue())
    return files


@settings(max_examples=400, deadline=3000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.sampled_from(sound()),
    changes=st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=4)), min_size=1, max_size=5),
    cut=st.one_of(st.just(1.0), st.floats(0, 1)),
)
@example(data=sound()[0], changes=[(0.1, b"\xff\xff\xff\xff")], cut=1.0)
def test_damaged_bytes_are_read_or_refused(tmp_path, data, changes, cut):
    damaged = bytearray(data)
    for place, piece in changes:
        at = int(place * (len(damaged) - 1))
        damaged[at : at + len(piece)] = piece
    path = tmp_path / "p"
    path.write_bytes(damaged[: int(cut * len(damaged))])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for upright in (False, True):
            try:
                image = open_image(path, upright)
            except ImageError:
                continue
            assert np.asarray(image.convert("RGB")).ndim == 3


@settings(max_examples=100, deadline=3000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    head=st.sampled_from([data[:12] for data in sound()] + [b"", b"P6 ", b"II*\0", b"BM"]),
    rest=st.binary(max_size=200),
)
def test_any_bytes(tmp_path, head, rest):
    (tmp_path / "p").write_bytes(head + rest)
    with pytest.raises(ImageError):
        open_image(tmp_path / "p", upright=True)
