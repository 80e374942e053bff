"""Keyboard, touch, screen readers, contrast, two metres' distance, paper."""

from __future__ import annotations

import math
import subprocess
from shutil import which

import pytest

from .conftest import expect, read

CART = {"width": 1920, "height": 1080}  # a 15.6 inch screen: 344 mm wide
CART_MM = 344.0
PHONE = {"width": 390, "height": 844}
TOUCH = "button, a, input:not([type=file]), select, label.check, [tabindex='0']"


REFUSED = {
    "code": "photo_refused", "message": "Leads V4, V5 and V6 are cut off.", "acceptable": True,
    "quality": {"grade": "refuse", "reasons": ["Leads V4, V5 and V6 are cut off at the right edge."]},
}  # fmt: skip


@pytest.fixture
def views(visit, browser, study, photo_file):
    """Walk through the views: ``views(check, **options)`` calls ``check(page, name)`` in each."""

    def walk(check, **options):
        page = visit(browser, **options)
        page.expected.append("422")
        page.route("**/v1/ecg", lambda route: route.fulfill(status=422, json={"error": REFUSED}))
        page.uncheck("#auto")
        expect(page.locator("#shutter")).to_be_enabled()
        check(page, "take")
        page.set_input_files("#file", photo_file)
        expect(page.locator("#view-refused h1")).to_be_visible()
        check(page, "refused")
        page.goto(f"{page.url.partition('#')[0]}#/study/{study['id']}")
        expect(page.locator("#swap")).to_be_visible()
        expect(page.locator("#progress")).to_be_hidden()
        check(page, "study")
        page.click("#nav-history")
        expect(page.locator("#studies li")).not_to_have_count(0)
        check(page, "history")
        page.locator("#studies button").first.click()
        check(page, "confirm")
        page.keyboard.press("Escape")

    return walk


