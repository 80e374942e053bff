"""ECGInstruct: what is good is read lazily, what is bad is counted or refused."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pulse_edge.errors import UserError
from pulse_edge.model.prompt import build_prompt
from pulse_edge.train.sources.ecginstruct import EcgInstruct, parse

GOOD = {
    "id": "mimic-44111511",
    "image": "mimic/p1127/44111511-0.png",
    "conversations": [
        {"from": "human", "value": '<image>\nWhat {is} "this\\" ]? é'},
        {"from": "gpt", "value": "Sinus rhythm, 72 bpm."},
        {"from": "human", "value": "And the axis?"},
        {"from": "gpt", "value": "Normal."},
    ],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    picture = tmp_path / "images" / GOOD["image"]
    picture.parent.mkdir(parents=True)
    picture.write_bytes(b"png")
    (tmp_path / "images" / "empty.png").write_bytes(b"")
    (tmp_path / "outside.png").write_bytes(b"png")
    return tmp_path


def entry(**change: Any) -> dict[str, Any]:
    return {**copy.deepcopy(GOOD), **change}


def said(*messages: tuple[str, Any]) -> dict[str, Any]:
    return entry(conversations=[{"from": speaker, "value": text} for speaker, text in messages])


def test_entries_come_back_as_they_were_written(folder: Path) -> None:
    path = folder / "ecg.json"
    entries = [entry(id=f"n{k}") for k in range(5)]
    for text in (
        json.dumps(entries),
        json.dumps(entries, ensure_ascii=False, indent=2),
        "\ufeff \n" + json.dumps(entries, separators=(",", ":")) + "\n",
    ):
        path.write_text(text, encoding="utf-8")
        found = EcgInstruct(path)
        assert len(found) == 5
        assert not found.left_out
        assert [example.id for example in found] == [f"n{k}" for k in range(5)]
        assert found[-1].id == found[2:][2].id == "n4"
        assert found[0].image == folder / "images" / GOOD["image"]
        assert found[0].conversations == GOOD["conversations"]
        with pytest.raises(IndexError):
            found[5]
    turns = [(turn.question, turn.answer) for turn in found[0].turns]
    assert f"USER: {GOOD['conversations'][0]['value']} ASSISTANT: Sinus" in build_prompt(turns)
    assert [e.id for e in pickle.loads(pickle.dumps(found))] == [e.id for e in found]


def test_the_picture_folder_may_be_named_or_be_that_of_the_file(folder: Path, tmp_path: Path) -> None:
    path = folder / "images" / "ecg.json"
    path.write_text(json.dumps([GOOD]))
    assert len(EcgInstruct(path)) == len(EcgInstruct(path.parent)) == 1
    elsewhere = tmp_path / "ecg.json"
    elsewhere.write_text(json.dumps([GOOD]))
    assert len(EcgInstruct(elsewhere, folder / "images")) == 1
    with pytest.raises(UserError, match="There is no folder"):
        EcgInstruct(elsewhere, folder / "gone")


QUESTION, ANSWER = ("human", "<image>\nRate?"), ("gpt", "72 bpm.")


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (entry(image="gone.png"), "picture missing or empty"),
        (entry(image="empty.png"), "picture missing or empty"),
        (entry(image="mimic"), "picture missing or empty"),
        (entry(image="../outside.png"), "picture outside the folder of pictures"),
        (entry(image="/etc/hostname"), "picture outside the folder of pictures"),
        (entry(image=None), "no picture named"),
        (entry(image=" "), "no picture named"),
        (entry(image="a\0b"), "no picture named"),
        (entry(conversations=None), "no conversation"),
        (entry(conversations=[]), "no conversation"),
        (entry(conversations=["x", "y"]), "message without text"),
        (said(QUESTION, ("gpt", None)), "message without text"),
        (said(QUESTION, ("gpt", ["72"])), "message without text"),
        (said(("gpt", "Hello."), QUESTION), "speakers not in turn, human first"),
        (said(QUESTION, QUESTION), "speakers not in turn, human first"),
        (said(QUESTION, ("system", "x")), "speakers not in turn, human first"),
        (said(QUESTION), "last question without an answer"),
        (said(("human", "Rate?"), ANSWER), "<image> not exactly once, in the first question"),
        (said(("human", "<image><image>?"), ANSWER), "<image> not exactly once, in the first question"),
        (said(QUESTION, ("gpt", "<image>")), "<image> not exactly once, in the first question"),
        (said(("human", "<image>\n "), ANSWER), "empty question or answer"),
        (said(QUESTION, ("gpt", "  ")), "empty question or answer"),
    ],
)
def test_a_bad_entry_is_counted(folder: Path, bad: dict[str, Any], reason: str) -> None:
    path = folder / "ecg.json"
    path.write_text(json.dumps([GOOD, bad, entry(id="last")]))
    found = EcgInstruct(path)
    assert [example.id for example in found] == [GOOD["id"], "last"]
    assert found.left_out == {reason: 1}


def test_an_entry_that_is_no_json_is_counted(folder: Path) -> None:
    path = folder / "ecg.json"
    path.write_text(f"[{json.dumps(GOOD)}, {{'id': 1}}, {{\"id\" 1}}]")
    found = EcgInstruct(path)
    assert (len(found), found.left_out) == (1, {"entry that is not JSON": 2})


def test_a_file_that_is_cut_short_is_refused(folder: Path) -> None:
    """Wherever it is cut: at no byte is a piece of the file taken for all of it."""
    path, whole = folder / "ecg.json", json.dumps([GOOD, GOOD]).encode()
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        with pytest.raises(UserError, match="damaged or cut short at byte"):
            EcgInstruct(path)


@pytest.mark.parametrize("text", ["{}", "[1]", "[{}{}]", "[{},]", "[,{}]", "[{}] x", "[{}, null]", '"[{}]"'])
def test_what_is_no_list_of_objects_is_refused(folder: Path, text: str) -> None:
    path = folder / "ecg.json"
    path.write_text(text)
    with pytest.raises(UserError, match="damaged or cut short"):
        EcgInstruct(path)


def test_nothing_usable_and_a_changed_file_are_refused(folder: Path) -> None:
    path = folder / "ecg.json"
    with pytest.raises(UserError, match="There is no"):
        EcgInstruct(path)
    for entries in ([], [entry(image="gone.png")]):
        path.write_text(json.dumps(entries))
        with pytest.raises(UserError, match="No usable conversation"):
            EcgInstruct(path)
    path.write_text(json.dumps([GOOD]))
    found = EcgInstruct(path)
    path.write_text("[]")
    with pytest.raises(UserError, match="has changed"):
        found[0]


TEXT = st.text(max_size=5)
LEAF = st.none() | st.integers(-9, 9) | TEXT
JSON = (
    LEAF | st.lists(LEAF | st.lists(LEAF, max_size=2), max_size=3) | st.dictionaries(TEXT, LEAF, max_size=3)
)
# A busy machine is no failure: neither time per example nor slow generation is judged.
patient = settings(
    deadline=None,
    max_examples=50,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@patient
@given(JSON | st.fixed_dictionaries({"image": TEXT, "conversations": JSON}))
def test_no_entry_breaks_the_parser(value: Any) -> None:
    found = parse(json.dumps(value).encode(), Path("images"))
    assert isinstance(found, str)


@patient
@given(
    st.lists(st.dictionaries(TEXT, JSON, max_size=3), max_size=4), st.booleans(), st.sampled_from([None, 1])
)
def test_places_agree_with_a_whole_parse(
    folder: Path, entries: list[dict[str, Any]], ascii_only: bool, indent: int | None
) -> None:
    path = folder / "ecg.json"
    text = json.dumps([*entries, GOOD], ensure_ascii=ascii_only, indent=indent)
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    found = EcgInstruct(path)
    assert len(found) == 1
    assert found[0].conversations == GOOD["conversations"]
    assert sum(found.left_out.values()) == len(entries)
