"""A nurse's way through the page, at the real service: photo, result, follow-up, history, refusal."""

from __future__ import annotations

import base64
import io
import re
import zipfile

import cv2
import numpy as np
import pytest
from PIL import Image

from pulse_edge.runtimes.capture.take import take_file

from .conftest import READING_MS, STUDY, expect, read, record


def test_photo_result_follow_up_history(visit, browser) -> None:
    page = visit(browser)
    page.fill("#reference", "cart 7 / 0815")
    expect(page.locator("#guidance")).to_have_text(re.compile("Ready|Taken|Hold still|Point"))
    page.wait_for_url(STUDY, timeout=READING_MS)  # it was taken by itself
    expect(page.locator("#study-facts")).to_contain_text("cart 7 / 0815")
    assert page.locator("#picture").evaluate("image => image.complete && image.naturalWidth") > 800
    rows = page.locator("#findings li")
    assert rows.count() == 5
    for row in rows.all():
        assert row.locator(".answer").inner_text() in ("Yes", "No", "Uncertain")
        assert re.fullmatch(r"[<>]?\s?\d+\s%", row.locator(".percent").inner_text())
    report = page.locator("#answers article").first
    assert len(report.locator(".text").inner_text()) > 10

    page.fill("#question", "What is the rhythm?")
    page.keyboard.press("Enter")
    answer = page.locator("#answers article").nth(1)
    expect(answer.locator("h2")).to_have_text("What is the rhythm?")
    expect(page.locator("#answers")).to_have_attribute("aria-busy", "false", timeout=READING_MS)
    assert answer.locator(".text").inner_text()
    page.locator("#suggestions button").first.click()
    expect(page.locator("#answers article")).to_have_count(3)
    expect(page.locator("#answers")).to_have_attribute("aria-busy", "false", timeout=READING_MS)
    texts = page.locator("#answers .text").all_inner_texts()

    page.click("#nav-history")
    rows = page.locator("#studies li")
    expect(rows.filter(has_text="cart 7 / 0815")).to_have_count(1)
    rows.filter(has_text="cart 7 / 0815").get_by_role("link").click()
    expect(page.locator("#answers article")).to_have_count(3)
    assert page.locator("#answers .text").all_inner_texts() == texts
    page.reload()  # an address of its own: it is there again
    expect(page.locator("#answers article")).to_have_count(3)

    page.click("#nav-history")
    row = page.locator("#studies li").filter(has_text="cart 7 / 0815")
    row.get_by_role("button").click()
    page.keyboard.press("Escape")
    expect(row).to_have_count(1)
    row.get_by_role("button").click()
    page.get_by_role("button", name="Delete for good").click()
    expect(row).to_have_count(0)
    page.reload()
    expect(page.locator("#history-state")).not_to_have_text("Loading…")
    expect(row).to_have_count(0)


def test_the_result_is_what_the_service_says(page, photo_file, tmp_path) -> None:
    read(page, photo_file)
    study = page.url.rpartition("/")[2]
    told = page.evaluate("id => fetch(`/v1/studies/${id}`).then(answer => answer.json())", study)
    shown = page.locator("#findings li")
    for row, finding in zip(shown.all(), told["findings"].values(), strict=True):
        assert row.locator(".phrase").inner_text().lower() == finding["phrase"].lower()
        assert row.locator(".answer").inner_text().lower() == finding["answer"]
        percent = 100 * finding["probability"]
        figure = int(re.sub(r"\D", "", row.locator(".percent").inner_text()))
        assert abs(figure - percent) <= 1
        fill, bar = (row.locator(name).bounding_box()["width"] for name in (".fill", ".bar"))
        assert fill / bar == pytest.approx(finding["probability"], abs=0.03)
    assert page.locator("#answers .text").inner_text() == told["answers"][0]["text"]
    # The page on the screen is the one that capture makes of the file.
    data = page.locator("#picture").evaluate(
        """(image) => {
            const canvas = document.createElement("canvas");
            [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
            canvas.getContext("2d").drawImage(image, 0, 0);
            return canvas.toDataURL("image/png").split(",")[1];
        }"""
    )
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))
    assert np.array_equal(image, take_file(photo_file).found.page)
    with page.expect_download() as saved:
        page.click("#save")
    saved.value.save_as(tmp_path / "study.zip")
    assert zipfile.ZipFile(tmp_path / "study.zip").testzip() is None


