"""`/v1/ecg` and the history, with a bundle that was exported for real."""

from __future__ import annotations

import hashlib
import io
import json
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from pulse_edge.ecg.instruct import REPORT_QUESTION
from pulse_edge.errors import BundleError, PulseEdgeError
from pulse_edge.runtimes.capture.take import take
from pulse_edge.runtimes.load import load
from pulse_edge.runtimes.onnx import OnnxBackend
from pulse_edge.runtimes.serve.app import create_app
from pulse_edge.runtimes.serve.audit import check
from pulse_edge.runtimes.serve.model import Model
from pulse_edge.runtimes.serve.service import Service
from pulse_edge.runtimes.serve.settings import Settings

from .conftest import client_of, events

EVENTS = {"accept": "text/event-stream"}


def send(client: TestClient, image: bytes, headers: dict[str, str] | None = None, **fields: str) -> Any:
    return client.post("/v1/ecg", files={"image": ("a.png", image)}, data=fields, headers=headers)


@pytest.fixture
def noise() -> bytes:
    """A picture of nothing."""
    stream = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (300, 400, 3), np.uint8)
    Image.fromarray(pixels).save(stream, "JPEG")
    return stream.getvalue()


def test_a_photo_becomes_a_study_with_what_the_model_says_of_the_flat_page(
    real: TestClient, small_bundle: Path, page_file: Path
) -> None:
    photo = page_file.read_bytes()
    answer = send(real, photo, reference="bed 12")
    assert answer.status_code == 200
    study = answer.json()
    page = take(np.asarray(Image.open(page_file).convert("RGB"))).found.page
    session = load(small_bundle, threads=1)
    assert study["answers"][0]["text"] == session.ask(page, REPORT_QUESTION).strip()
    assert study["answers"][0]["question"] == REPORT_QUESTION
    labels = {name: finding["probability"] for name, finding in study["findings"].items()}
    assert labels == pytest.approx(session.label(page), abs=1e-6)
    assert study["reference"] == "bed 12"
    assert study["quality"]["grade"] == "good"
    manifest = (small_bundle / "manifest.json").read_bytes()
    assert study["model"]["bundle_sha256"] == hashlib.sha256(manifest).hexdigest()
    assert {"capture", "findings", "report", "total", "vision"} <= set(study["timing_ms"])

    assert real.get(study["photo"]).content == photo
    shown = real.get(study["page"])
    assert shown.headers["content-type"] == "image/png"
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(shown.content))), page)
    assert real.get(f"/v1/studies/{study['id']}").json() == study
    assert real.get("/v1/studies").json()["studies"] == [study]


def test_events_come_in_order_and_say_what_the_study_says(
    real: TestClient, picture: bytes, read_events: Callable[[str], Any]
) -> None:
    answer = send(real, picture, EVENTS, capture="off")
    assert answer.headers["content-type"].startswith("text/event-stream")
    found = read_events(answer.text)
    names = [name for name, _ in found]
    assert names[:3] == ["quality", "page", "findings"]
    assert names[-1] == "done"
    assert set(names[3:-1]) <= {"text"}
    study = found[-1][1]
    assert found[0][1] == study["quality"]
    assert found[1][1] == {"study": study["id"], "page": study["page"]}
    assert found[2][1] == study["findings"]
    assert (
        "".join(content["delta"] for name, content in found if name == "text").strip()
        == (study["answers"][0]["text"])
    )


@pytest.mark.parametrize("headers", [{}, EVENTS])
def test_a_photo_that_cannot_be_read_is_refused_with_reasons_and_not_kept(
    real: TestClient, noise: bytes, data: Path, headers: dict[str, str]
) -> None:
    answer = send(real, noise, headers)
    assert answer.status_code == 422
    error = answer.json()["error"]
    assert error["code"] == "photo_refused"
    assert error["quality"]["grade"] == "refuse"
    assert error["message"] == " ".join(error["quality"]["reasons"])
    assert error["acceptable"] is False
    assert send(real, noise, headers, accept="true").status_code == 422  # no page, so nothing to accept
    assert real.get("/v1/studies").json() == {"studies": []}
    assert list((data / "pictures").iterdir()) == []


