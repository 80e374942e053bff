"""Enlarging and moving the page: wheel, buttons, keys, drag, pinch, double tap."""

from __future__ import annotations

import re

import pytest

from .conftest import expect, make_study


@pytest.fixture(scope="module")
def viewer(browser, service, good):
    """A study in the browser; every test begins with the whole picture."""
    context = browser.new_context(viewport={"width": 1366, "height": 768}, has_touch=True)
    page = context.new_page()
    page.goto(f"{service}/#/study/{make_study(service, good)['id']}")
    expect(page.locator("#swap")).to_be_visible()
    yield page
    context.close()


@pytest.fixture
def page(viewer):
    viewer.click("#zoom-fit")
    return viewer


def place(page):
    """Scale and offset of the picture."""
    text = page.locator("#picture").evaluate("image => image.style.transform")
    x, y, scale = map(float, re.fullmatch(r"translate\((.+)px, (.+)px\) scale\((.+)\)", text).groups())
    return scale, x, y


def under(page, point):
    """What point of the whole picture lies under a point of the box, in shares of its sides."""
    box = page.locator("#viewer").bounding_box()
    scale, x, y = place(page)
    return ((point[0] - x) / scale / box["width"], (point[1] - y) / scale / box["height"])


def test_the_wheel_enlarges_what_is_under_the_pointer(page) -> None:
    box = page.locator("#viewer").bounding_box()
    point = (0.7 * box["width"], 0.3 * box["height"])
    page.mouse.move(box["x"] + point[0], box["y"] + point[1])
    before = under(page, point)
    for _ in range(4):
        page.mouse.wheel(0, -240)
    expect(page.locator("#viewer")).not_to_have_attribute("data-zoom", "100 %")
    page.wait_for_timeout(200)
    assert place(page)[0] > 1.5
    assert under(page, point) == pytest.approx(before, abs=0.01)
    for _ in range(30):
        page.mouse.wheel(0, 240)
    page.wait_for_timeout(200)
    assert place(page) == (1, 0, 0)


def test_buttons_and_keys(page) -> None:
    page.click("#zoom-in")
    assert place(page)[0] == pytest.approx(1.3)
    page.click("#zoom-out")
    assert place(page)[0] == pytest.approx(1)
    page.locator("#viewer").focus()
    for key in ("+", "=", "+"):
        page.keyboard.press(key)
    scale, x, y = place(page)
    assert scale == pytest.approx(1.3**3)
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    assert (place(page)[1] < x, place(page)[2] < y) == (True, True)
    page.keyboard.press("-")
    assert place(page)[0] == pytest.approx(1.3**2)
    page.keyboard.press("0")
    assert place(page) == (1, 0, 0)
    for _ in range(30):
        page.keyboard.press("+")
    assert place(page)[0] == 16
    page.click("#zoom-fit")
    assert place(page) == (1, 0, 0)


def test_dragging_moves_it_but_never_out_of_the_box(page) -> None:
    page.locator("#viewer").dblclick()
    scale, x, y = place(page)
    assert scale == 3
    box = page.locator("#viewer").bounding_box()
    middle = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.move(*middle)
    page.mouse.down()
    page.mouse.move(middle[0] - 50, middle[1] + 30)
    assert place(page)[1:] == pytest.approx((x - 50, y + 30))
    page.mouse.move(middle[0] + 9000, middle[1] + 9000, steps=2)
    assert place(page)[1:] == (0, 0)
    page.mouse.up()
    page.mouse.move(*middle)
    assert place(page)[1:] == (0, 0)


def test_two_fingers(page) -> None:
    box = page.locator("#viewer").bounding_box()
    touch = page.context.new_cdp_session(page)

    def fingers(kind, *points):
        down = [{"x": box["x"] + x, "y": box["y"] + y, "id": k} for k, (x, y) in enumerate(points)]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": down})

    left, right = (0.45 * box["width"], 0.5 * box["height"]), (0.55 * box["width"], 0.5 * box["height"])
    before = under(page, (0.5 * box["width"], 0.5 * box["height"]))
    fingers("touchStart", left)
    fingers("touchStart", left, right)
    for share in (0.4, 0.35, 0.3):
        fingers("touchMove", (share * box["width"], left[1]), ((1 - share) * box["width"], left[1]))
    fingers("touchEnd")
    assert place(page)[0] == pytest.approx(4, rel=0.15)
    assert under(page, (0.5 * box["width"], 0.5 * box["height"])) == pytest.approx(before, abs=0.02)


def test_photo_and_page_are_swapped(page) -> None:
    def sizes():
        return page.locator("#picture").evaluate("image => [image.naturalWidth, image.naturalHeight]")

    flat = sizes()
    page.click("#swap")
    expect(page.locator("#swap")).to_have_attribute("aria-pressed", "true")
    expect(page.locator("#picture")).to_have_attribute("alt", "The photo as it was taken")
    page.wait_for_timeout(300)
    assert sizes() == [1300, 1004]
    page.click("#swap")
    page.wait_for_timeout(300)
    assert sizes() == flat
