"""Errors in plain words, with a way out: a full queue, a service not ready, a connection that breaks off."""

from __future__ import annotations

import json
import re

from .conftest import READING_MS, STUDY, TOKEN, expect

ECG = re.compile(r"/v1/ecg$")
FINDINGS = {"MI": {"phrase": "myocardial infarction", "probability": 0.913, "answer": "yes"}}


def events(*items):
    """Write server-sent events as the service does."""
    return "".join(f"event: {name}\ndata: {json.dumps(data)}\n\n" for name, data in items)


def fail(status, code, message="", **headers):
    return {
        "status": status,
        "headers": {"Content-Type": "application/json", **headers},
        "body": json.dumps({"error": {"code": code, "message": message}}),
    }


def test_a_full_queue_is_waited_for(page, photo_file) -> None:
    page.expected.append("429")
    answers = [fail(429, "busy", "Other ECGs are being read.", **{"Retry-After": "2"})]
    page.route(ECG, lambda route: route.fulfill(**answers.pop()) if answers else route.continue_())
    page.set_input_files("#file", photo_file)
    expect(page.locator("#progress-text")).to_have_text("Another ECG is being read. Trying again in 2 s…")
    expect(page.locator("#progress-text")).to_have_text("Another ECG is being read. Trying again in 1 s…")
    page.wait_for_url(STUDY, timeout=READING_MS)


def test_waiting_can_be_cut_short_or_given_up(page, photo_file) -> None:
    page.expected.append("429")
    asked = []

    def full(route):
        asked.append(route)
        route.fulfill(**fail(429, "busy", "Other ECGs are being read.", **{"Retry-After": "100"}))

    page.route(ECG, full)
    page.set_input_files("#file", photo_file)
    expect(page.locator("#progress-text")).to_contain_text("100 s")
    page.click("#now")
    expect(page.locator("#progress-text")).to_contain_text("s…")
    page.wait_for_timeout(200)
    assert len(asked) == 2
    page.click("#cancel")
    expect(page.locator("#problem-title")).to_have_text("Stopped")
    expect(page.locator("#progress")).to_be_hidden()


def test_a_service_that_is_not_ready_says_why(page, photo_file) -> None:
    page.expected.append("503")
    message = "The model is being loaded. This takes up to a minute."
    answers = [fail(503, "loading", message)]
    page.route(ECG, lambda route: route.fulfill(**answers.pop()) if answers else route.continue_())
    page.set_input_files("#file", photo_file)
    expect(page.locator("#problem-title")).to_have_text("The reader is not ready")
    expect(page.locator("#problem-text")).to_have_text(message)
    expect(page.locator("#retry")).to_be_focused()
    page.keyboard.press("Enter")
    page.wait_for_url(STUDY, timeout=READING_MS)
    expect(page.locator("#problem")).to_be_hidden()


def test_the_state_stands_in_the_header(page) -> None:
    page.expected.append("503")
    page.route(
        "**/healthz",
        lambda route: route.fulfill(status=503, json={"message": "The disk is full.", "ready": False}),
    )
    page.evaluate("() => window.dispatchEvent(new Event('online'))")
    expect(page.locator("#state")).to_have_text("Not ready: The disk is full.")
    page.unroute("**/healthz")
    page.evaluate("() => window.dispatchEvent(new Event('online'))")
    expect(page.locator("#state")).to_have_text("Ready")


def test_a_clock_that_is_behind_is_said_although_ecgs_are_read(page) -> None:
    message = "The clock of this cart runs behind its own records."
    report = {"state": "clock_went_back", "message": message, "ready": True, "stores": True}
    page.route("**/healthz", lambda route: route.fulfill(status=200, json=report))
    page.evaluate("() => window.dispatchEvent(new Event('online'))")
    expect(page.locator("#state")).to_have_text(f"Ready, but: {message}")


def test_an_answer_that_was_cut_off_does_not_pass_for_a_whole_one(visit, browser, study) -> None:
    cut = "Cut off here: the model had more to say. Do not take it for the whole answer."
    answer = {"question": "Is it normal?", "text": "No evidence of", "created": study["created"]}
    kept = {**study, "answers": [{**study["answers"][0], "finish": "stop"}, {**answer, "finish": "length"}]}
    page = visit(browser, path="/#/history")
    page.route(f"**/v1/studies/{study['id']}", lambda route: route.fulfill(json=kept))
    page.goto(page.url.replace("history", f"study/{study['id']}"))
    notes = page.locator("#answers .cut")
    expect(notes).to_have_text(["", cut])
    expect(notes.first).to_be_hidden()
    bodies = [
        events(("text", {"delta": "No"}), ("done", {**answer, "finish": f})) for f in ("stop", "length")
    ]
    stream = "text/event-stream"
    page.route("**/ask", lambda route: route.fulfill(content_type=stream, body=bodies.pop()))
    for note in (cut, ""):
        page.locator("#suggestions button").first.click()
        expect(page.locator("#answers")).to_have_attribute("aria-busy", "false")
        expect(notes.last).to_have_text(note)


