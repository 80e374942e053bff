"""What the page sends of the camera, and what it does about the advice; the service's answers are made up."""

from __future__ import annotations

import itertools
import time

import cv2
import numpy as np
import pytest

from .conftest import CAMERA, expect


def advise(page, answers, seconds=0.0):
    """Answer for /v1/guidance with ``answers(k)``; times and pictures of the requests come back."""
    seen = []

    def answer(route):
        begin = time.monotonic()
        time.sleep(seconds)
        seen.append((begin, time.monotonic(), route.request.post_data_buffer, route.request.url))
        route.fulfill(json=answers(len(seen) - 1))

    page.route("**/v1/guidance*", answer)
    return seen


def say(message, ready=False):
    return {"message": message, "ready": ready, "grade": "usable", "sharpness": 0.4, "fps_hint": 5}


def test_frames_go_one_by_one_and_four_or_five_a_second(page) -> None:
    seen = advise(page, lambda k: say(f"Advice {min(k, 12)}."))
    expect(page.locator("#guidance")).to_have_text("Advice 12.")
    for (_, end, _, _), (begin, _, _, _) in itertools.pairwise(seen):
        assert begin >= end  # never two in flight
    assert seen[10][0] - seen[0][0] >= 10 * 0.19  # no more than five a second, however slow the machine is
    frame = cv2.imdecode(np.frombuffer(seen[5][2], np.uint8), cv2.IMREAD_COLOR)
    assert (frame.shape[1], frame.shape[0]) == CAMERA
    assert len(seen[5][2]) <= 1 << 20
    assert {url.partition("?")[2] for _, _, _, url in seen[1:6]} == {seen[0][3].partition("?")[2]}


def test_slow_advice_is_waited_for(page) -> None:
    seen = advise(page, lambda k: say(f"Advice {min(k, 3)}."), seconds=0.5)
    expect(page.locator("#guidance")).to_have_text("Advice 3.")
    assert all(later[0] >= earlier[1] for earlier, later in itertools.pairwise(seen))


def test_it_is_taken_after_three_ready_frames_in_a_row(page) -> None:
    # The box is checked from the second pair on, so only a third ready frame in a row can fire.
    readiness = [False, True, True, False, True, True, True]
    seen = advise(page, lambda k: say(f"Advice {k}.", readiness[min(k, 6)]))
    page.route("**/v1/ecg", lambda route: None)  # never answered: what counts is that it is asked
    with page.expect_request("**/v1/ecg") as asked:
        page.check("#auto")
    body = asked.value.post_data_buffer
    assert b'name="image"' in body
    photo = cv2.imdecode(np.frombuffer(body[body.index(b"\xff\xd8") :], np.uint8), cv2.IMREAD_COLOR)
    assert (photo.shape[1], photo.shape[0]) == CAMERA  # in the camera's full size
    assert len(seen) >= 7


def test_ready_alone_takes_nothing_where_the_box_is_not_checked(page) -> None:
    seen = advise(page, lambda k: say("Ready: take the picture.", True))
    for _ in range(200):  # one more frame than takes it by itself; how fast they come is the machine's matter
        if len(seen) >= 5:
            break
        page.wait_for_timeout(100)
    assert len(seen) >= 5
    expect(page.locator("#view-take")).to_be_visible()
    with page.expect_request("**/v1/ecg"):
        page.locator("#shutter").press("Enter")


def test_without_advice_the_shutter_still_works(page) -> None:
    page.expected += ["503", "ERR_FAILED"]
    page.route(
        "**/v1/guidance*", lambda route: route.fulfill(status=503, json={"error": {"code": "loading"}})
    )
    expect(page.locator("#guidance")).to_contain_text("No advice right now")
    with page.expect_request("**/v1/ecg"):
        page.click("#shutter")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("NotFoundError", "No camera was found."),
        ("NotAllowedError", "The camera is not allowed."),
        ("NotReadableError", "another program may hold it"),
    ],
)
def test_a_camera_that_does_not_start_says_why(visit, browser, service, name, text) -> None:
    page = visit(browser)
    page.evaluate(
        "name => { navigator.mediaDevices.getUserMedia = () => Promise.reject(new DOMException('', name)); }",
        name,
    )
    page.click("#nav-history")
    page.click("#nav-take")
    expect(page.locator("#guidance")).to_contain_text(text)
    expect(page.locator("#shutter")).to_be_disabled()
    expect(page.locator("#camera-again")).to_be_visible()
    expect(page.locator("#pick")).to_be_enabled()


def test_the_camera_rests_while_another_view_is_open(page) -> None:
    expect(page.locator("#shutter")).to_be_enabled()
    page.click("#nav-history")
    expect(page.locator("#view-history")).to_be_visible()
    assert page.locator("#video").evaluate("video => video.srcObject") is None


def test_the_reference_does_not_go_along_with_the_next_ecg(page) -> None:
    page.fill("#reference", "0815")
    page.click("#nav-history")
    page.click("#nav-take")
    expect(page.locator("#reference")).to_have_value("")