@pytest.fixture
def result(visit, browser, study):
    """The page with a study open."""
    page = visit(browser, path=f"/#/study/{study['id']}", viewport=CART)
    expect(page.locator("#swap")).to_be_visible()
    return page


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(views, scheme) -> None:
    """axe-core's rules of WCAG 2.2 A and AA; the contrast of every text among them."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    rules = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}
    found = {}

    def check(page, name):
        result = axe.run(page, options=rules).response
        assert any(rule["id"] == "color-contrast" for rule in result["passes"])
        for rule in result["violations"]:
            found[name, rule["id"]] = [node["html"][:120] for node in rule["nodes"]]

    views(check, color_scheme=scheme, bypass_csp=True)  # for axe's own code
    assert found == {}


@pytest.mark.parametrize("viewport", [CART, PHONE], ids=["cart", "phone"])
def test_everything_to_touch_is_48_pixels_or_more(views, viewport) -> None:
    small = []

    def check(page, name):
        for node in page.locator(TOUCH).all():
            box = node.bounding_box() if node.is_visible() else None
            inside = box and not node.evaluate("node => node.matches('label.check input')")
            if inside and min(box["width"], box["height"]) < 48:
                small.append((name, node.evaluate("node => node.outerHTML")[:80], box))
        assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth"), (
            f"{name} is too wide"
        )

    views(check, viewport=viewport)
    assert small == []


def test_the_keyboard_reaches_everything_and_the_focus_is_seen(views) -> None:
    def check(page, name):
        if name == "confirm":
            return
        wanted = {
            node.evaluate("node => node.id || node.textContent")
            for node in page.locator(TOUCH).all()
            if node.is_visible() and node.is_enabled() and node.evaluate("node => node.tagName !== 'LABEL'")
        }
        reached = set()
        page.locator("h1:visible").evaluate("node => node.focus()")
        for _ in range(3 * len(wanted) + 20):
            page.keyboard.press("Tab")
            outline = page.evaluate(
                """() => {
                    const node = document.activeElement;
                    if (node === document.body) return null;
                    const style = getComputedStyle(node);
                    return [node.id || node.textContent, style.outlineStyle, parseFloat(style.outlineWidth)];
                }"""
            )
            if outline is None:
                continue
            label, style, width = outline
            reached.add(label)
            assert (style, width >= 3) == ("solid", True), f"{name}: the focus on {label} is not seen"
        assert wanted <= reached, name

    views(check)


def test_a_whole_reading_without_a_pointer(page, photo_file) -> None:
    expect(page.locator("#shutter")).to_be_enabled()
    with page.expect_file_chooser() as chooser:
        page.locator("#pick").press("Enter")
    chooser.value.set_files(photo_file)
    expect(page.locator("#ask")).to_be_visible(timeout=60_000)
    page.locator("#viewer").focus()
    page.keyboard.press("+")
    expect(page.locator("#viewer")).to_have_attribute("data-zoom", "130 %")
    page.keyboard.press("Control+Home")
    page.locator("#nav-history").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#view-history h1")).to_be_focused()
    page.locator("#studies a").first.focus()
    page.keyboard.press("Enter")
    expect(page.locator("#study-title")).to_be_focused()


def test_what_happens_is_spoken(page, photo_file) -> None:
    for name in ("guidance", "announcer", "state", "progress-text", "history-state"):
        assert page.locator(f"#{name}").get_attribute("role") == "status"
    for name in ("problem", "ask-problem"):
        assert page.locator(f"#{name}").get_attribute("role") == "alert"
    read(page, photo_file)
    report = page.locator("#answers .text").inner_text()
    expect(page.locator("#announcer")).to_have_text(f"The report is complete. {report}")


def test_legible_at_two_metres(result) -> None:
    """Capitals of what is read across the room, in arc minutes; an eye with 20/20 resolves letters of 5."""
    page = result

    def minutes(selector):
        size = page.locator(selector).first.evaluate("node => parseFloat(getComputedStyle(node).fontSize)")
        capital_mm = 0.72 * size * CART_MM / CART["width"]
        return math.degrees(math.atan(capital_mm / 2000)) * 60

    assert minutes("#guidance") >= 16
    for selector in (".phrase", ".answer", ".percent", ".answer-box .text", "#study-title"):
        assert minutes(selector) >= 10, selector


def test_no_answer_is_told_by_colour_alone(result) -> None:
    colours = {
        row.evaluate("row => getComputedStyle(row.querySelector('.answer')).color")
        for row in result.locator("#findings li").all()
    }
    assert len(colours) == 1
    for row in result.locator("#findings li").all():
        assert row.locator(".answer").inner_text() in ("Yes", "No", "Uncertain")


def test_it_says_what_it_is_not_in_every_view(views) -> None:
    def check(page, name):
        notice = page.locator(".notice")
        expect(notice).to_be_in_viewport(ratio=0.9)
        assert "Research use only. Not a medical device." in notice.inner_text()

    views(check)


def test_the_print_out(page, photo_file, tmp_path) -> None:
    page.fill("#reference", "0815")
    read(page, photo_file)
    report = page.locator("#answers .text").inner_text()
    page.evaluate("() => { window.print = () => { window.printed = true; }; }")
    page.click("#print")
    assert page.evaluate("() => window.printed")
    page.emulate_media(media="print")
    for name in ("nav", "#ask", "#viewer-help", "#print", "#zoom-in"):
        expect(page.locator(name)).to_be_hidden()
    for name in ("#picture", "#findings", "#paper", ".notice"):
        expect(page.locator(name)).to_be_visible()
    page.pdf(path=tmp_path / "print.pdf")
    if which("pdftotext") is None:
        pytest.skip("what is on the paper is read with pdftotext (poppler-utils)")
    command = ["pdftotext", "-layout", tmp_path / "print.pdf", "-"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    *sheets, rest = text.split("\f")
    assert not rest
    assert all("Not a medical device" in sheet for sheet in sheets)
    words = " ".join(text.split())
    for part in (
        "reference 0815",
        " ".join(report.split()),
        "Model pulse-nano, bundle ",
        "Research use only",
    ):
        assert part in words
