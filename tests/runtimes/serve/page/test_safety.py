"""Nothing that a person or the model wrote becomes markup, and the page asks for nothing from elsewhere."""

from __future__ import annotations

import json
import re

import pytest

from pulse_edge.ecg.instruct import ASKED, CLOSED_QUESTIONS, FINDINGS, RATE_QUESTIONS, RHYTHMS

from .conftest import PAGE, expect, read

MARKUP = '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script><b>bold</b>'
SCRIPTS = sorted(PAGE.glob("*.js"))
PARSERS = (
    "innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "DOMParser", "srcdoc", "eval(",
    "new Function", "setHTML", "createContextualFragment", "javascript:",
)  # fmt: skip


def test_markup_stays_text_wherever_it_comes_from(page, photo_file) -> None:
    quality = {"grade": "usable", "reasons": [MARKUP]}
    findings = {MARKUP: {"phrase": MARKUP, "probability": 0.5, "answer": MARKUP}}
    study = {
        "id": "a" * 32, "created": MARKUP, "reference": MARKUP, "quality": quality, "findings": findings,
        "photo": "/v1/studies/x/photo", "page": "/v1/studies/x/page.png",
        "answers": [{"question": MARKUP, "text": MARKUP}, {"question": MARKUP, "text": MARKUP}],
        "model": {"name": MARKUP, "bundle_sha256": MARKUP, "calibrated": False},
    }  # fmt: skip
    items = [("quality", quality), ("findings", findings), ("text", {"delta": MARKUP}), ("done", study)]
    body = "".join(f"event: {name}\ndata: {json.dumps(data)}\n\n" for name, data in items)
    page.route("**/v1/ecg", lambda route: route.fulfill(content_type="text/event-stream", body=body))
    page.route("**/v1/studies?*", lambda route: route.fulfill(json={"studies": [study]}))
    page.route("**/v1/guidance*", lambda route: route.fulfill(json={"message": MARKUP, "ready": False}))
    expect(page.locator("#guidance")).to_have_text(MARKUP)
    page.set_input_files("#file", photo_file)
    expect(page.locator("#answers article")).to_have_count(2)
    shown = page.locator("#view-study").inner_text()
    assert shown.count(MARKUP) >= 6
    page.click("#nav-history")
    expect(page.locator("#studies")).to_contain_text(MARKUP)
    assert page.evaluate("() => window.hacked") is None
    assert page.locator("b, main script, main img[src=x]").count() == 0


def test_a_refusal_with_markup(page, photo_file) -> None:
    page.expected.append("422")
    error = {"code": "photo_refused", "message": MARKUP, "quality": {"grade": "refuse", "reasons": [MARKUP]}}
    page.route("**/v1/ecg", lambda route: route.fulfill(status=422, json={"error": error}))
    page.set_input_files("#file", photo_file)
    expect(page.locator("#refused-reasons")).to_have_text(MARKUP)
    assert page.evaluate("() => window.hacked") is None


def test_a_reference_with_markup_at_the_real_service(page, photo_file) -> None:
    page.fill("#reference", "<b onclick=alert(1)>x</b>")
    read(page, photo_file)
    page.reload()
    expect(page.locator("#study-facts")).to_contain_text("<b onclick=alert(1)>x</b>")


def test_the_policy_is_strict_and_holds(page) -> None:
    """The page runs under it without a complaint (every test checks that), and it stops what it should."""
    page.expected += ["Content Security Policy", "TrustedScript", "TrustedHTML"]
    policy = page.request.get(page.url).headers["content-security-policy"]
    assert "unsafe" not in policy
    assert "default-src 'self'" in policy
    refused = page.evaluate(
        """() => {
            const made = (name) => document.createElement(name);
            const attempts = [
                () => (made("script").textContent = "window.hacked = 1"),
                () => made("button").setAttribute("onclick", "window.hacked = 1"),
                () => (made("p").innerHTML = "<img src=x onerror='window.hacked = 1'>"),
            ];
            return attempts.map((attempt) => {
                try {
                    attempt();
                    return false;
                } catch {
                    return true;
                }
            });
        }"""
    )
    assert refused == [True] * 3
    assert page.evaluate("() => window.hacked") is None


def test_every_request_goes_to_the_service_itself(page, study, service) -> None:
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"{service}/#/study/{study['id']}")
    page.reload()
    expect(page.locator("#swap")).to_be_visible()
    page.click("#nav-history")
    expect(page.locator("#studies li")).not_to_have_count(0)
    assert len(asked) > 15
    assert [url for url in asked if not url.startswith((f"{service}/", f"blob:{service}/"))] == []


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_no_script_parses_markup_or_names_another_place(path) -> None:
    code = re.sub(r"^\s*//.*$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert [word for word in PARSERS if word in code] == []
    assert not re.search(r"https?://|//[a-z]+\.", code)


def test_the_document_has_no_inline_script_style_or_foreign_address() -> None:
    text = (PAGE / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", text)
    addresses = re.findall(r'(?:src|href)="([^"#]+)', text)
    assert addresses
    assert all(address.startswith("/page/") for address in addresses)
    for address in addresses:
        assert (PAGE / address.removeprefix("/page/")).is_file()
    for sheet in PAGE.glob("*.css"):
        assert not re.search(r"url\(|@import", sheet.read_text(encoding="utf-8"))


def test_all_words_are_in_one_file_and_all_of_them_are_used() -> None:
    texts = json.loads((PAGE / "texts.en.json").read_text(encoding="utf-8"))
    document = (PAGE / "index.html").read_text(encoding="utf-8")
    code = "\n".join(path.read_text(encoding="utf-8") for path in SCRIPTS)
    code = re.sub(r"^\s*//.*$", "", code, flags=re.MULTILINE)
    named = set(re.findall(r'data-(?:text|label|alt)="([^"]+)"', document))
    named |= {
        key for key in re.findall(r'"([a-z]+\.[A-Za-z0-9.]+)"', code) if key.count(".") and key in texts
    }
    asked = set(re.findall(r'\bt\("([^"]+)"', code))
    assert (named | asked) - set(texts) == set()
    stems = tuple(re.findall(r"`([a-z]+\.(?:[a-z]+\.)?)\$\{", code))  # t(`problem.${status}`)
    reasons = {
        f"take.{word}" for word in re.findall(r'Error: "(\w+)"|\?\? "(\w+)"', code) for word in word if word
    }
    unused = {key for key in texts if key not in named | asked | reasons and not key.startswith(stems)}
    assert unused == set()
    words = re.sub(r"<!--.*?-->|<title>PULSE</title>|<[^>]+>", " ", document, flags=re.DOTALL).split()
    assert words == ["PULSE"]  # the name in the header


def test_the_questions_that_are_offered_are_of_the_kinds_that_models_learn() -> None:
    """Others get answers too, and what they say is of something else."""
    texts = json.loads((PAGE / "texts.en.json").read_text(encoding="utf-8"))
    phrases = [{**RHYTHMS, **FINDINGS}[code] for code in ASKED]
    learnt = {question.format(phrase=phrase) for question in CLOSED_QUESTIONS for phrase in phrases}
    offered = {text for key, text in texts.items() if key.startswith("ask.suggestion.")}
    assert len(offered) == 3
    assert offered <= learnt | set(RATE_QUESTIONS)


def test_texts_have_no_markup_and_no_jargon() -> None:
    for key, text in json.loads((PAGE / "texts.en.json").read_text(encoding="utf-8")).items():
        assert text.strip(), key
        assert not re.search(r"[<>]\w|&\w+;", text), key
        assert not re.search(r"\b(?:HTTP|JSON|API|server|null|undefined|exception|timeout)\b", text, re.I), (
            key
        )