def test_no_connection(page, photo_file) -> None:
    page.expected += ["ERR_INTERNET_DISCONNECTED", "ERR_FAILED"]
    page.context.set_offline(True)
    expect(page.locator("#state")).to_have_text("No connection")
    page.set_input_files("#file", photo_file)
    expect(page.locator("#problem-title")).to_have_text("No connection to the cart's computer")
    page.context.set_offline(False)
    page.click("#retry")
    page.wait_for_url(STUDY, timeout=READING_MS)
    expect(page.locator("#state")).to_have_text("Ready")


def test_a_reading_that_breaks_off_is_not_taken_for_a_result(page, photo_file) -> None:
    body = events(
        ("quality", {"grade": "good", "reasons": []}), ("findings", FINDINGS), ("text", {"delta": "Sinus"})
    )
    page.route(ECG, lambda route: route.fulfill(content_type="text/event-stream", body=body))
    page.set_input_files("#file", photo_file)
    expect(page.locator("#problem-title")).to_have_text("The connection broke off")
    expect(page.locator("#ask")).to_be_hidden()
    expect(page.locator("#study-actions")).to_be_hidden()


def test_an_error_within_the_stream_is_shown(page, photo_file) -> None:
    late = {"error": {"code": "deadline", "message": "Reading took too long and was stopped. Try again."}}
    body = events(("quality", {"grade": "good", "reasons": []}), ("error", late))
    page.route(ECG, lambda route: route.fulfill(content_type="text/event-stream", body=body))
    page.set_input_files("#file", photo_file)
    expect(page.locator("#problem-text")).to_have_text("Reading took too long and was stopped. Try again.")


def test_an_answer_without_words_of_its_own_still_gets_some(page, photo_file) -> None:
    page.expected.append("500")
    page.route(ECG, lambda route: route.fulfill(status=500, body="<html>"))
    page.set_input_files("#file", photo_file)
    expect(page.locator("#problem-title")).to_have_text("Something went wrong on the cart's computer")
    expect(page.locator("#problem-text")).to_contain_text("code 500")


def test_reading_is_stopped_and_leaves_no_study(page, photo_file) -> None:
    held = []
    page.route(ECG, lambda route: held.append(route))
    page.set_input_files("#file", photo_file)
    expect(page.locator("#progress-text")).to_have_text("Checking the picture…")
    with page.expect_event("requestfailed", lambda request: "/v1/ecg" in request.url):
        page.click("#cancel")
    expect(page.locator("#problem-title")).to_have_text("Stopped")
    expect(page.locator("#study-actions")).to_be_hidden()


def test_a_question_that_fails_keeps_its_words(visit, browser, study) -> None:
    page = visit(browser, path=f"/#/study/{study['id']}")
    page.expected.append("504")
    before = len(study["answers"])
    expect(page.locator("#answers article")).to_have_count(before)
    page.route("**/ask", lambda route: route.fulfill(**fail(504, "deadline", "Reading took too long.")))
    page.fill("#question", "What is the axis?")
    page.keyboard.press("Enter")
    expect(page.locator("#ask-problem")).to_have_text("It took too long. Reading took too long.")
    assert page.input_value("#question") == "What is the axis?"
    expect(page.locator("#answers article")).to_have_count(before)
    page.unroute("**/ask")
    page.keyboard.press("Enter")
    expect(page.locator("#answers article")).to_have_count(before + 1)
    expect(page.locator("#answers")).to_have_attribute("aria-busy", "false", timeout=READING_MS)


def test_a_study_that_is_gone(visit, browser) -> None:
    page = visit(browser, path=f"/#/study/{'0' * 32}")
    page.expected.append("404")
    expect(page.locator("#problem-text")).to_have_text("This ECG is not here. It may have been deleted.")


def test_the_token_is_asked_for_once(visit, browser, serve, tmp_path) -> None:
    (tmp_path / "token").write_text(TOKEN)
    page = visit(browser, serve("--token-file", str(tmp_path / "token")), "/#/history")
    page.expected.append("401")
    expect(page.locator("#token")).to_be_visible()
    page.fill("#token-field", "wrong")
    page.keyboard.press("Enter")
    expect(page.locator("#token-text")).to_contain_text("not accepted")
    page.fill("#token-field", TOKEN)
    page.keyboard.press("Enter")
    expect(page.locator("#history-state")).to_have_text("No ECG has been read yet.")
    page.reload()
    expect(page.locator("#history-state")).to_have_text("No ECG has been read yet.")
    expect(page.locator("#token")).to_be_hidden()