def test_the_report_comes_piece_by_piece(page, photo_file) -> None:
    page.evaluate(
        """() => {
            const at = (id) => document.getElementById(id);
            const look = () => [
                at("progress").hidden ? "" : at("progress-text").textContent,
                document.querySelectorAll("#findings li").length,
                document.querySelector("#answers .text")?.textContent.length ?? 0,
            ];
            window.seen = [];
            const every = { subtree: true, childList: true, characterData: true };
            new MutationObserver(() => window.seen.push(look())).observe(at("view-study"), every);
        }"""
    )
    read(page, photo_file)
    seen = page.evaluate("() => window.seen")
    assert len({length for _, _, length in seen}) > 5
    progress = list(dict.fromkeys(text for text, _, _ in seen if text))
    assert progress == [
        "Checking the picture…", "The page is flat. Looking for findings…", "Writing the report…",
    ]  # fmt: skip
    assert next(count for _, count, length in seen if length) == 5  # findings come before the report


def test_a_picture_is_dropped(page, photo_file) -> None:
    data = base64.b64encode(photo_file.read_bytes()).decode()
    drop = """([data, name, type]) => {
        const transfer = new DataTransfer();
        const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
        transfer.items.add(new File([bytes], name, { type }));
        for (const event of ["dragover", "drop"]) {
            document.getElementById("drop").dispatchEvent(
                new DragEvent(event, { bubbles: true, cancelable: true, dataTransfer: transfer }));
        }
    }"""
    page.evaluate(drop, [data, "notes.txt", "text/plain"])
    expect(page.locator("#guidance")).to_have_text("That is not a picture. Choose a photo or scan of an ECG.")
    page.evaluate(drop, [data, "photo.jpg", "image/jpeg"])
    page.wait_for_url(STUDY, timeout=READING_MS)


def test_a_bad_photo_is_refused_with_reasons(page, cut_file) -> None:
    page.expected.append("422")
    page.set_input_files("#file", cut_file)
    expect(page.locator("#view-refused h1")).to_be_visible(timeout=READING_MS)
    reasons = page.locator("#refused-reasons li").all_inner_texts()
    assert reasons == list(take_file(cut_file).verdict.reasons)
    assert any("cut off" in reason for reason in reasons)
    assert page.locator("#refused-photo").evaluate("image => image.naturalWidth") == 600
    page.click("#nav-history")  # nothing of it was kept
    expect(page.locator("#history-state")).not_to_have_text("Loading…")
    before = page.locator("#studies li").count()
    page.go_back()
    expect(page.locator("#view-refused h1")).to_be_visible()
    page.click("#refused-accept")
    page.wait_for_url(STUDY, timeout=READING_MS)
    expect(page.locator("#quality-title")).to_have_text(
        "Refused, and read all the same: nothing here may be trusted"
    )
    assert page.locator("#quality-reasons li").all_inner_texts() == reasons
    page.click("#nav-history")
    expect(page.locator("#studies li")).to_have_count(before + 1)
    warning = page.locator("#studies .refused")  # in the list too, beside what was found
    expect(warning).to_have_count(1)
    expect(page.locator("#studies li").first.locator(".refused")).to_have_text(
        "Refused picture: nothing here may be trusted"
    )
    page.click("#nav-take")
    expect(page.locator("#shutter")).to_be_enabled()


def test_what_is_no_ecg_cannot_be_accepted(page, tmp_path) -> None:
    page.expected.append("422")
    Image.new("RGB", (1200, 900), (180, 190, 180)).save(tmp_path / "wall.png")
    page.set_input_files("#file", tmp_path / "wall.png")
    expect(page.locator("#refused-reasons li")).not_to_have_count(0, timeout=READING_MS)
    expect(page.locator("#refused-accept")).to_be_hidden()
    page.click("#refused-again")
    expect(page.locator("#shutter")).to_be_enabled()


def test_the_reference_stays_while_one_ecg_is_photographed_again_and_no_longer(
    page, cut_file, photo_file
) -> None:
    page.expected.append("422")
    page.fill("#reference", "bed 12")
    page.set_input_files("#file", cut_file)
    page.click("#refused-again", timeout=READING_MS)
    expect(page.locator("#reference")).to_have_value("bed 12")
    read(page, photo_file)
    expect(page.locator("#study-facts")).to_contain_text("reference bed 12")
    page.click("#nav-take")
    expect(page.locator("#reference")).to_have_value("")  # another patient's ECG


def test_a_blurred_camera_is_not_taken_by_itself(visit, launch, good, tmp_path) -> None:
    blurred = cv2.GaussianBlur(good, (0, 0), 5.0)
    page = visit(launch(record(tmp_path / "blurred.mjpeg", blurred)))
    page.expected.append("422")
    expect(page.locator("#guidance")).to_have_text(re.compile("focusing|Point the camera at the ECG.$"))
    page.wait_for_timeout(1500)
    expect(page.locator("#view-take")).to_be_visible()
    page.click("#shutter")  # the nurse may still
    expect(page.locator("#refused-reasons li")).not_to_have_count(0, timeout=READING_MS)
