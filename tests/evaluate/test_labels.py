"""The label set, and tables of labels that people save in their own ways."""

from __future__ import annotations

import pytest

from pulse_edge.ecg.instruct import SUPERCLASS_PHRASES
from pulse_edge.errors import UserError
from pulse_edge.evaluate.labels import DEFAULT_LABELS, DEFAULT_SCORING, label_set, read_labels


def write(folder, content: bytes):
    path = folder / "labels.csv"
    path.write_bytes(content)
    return path


def test_rows_are_read_whole(tmp_path) -> None:
    text = 'record,superclass,report\na/1,"NORM;MI","two\nlines, µV"\nb/2,,\n'
    assert read_labels(write(tmp_path, text.encode())) == [
        {"record": "a/1", "superclass": "NORM;MI", "report": "two\nlines, µV"},
        {"record": "b/2", "superclass": "", "report": ""},
    ]


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "with the mark that Excel writes"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"], ids=["unix", "windows"])
def test_marks_and_line_ends_do_not_matter(mark, end, tmp_path) -> None:
    rows = read_labels(write(tmp_path, mark + end.join([b"record,superclass", b"1,MI", b""])))
    assert rows == [{"record": "1", "superclass": "MI"}]


def test_ragged_rows_are_filled_and_cut(tmp_path) -> None:
    rows = read_labels(write(tmp_path, b"record,superclass\n1\n2,MI,more,still more\n"))
    assert rows == [{"record": "1", "superclass": ""}, {"record": "2", "superclass": "MI"}]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "lacks the column record, superclass"),
        (b"record;superclass\n1;MI\n", "Its columns are record;superclass"),
        (b"superclass\nMI\n", "lacks the column record"),
        (b"record,superclass\n", "no rows"),
        ("record,superclass\nÄ,MI\n".encode("utf-16"), "Save it as UTF-8 CSV"),
        ("record,superclass\nÄ,MI\n".encode("latin-1"), "Save it as UTF-8 CSV"),
    ],
)
def test_what_cannot_be_used_is_refused(content, sentence, tmp_path) -> None:
    with pytest.raises(UserError, match=sentence) as caught:
        read_labels(write(tmp_path, content))
    assert str(tmp_path / "labels.csv") in str(caught.value)


def test_a_folder_or_nothing_is_refused(tmp_path) -> None:
    for path in (tmp_path, tmp_path / "none.csv"):
        with pytest.raises(UserError, match="There is no"):
            read_labels(path)


def test_a_card_may_bring_its_own_labels() -> None:
    assert label_set({}) == (DEFAULT_LABELS, DEFAULT_SCORING)
    assert label_set({"labels": {}, "scoring": {}}) == (DEFAULT_LABELS, DEFAULT_SCORING)
    own = {"AF": {"phrase": "atrial fibrillation"}}
    scoring = {"question": "Is it {phrase}?", "positive": "Ja", "negative": "Nein"}
    assert label_set({"labels": own, "scoring": scoring}) == (own, scoring)
    assert list(DEFAULT_LABELS) == list(SUPERCLASS_PHRASES)