def test_a_page_that_is_refused_can_be_accepted_if_its_grid_was_found(
    real: TestClient, page_file: Path
) -> None:
    half = Image.open(page_file).convert("RGB")
    half = half.crop((0, 0, half.width // 3, half.height))
    stream = io.BytesIO()
    half.save(stream, "PNG")
    error = send(real, stream.getvalue()).json()["error"]
    assert error["acceptable"] is True
    study = send(real, stream.getvalue(), accept="true").json()
    assert study["quality"]["grade"] == "refuse"  # and the study says so
    assert study["quality"]["reasons"]
    text = _answers(real, study)  # and what is handed on of it
    assert "nothing below may be trusted. " + " ".join(study["quality"]["reasons"]) in text
    assert text.index("trusted") < text.index("MI (")


def _answers(client: TestClient, study: dict[str, Any]) -> str:
    exported = client.get(f"/v1/studies/{study['id']}/export")
    with zipfile.ZipFile(io.BytesIO(exported.content)) as archive:
        return archive.read("answers.txt").decode()


@pytest.mark.parametrize("finish", ["stop", "length"])
def test_an_answer_that_was_cut_off_says_so_where_it_is_handed_on(
    paced: TestClient, pace: Any, picture: bytes, finish: str
) -> None:
    pace.finish = finish
    for _ in pace.words:
        pace.go.release()
    study = send(paced, picture, capture="off").json()
    assert study["answers"][0]["finish"] == finish
    assert ("[cut off here" in _answers(paced, study)) == (finish == "length")


def test_the_deadline_ends_the_findings_and_frees_the_model(pace: Any, data: Path, picture: bytes) -> None:
    ended = threading.Event()

    def slowly(page: Any, halted: Callable[[], bool]) -> dict[str, Any]:
        end = time.monotonic() + 20
        while not halted():
            assert time.monotonic() < end
            time.sleep(0.01)
        ended.set()
        return {}  # as far as they came

    pace.findings = slowly
    service = Service(Settings(data, deadline_s=0.3, min_free=0), lambda: pace)
    with client_of(service) as client:
        answer = send(client, picture, EVENTS, capture="off")
        assert ended.wait(20)
        assert [name for name, _ in events(answer.text)] == ["quality", "page", "error"]
        assert '"deadline"' in answer.text
        assert client.get("/v1/studies").json() == {"studies": []}


def test_scoring_asks_before_every_label_whether_to_go_on(small_bundle: Path, picture: bytes) -> None:
    model, page = Model(small_bundle, threads=1), np.asarray(Image.open(io.BytesIO(picture)))
    whole = model.findings(page, lambda: False)
    answers = iter([False] * 2)
    assert list(model.findings(page, lambda: next(answers, True))) == list(whole)[:2]


def test_the_model_is_warm_before_the_service_says_ready(
    small_bundle: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()
    inner = OnnxBackend.warm_up

    def warm_up(backend: OnnxBackend) -> None:
        begun.set()
        assert go_on.wait(20)
        inner(backend)

    monkeypatch.setattr(OnnxBackend, "warm_up", warm_up)
    service = Service(Settings(data, min_free=0), lambda: Model(small_bundle, threads=1))
    with TestClient(create_app(service), base_url="http://localhost") as client:
        assert begun.wait(20)
        assert client.get("/healthz").json()["state"] == "loading"
        go_on.set()
        end = time.monotonic() + 30
        while client.get("/healthz").json()["state"] != "ok":
            assert time.monotonic() < end
            time.sleep(0.01)


@pytest.mark.parametrize("error", [BundleError("The bundle is damaged."), RuntimeError("bad allocation")])
def test_a_model_that_does_not_start_ends_the_service_instead_of_loading_for_ever(
    data: Path, error: Exception
) -> None:
    ended = threading.Event()

    def fail() -> Any:
        raise error

    service = Service(Settings(data, min_free=0), fail, end=ended.set)
    with TestClient(create_app(service)):
        assert ended.wait(20)
    assert isinstance(service.failure, PulseEdgeError)
    assert str(error) in str(service.failure)


def test_a_question_in_place_of_the_report(real: TestClient, picture: bytes, small_bundle: Path) -> None:
    study = send(real, picture, capture="off", question=" What is the heart rate? ").json()
    page = np.asarray(Image.open(io.BytesIO(picture)))
    expected = load(small_bundle, threads=1).ask(page, "What is the heart rate?").strip()
    assert study["answers"][0]["question"] == "What is the heart rate?"
    assert study["answers"][0]["text"] == expected


def test_follow_up_questions_are_answered_and_kept(
    real: TestClient, picture: bytes, small_bundle: Path, read_events: Callable[[str], Any]
) -> None:
    study = send(real, picture, capture="off").json()
    send(real, picture[:-1] + picture[-1:], capture="off")  # another page is before the model meanwhile
    page = np.asarray(Image.open(io.BytesIO(picture)))
    ask = f"/v1/studies/{study['id']}/ask"
    question = "Does this ECG show a normal ECG?"
    answer = real.post(ask, json={"question": question}).json()
    assert answer["text"] == load(small_bundle, threads=1).ask(page, question).strip()
    streamed = read_events(real.post(ask, json={"question": question}, headers=EVENTS).text)
    assert streamed[-1][0] == "done"
    assert streamed[-1][1]["text"] == answer["text"]
    kept = real.get(f"/v1/studies/{study['id']}").json()["answers"]
    assert [entry["question"] for entry in kept] == [REPORT_QUESTION, question, question]


def test_export_holds_the_study_and_its_pictures(real: TestClient, picture: bytes) -> None:
    study = send(real, picture, capture="off", reference="../../x").json()
    answer = real.get(f"/v1/studies/{study['id']}/export")
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    assert set(files) == {"study.json", "answers.txt", "photo.png", "page.png", "SHA256SUMS"}
    assert json.loads(files["study.json"]) == study
    assert files["photo.png"] == picture
    for line in files["SHA256SUMS"].decode().splitlines():
        digest, name = line.split("  ")
        assert hashlib.sha256(files[name]).hexdigest() == digest
    assert study["answers"][0]["text"] in files["answers.txt"].decode()


def test_deleting_and_purging(real: TestClient, picture: bytes, data: Path) -> None:
    studies = [send(real, picture, capture="off").json() for _ in range(3)]
    assert real.delete(f"/v1/studies/{studies[0]['id']}").json() == {"deleted": 1}
    assert real.delete(f"/v1/studies/{studies[0]['id']}").status_code == 404
    assert real.get(studies[0]["photo"]).status_code == 404
    assert real.delete("/v1/studies", params={"before": studies[2]["created"]}).json() == {"deleted": 1}
    assert [s["id"] for s in real.get("/v1/studies").json()["studies"]] == [studies[2]["id"]]
    assert real.delete("/v1/studies").status_code == 400  # never all by omission
    assert check(data / "audit.jsonl").problem is None
    events = [json.loads(line)["event"] for line in (data / "audit.jsonl").read_text().splitlines()]
    assert events.count("study_stored") == 3
    assert events.count("study_deleted") == 2
    assert events[-1] == "purged"


def test_pages_of_the_history(real: TestClient, picture: bytes) -> None:
    ids = [send(real, picture, capture="off").json()["id"] for _ in range(4)][::-1]
    got: list[str] = []
    before: dict[str, str] = {}
    while page := real.get("/v1/studies", params={"limit": 2, **before}).json()["studies"]:
        got += [study["id"] for study in page]
        before = {"before": got[-1]}
    assert got == ids


@pytest.mark.parametrize(
    ("files", "fields"),
    [
        ({}, {}),
        ({}, {"image": "text"}),
        ({"image": b""}, {}),
        ({"image": b"GIF89a"}, {}),
        ({"image": b"\xff\xd8\xff\xe0 cut"}, {}),
        ({"image": b"%!PS-Adobe-3.0 EPSF-3.0\n"}, {}),
        ({"picture": b"x"}, {}),
        ({"image": b"x"}, {"reference": "r" * 65}),
        ({"image": b"x"}, {"reference": "a\0b"}),
        ({"image": b"x"}, {"question": "q" * 2001}),
        ({"image": b"x"}, {"capture": "maybe"}),
        ({"image": b"x"}, {"accept": "1"}),
        ({"image": b"x"}, {"patient": "Mrs X"}),
        ({"image": b"x", "reference": b"a file"}, {}),
    ],
)
def test_a_form_that_is_not_as_described_is_refused_in_a_sentence(
    paced: TestClient, data: Path, files: dict[str, bytes], fields: dict[str, str]
) -> None:
    answer = paced.post("/v1/ecg", files=files or {"none": b""}, data=fields)
    assert answer.status_code == 400
    message = answer.json()["error"]["message"]
    assert message.endswith(".")
    assert str(data) not in message
    assert "Mrs X" not in answer.text
    assert list((data / "pictures").iterdir()) == []
    assert paced.get("/healthz").json()["state"] == "ok"


@pytest.mark.parametrize("kind", ["application/json", "multipart/form-data", "text/plain", ""])
def test_what_is_no_form_is_refused(paced: TestClient, kind: str) -> None:
    answer = paced.post("/v1/ecg", content=b"--x\r\n\r\n", headers={"content-type": kind})
    assert answer.status_code == 400


def test_a_picture_of_too_many_pixels_is_not_decoded(paced: TestClient) -> None:
    stream = io.BytesIO()
    Image.new("L", (9000, 8000)).save(stream, "PNG")  # 70 kB that would become 72 MB
    answer = send(paced, stream.getvalue(), capture="off")
    assert answer.status_code == 413
    assert "64 megapixels" in answer.json()["error"]["message"]


def test_a_question_with_the_image_token_is_refused(real: TestClient, picture: bytes) -> None:
    assert send(real, picture, capture="off", question="What is <image>?").status_code == 400


def test_a_full_queue_answers_429_and_the_rest_is_served(
    paced: TestClient, pace: Any, picture: bytes
) -> None:
    answers: list[Any] = []
    threads = [
        threading.Thread(target=lambda: answers.append(send(paced, picture, capture="off"))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    while paced.get("/metrics").text.count("pulse_edge_queued 2.0") == 0:
        time.sleep(0.01)
    refused = send(paced, picture, capture="off")
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) >= 1
    assert refused.json()["error"]["code"] == "busy"
    for _ in range(6):
        pace.go.release()
    for thread in threads:
        thread.join()
    assert [answer.status_code for answer in answers] == [200, 200]
    assert all(answer.json()["answers"][0]["text"] == "one two three" for answer in answers)


def test_a_bundle_that_changes_while_it_reads_gives_no_answer(
    paced: TestClient, pace: Any, picture: bytes, data: Path
) -> None:
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(send(paced, picture, capture="off")))
    thread.start()
    pace.go.release()
    while pace.asked < 1:
        time.sleep(0.01)
    (pace.folder / "manifest.json").write_text("{} ")
    for _ in range(3):
        pace.go.release()
    thread.join()
    assert answers[0].status_code == 503
    assert answers[0].json()["error"]["code"] == "bundle_changed"
    state = paced.get("/healthz")
    assert state.status_code == 503
    assert "Restart" in state.json()["message"]
    assert list((data / "pictures").iterdir()) == []
    assert paced.get("/v1/studies").status_code == 200  # the history can still be read


def test_without_a_model_yet_the_state_says_so(pace: Any, data: Path, picture: bytes) -> None:
    loaded = threading.Event()

    def slowly() -> Any:
        loaded.wait(20)
        return pace

    service = Service(Settings(data, min_free=0), slowly)
    with TestClient(create_app(service), base_url="http://localhost") as client:
        assert client.get("/healthz").json()["state"] == "loading"
        for answer in (send(client, picture), client.get("/v1/about"), client.get("/v1/models")):
            assert answer.status_code == 503
            assert answer.json()["error"]["code"] == "loading"
        loaded.set()
