"""Each layout in miniature, made of the shipped ECGs, and each kind of bad data in it."""

from __future__ import annotations

import collections
import csv
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pulse_edge.bundle import sha256_file
from pulse_edge.ecg import instruct
from pulse_edge.ecg.record import LEADS
from pulse_edge.ecg.split import SPLITS, split
from pulse_edge.errors import UserError
from pulse_edge.samples import samples
from pulse_edge.train.dataset import diagnoses
from pulse_edge.train.examples import read_examples, write_split
from pulse_edge.train.sources import detect
from pulse_edge.train.sources.labels_csv import SCP_CODES
from pulse_edge.train.sources.ptbxl import parse_scp_codes
from pulse_edge.train.sources.snomed import database, parse_dx
from pulse_edge.train.sources.snomed_codes import EXCEPTIONS, MEANINGS

Signals = dict[str, np.ndarray]
WriteRecord = Callable[..., Path]
WriteTable = Callable[[Path, list[dict[str, Any]]], None]
# A busy machine is no failure: neither time per example nor slow generation is judged.
patient = settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])
# From the published scp_statements.csv: the statements of the shipped records.
STATEMENTS = {
    "NORM": "NORM", "IMI": "MI", "ASMI": "MI", "ISC_": "STTC", "CLBBB": "CD", "LVH": "HYP", "LAO/LAE": "HYP",
    "SR": "", "AFIB": "", "ABQRS": "", "PVC": "",
}  # fmt: skip
FOLDS = ("1", "8", "9", "10", "3", "2.0")


@pytest.fixture
def ptbxl(tmp_path: Path, signals: Signals, write_record: WriteRecord, write_table: WriteTable) -> Path:
    """The six shipped records in PTB-XL's published layout, one patient each."""
    rows = []
    for number, (row, fold) in enumerate(zip(samples(), FOLDS, strict=True), start=1):
        low, high = f"records100/00000/{number:05d}_lr", f"records500/00000/{number:05d}_hr"
        write_record(tmp_path / low, signals[row["record"]][:, ::2], fs=100)
        write_record(tmp_path / high, signals[row["record"]])
        codes = {code: 100.0 if STATEMENTS[code] else 0.0 for code in row["codes"].split(";")}
        rows.append(
            {"ecg_id": number, "patient_id": f"{number + 15000}.0", "age": "56.0", "sex": 1, "report": "a, b"}
            | {"scp_codes": str(codes), "strat_fold": fold, "filename_lr": low, "filename_hr": high}
        )
    write_table(tmp_path / "ptbxl_database.csv", rows)
    write_table(
        tmp_path / "scp_statements.csv",
        [
            {"": code, "description": "", "diagnostic": "1.0" if group else "", "diagnostic_class": group}
            for code, group in STATEMENTS.items()
        ],
    )
    return tmp_path


def edit(table: Path, row: int, write_table: WriteTable, **cells: str) -> None:
    with table.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    rows[row].update(cells)
    write_table(table, rows)


def test_ptbxl_as_published(ptbxl: Path) -> None:
    assert detect(ptbxl) == detect(ptbxl / "ptbxl_database.csv") == "ptbxl"
    sides = {side: read_examples(ptbxl, (side,))[0] for side in SPLITS}
    assert {side: [e.patient for e in found] for side, found in sides.items()} == {
        "train": ["15001", "15002", "15005", "15006"], "validation": ["15003"], "test": ["15004"],
    }  # fmt: skip
    everything, left_out = read_examples(ptbxl, SPLITS)
    assert not left_out
    # what PTB-XL's authors assign is an independent witness of the aggregation
    for example, row in zip(everything, samples(), strict=True):
        assert example.facts.superclasses == set(row["superclass"].split(";"))
        assert example.facts.codes == set(row["codes"].split(";"))
        assert example.facts.assignable is None
        assert example.record.fs == 200  # records500, as it is there


def test_ptbxl_of_100_hz_only(ptbxl: Path) -> None:
    shutil.rmtree(ptbxl / "records500")
    assert {e.record.fs for e in read_examples(ptbxl, SPLITS)[0]} == {100.0}
    shutil.rmtree(ptbxl / "records100")
    with pytest.raises(UserError, match="neither records500 nor records100"):
        read_examples(ptbxl, SPLITS)


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        ({"strat_fold": "11"}, "no patient or no fold of 1 to 10"),
        ({"strat_fold": "nan"}, "no patient or no fold of 1 to 10"),
        ({"patient_id": ""}, "no patient or no fold of 1 to 10"),
        ({"scp_codes": "{'NORM': 100.0"}, "statements that cannot be read"),
        ({"scp_codes": "__import__('os').getcwd()"}, "statements that cannot be read"),
        ({"scp_codes": "{}"}, "no statement"),
        ({"scp_codes": "{'NORMAL': 100.0}"}, "label not in the map"),
        ({"filename_hr": ""}, "no record named"),
        ({"filename_hr": "records500/00000/gone"}, "unreadable record"),
    ],
)
def test_a_bad_row_of_ptbxl_is_counted(
    ptbxl: Path, write_table: WriteTable, cells: dict[str, str], reason: str
) -> None:
    edit(ptbxl / "ptbxl_database.csv", 1, write_table, **cells)
    examples, left_out = read_examples(ptbxl, SPLITS)
    assert len(examples) == 5
    assert left_out == {reason: 1}


def test_a_patient_on_two_sides_of_the_folds_is_left_out_whole(ptbxl: Path, write_table: WriteTable) -> None:
    edit(ptbxl / "ptbxl_database.csv", 3, write_table, patient_id="15001")  # fold 10, the other has fold 1
    edit(ptbxl / "ptbxl_database.csv", 4, write_table, patient_id="15002.0")  # folds 3 and 8: one side
    examples, left_out = read_examples(ptbxl, SPLITS)
    assert [e.patient for e in examples] == ["15002", "15003", "15002", "15006"]
    assert left_out == {"patient on two sides of the published split": 2}


def test_a_damaged_table_is_refused(ptbxl: Path) -> None:
    statements = ptbxl / "scp_statements.csv"
    text = statements.read_text()
    statements.write_text(text.replace(",HYP", ",HYPER"))
    with pytest.raises(UserError, match="HYPER"):
        read_examples(ptbxl, SPLITS)
    statements.write_text(text.replace("diagnostic_class", "class"))
    with pytest.raises(UserError, match="lacks the column diagnostic_class"):
        read_examples(ptbxl, SPLITS)
    statements.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot be read"):
        read_examples(ptbxl, SPLITS)
    statements.unlink()
    with pytest.raises(UserError, match="cannot be read"):
        read_examples(ptbxl, SPLITS)


@patient
@given(st.dictionaries(st.text(max_size=8), st.floats(0, 100) | st.integers(0, 100), max_size=6))
def test_scp_codes_come_back_as_python_wrote_them(codes: dict[str, float]) -> None:
    assert parse_scp_codes(repr(codes)) == codes


@patient
@given(
    st.text(max_size=40) | st.dictionaries(st.text(max_size=4), st.lists(st.integers(), max_size=2)).map(repr)
)
def test_no_text_breaks_the_parser_of_scp_codes(text: str) -> None:
    found = parse_scp_codes(text)
    assert found is None or all(0 <= likelihood <= 100 for likelihood in found.values())


@pytest.mark.parametrize(
    "text",
    [
        "{'A': True}",
        "{'A': 1e999}",
        "{'A': -1}",
        "{'A': 'x'}",
        "{1: 2}",
        "{[]: 1}",
        "{'A': '\\d'}",
        "[" * 9999,
    ]
    + ["{'A': 1}" + " " * 10_000, "['A']", "", "\0", "{'A': 10**9**9}"],
)
def test_what_is_no_dict_of_likelihoods_is_none(text: str) -> None:
    assert parse_scp_codes(text) is None


@pytest.fixture
def challenge(tmp_path: Path, signals: Signals, write_record: WriteRecord) -> Path:
    """Records as in the PhysioNet Challenges: .mat and .dat files, two spellings of Dx, two databases."""
    normal, paced, atrial, block, *_ = signals.values()
    write_mat(tmp_path / "georgia" / "g1" / "E00001", normal, "#Dx: 426783006,59118001")
    write_mat(tmp_path / "georgia" / "g1" / "E00002", paced, "# Dx: 164889003", " 05-Feb-2020 11:39:16")
    write_record(tmp_path / "georgia" / "g2" / "E00003", atrial, ("#Age: 61", "# Dx: 713426002,39732003"))
    write_mat(tmp_path / "chapman" / "JS00001", block, "# Dx: 164909002,426177001")
    return tmp_path


def write_mat(base: Path, signal: np.ndarray, dx: str, date: str = "") -> None:
    from scipy.io import savemat

    base.parent.mkdir(parents=True, exist_ok=True)
    savemat(base.with_suffix(".mat"), {"val": np.round(signal * 1000).astype(np.int16)}, format="4")
    lines = [f"{base.name} 12 200 {signal.shape[1]}{date}"]
    lines += [
        f"{base.name}.mat 16+24 1000/mV 16 0 {row[0] * 1000:.0f} 0 0 {n}"
        for n, row in zip(LEADS, signal, strict=True)
    ]
    base.with_suffix(".hea").write_text("\n".join([*lines, "#Age: 70", "#Sex: Male", dx]) + "\n")


def test_snomed_folders(challenge: Path, signals: Signals) -> None:
    assert detect(challenge) == "snomed"
    examples, left_out = read_examples(challenge, SPLITS)
    assert not left_out
    found = {e.patient: e for e in examples}
    assert {name: sorted(e.facts.codes) for name, e in found.items()} == {
        "E00001": ["CRBBB", "SR"], "E00002": ["AFIB"], "E00003": ["IRBBB"], "JS00001": ["SBRAD"],
    }  # fmt: skip
    for example, signal in zip((found["E00001"], found["E00002"]), signals.values(), strict=False):
        np.testing.assert_allclose(example.record.signal, signal, atol=0.00051)
    assert not any(e.facts.superclasses for e in examples)
    for side in SPLITS:
        names = [name for name in found if split(name) == side]
        assert [e.patient for e in examples if split(e.patient) == side] == sorted(
            names, key=list(found).index
        )


def test_nothing_is_denied_that_the_database_does_not_state(challenge: Path) -> None:
    found = {e.patient: e.facts for e in read_examples(challenge, SPLITS)[0]}
    assert found["E00002"].assignable == {"SR", "CRBBB", "AFIB", "IRBBB"}
    assert found["E00001"].has("IRBBB") is None  # an unqualified block says nothing of an incomplete one
    assert found["E00002"].has("IRBBB") is False
    assert found["JS00001"].assignable == {"SBRAD"}  # CSN also means fascicular blocks by its LBBB
    for facts in found.values():
        for seed in range(40):
            turns = instruct.finding_turns(facts, random.Random(seed), count=9)
            denied = {turn.question for turn in turns if turn.answer == "No"}
            allowed = facts.assignable - facts.codes
            words = [instruct.RHYTHMS.get(code) or instruct.FINDINGS[code] for code in allowed]
            assert all(any(word in question for word in words) for question in denied)
        assert instruct.superclass_turns(facts, random.Random(0)) == []
        known = dict(zip(instruct.ASKED, diagnoses(facts)[5:], strict=True))
        assert np.isnan(diagnoses(facts)[:5]).all()
        assert {code for code, value in known.items() if value == 1} == facts.codes & set(instruct.ASKED)
        assert {code for code, value in known.items() if value == 0} <= facts.assignable - facts.codes
    everything = instruct.Facts(frozenset({"AFIB"}), frozenset({"MI"}), None)
    assert np.isfinite(diagnoses(everything)).all()
    assert len(instruct.finding_turns(everything, random.Random(0), count=9)) == 9


@pytest.mark.parametrize(
    ("comment", "reason"),
    [
        ("# Dx: Unknown", "label not in the map"),
        ("# Dx: 426783006,999", "label not in the map"),
        ("# Dx:", "label not in the map"),
        ("#Rx: 426783006", "header without # Dx"),
        ("# Dx: 164865005", "no label that we have words for"),  # an infarction of unknown site
    ],
)
def test_a_bad_label_of_snomed_is_counted(
    challenge: Path, signals: Signals, write_record: WriteRecord, comment: str, reason: str
) -> None:
    write_record(challenge / "E00009", 0.9 * signals["00057"], (comment,))
    examples, left_out = read_examples(challenge, SPLITS)
    assert (len(examples), left_out) == (4, {reason: 1})


def test_the_snomed_table_speaks_our_codes() -> None:
    assert len(SCP_CODES) == 71  # as many statements as PTB-XL has
    for meanings in (MEANINGS, *EXCEPTIONS.values()):
        for code, meaning in meanings.items():
            assert code.isdigit()
            assert meaning.stated | meaning.open <= SCP_CODES
    # named alike in the Challenge's table and in ours
    for code, scp in {
        "164889003": "AFIB",
        "713427006": "CRBBB",
        "270492004": "1AVB",
        "425419005": "ISCIN",
    }.items():
        assert MEANINGS[code].stated == {scp}
    # an unqualified block may be an incomplete one, and an acute infarction has no site
    assert "IRBBB" in MEANINGS["59118001"].open
    assert not MEANINGS["57054005"].stated


@patient
@given(st.lists(st.text(st.characters(categories=["L", "N", "Zs"]), min_size=1, max_size=9), max_size=5))
def test_dx_lists_what_stands_between_commas(codes: list[str]) -> None:
    clean = tuple(code.strip() for code in codes if code.strip())
    for start in ("#Dx:", "# Dx: ", "#  DX : "):
        assert parse_dx(start + ",".join(codes)) == clean


@patient
@given(st.text(max_size=60))
def test_no_line_breaks_the_parser_of_dx(line: str) -> None:
    found = parse_dx(line)
    assert found is None or all(code and "," not in code for code in found)


def test_a_database_is_known_by_the_letters_of_its_records() -> None:
    assert [database(name) for name in ("JS00001", "A1", "HR06000", "patient_3b")] == [
        "JS",
        "A",
        "HR",
        "patient_3b",
    ]


def test_real_snomed_records(shared: Path, tmp_path: Path) -> None:
    """Of shared/ecg, with the labels written back into the headers: the codes agree with their names."""
    with (shared / "ecg" / "labels.csv").open(newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["database"] in {"chapman_ningbo", "georgia"}]
    for row in rows[::2]:
        base = tmp_path / row["record"]
        base.parent.mkdir(exist_ok=True)
        source = shared / "ecg" / row["record"]
        shutil.copy(f"{source}.dat", base.parent)
        base.with_suffix(".hea").write_text(
            f"{Path(f'{source}.hea').read_text()}# Dx: {row['codes'].replace(';', ',')}\n"
        )
    examples, left_out = read_examples(tmp_path, SPLITS)
    assert len(examples) + sum(left_out.values()) == len(rows[::2])
    assert set(left_out) <= {"no label that we have words for"}
    named = {Path(row["record"]).name: row["names"] for row in rows}
    for example in examples:
        names = named[example.patient]
        assert ("SBRAD" in example.facts.codes) == ("sinus bradycardia" in names)
        assert ("INVT" in example.facts.codes) == ("t wave inversion" in names)
        if "SBRAD" in example.facts.codes:
            assert example.facts.rate_bpm < 65


@pytest.fixture
def table(tmp_path: Path, signals: Signals, write_record: WriteRecord, write_table: WriteTable) -> Path:
    """Two good records of shared/ecg's layout; the test adds a third, "bad"."""
    rows = [{**row, "patient_id": f"p{k}"} for k, row in enumerate(samples()[:2])]
    for row in rows:
        write_record(tmp_path / row["record"], signals[row["record"]])
    write_table(tmp_path / "labels.csv", [*rows, {**samples()[3], "record": "bad", "patient_id": "p3"}])
    return tmp_path / "labels.csv"


def spoil(kind: str, signal: np.ndarray, base: Path, write_record: WriteRecord) -> None:
    signal = signal.copy()
    if kind == "hole":
        signal[4, 100:150] = np.nan
    elif kind == "no sample":
        signal[7] = np.nan
    elif kind == "flat":
        signal[9] = 0.2
    elif kind == "long":
        signal = np.tile(signal, 2)
    elif kind == "short":
        signal = signal[:, :800]
    write_record(base, signal, unit={"uV for mV": "uV", "V for mV": "V"}.get(kind, "mV"))
    header = base.with_name("bad.hea")
    text = header.read_text()
    if kind == "twenty times":
        header.write_text(text.replace("1000/mV", "50/mV"))
    elif kind == "a twentieth":
        header.write_text(text.replace("1000/mV", "20000/mV"))
    elif kind == "lead":
        header.write_text(text.replace(" V3\n", " V33\n"))
    elif kind == "cut":
        base.with_name("bad.dat").write_bytes(base.with_name("bad.dat").read_bytes()[:5000])
    elif kind == "no rate":
        header.write_text(text.replace("bad 12 200 2000", "bad 12"))


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("hole", "record with missing samples (NaN)"),
        ("no sample", "record with missing samples (NaN)"),
        ("flat", "record with a flat lead"),
        ("lead", "record that lacks a lead"),
        ("cut", "unreadable record"),
        ("uV for mV", "record with impossible amplitudes (wrong gain, or no signal)"),
        ("V for mV", "record with impossible amplitudes (wrong gain, or no signal)"),
        ("twenty times", "record with impossible amplitudes (wrong gain, or no signal)"),
        ("a twentieth", "record with impossible amplitudes (wrong gain, or no signal)"),
        ("short", "record shorter than 5 s or longer than 11.5 s"),
        ("long", "record shorter than 5 s or longer than 11.5 s"),
        ("no rate", "record with a doubtful header"),
    ],
)
def test_a_bad_signal_is_counted(
    table: Path, signals: Signals, write_record: WriteRecord, kind: str, reason: str
) -> None:
    spoil("sound", signals["11474"], table.parent / "bad", write_record)
    assert len(read_examples(table, SPLITS)[0]) == 3  # so that what follows is due to the spoiling
    spoil(kind, signals["11474"], table.parent / "bad", write_record)
    examples, left_out = read_examples(table, SPLITS)
    assert (len(examples), left_out) == (2, {reason: 1})


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        ({"codes": "NORM;QQ"}, "label not in the map"),
        ({"superclass": "NORMAL"}, "label not in the map"),
        ({"scheme": "snomed"}, "not coded with SCP statements, or no patient"),
        ({"patient_id": ""}, "not coded with SCP statements, or no patient"),
        ({"record": ""}, "no record named"),
        ({"record": "bad"}, "unreadable record"),
    ],
)
def test_a_bad_row_is_counted(
    table: Path, write_table: WriteTable, cells: dict[str, str], reason: str
) -> None:
    edit(table, 2, write_table, **cells)
    examples, left_out = read_examples(table, SPLITS)
    assert (len(examples), left_out) == (2, {reason: 1})


def test_duplicates_are_refused(
    table: Path, signals: Signals, write_record: WriteRecord, write_table: WriteTable
) -> None:
    first, second = samples()[:2]
    again = {**first, "patient_id": "p0"}
    write_record(table.parent / "copy", signals[first["record"]])

    def read(*rows: dict[str, str]) -> tuple[list[str], dict[str, int]]:
        write_table(table, [{**first, "patient_id": "p0"}, {**second, "patient_id": "p1"}, *rows])
        examples, left_out = read_examples(table, SPLITS)
        return [e.patient for e in examples], left_out

    assert read() == (["p0", "p1"], {})
    assert read(again) == (["p0", "p1"], {"record listed twice": 1})
    assert read({**again, "record": "copy"}) == (["p0", "p1"], {"record listed twice": 1})
    assert read({**again, "codes": "AFIB"}) == (["p1"], {"same signal with different labels": 2})
    for row in ({**again, "patient_id": "p9"}, {**again, "record": "copy", "patient_id": "p9"}):
        assert read(row) == (["p1"], {"same signal under two patients": 2})
    # it is seen also where the two patients stand on different sides and one side is read
    other = next(f"q{k}" for k in range(99) if split(f"q{k}") != split("p0"))
    write_table(table, [again, {**second, "patient_id": "p0"}, {**again, "patient_id": other}])
    assert read_examples(table, (split("p0"),))[1] == {"same signal under two patients": 2}


def test_signals_that_only_begin_alike_are_two(
    table: Path, signals: Signals, write_record: WriteRecord
) -> None:
    signal = signals[samples()[0]["record"]].copy()
    signal[:, 1000:] *= 0.9  # the first 24,000 bytes are those of another patient's record
    write_record(table.parent / "bad", signal)
    assert len(read_examples(table, SPLITS)[0]) == 3


def test_the_layout_is_found_or_its_forms_are_named(table: Path, tmp_path: Path, shared: Path) -> None:
    assert detect(table) == detect(table.parent) == "labels_csv"
    assert detect(shared / "ecg") == "labels_csv"
    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.csv").write_text("a,b\n1,2\n")
    (other / "bytes").write_bytes(b"\xff\xfe")
    for path in (other, other / "notes.csv", other / "bytes", other / "gone"):
        with pytest.raises(UserError, match=r"labels\.csv.*ptbxl_database\.csv.*# Dx.*ECGInstruct"):
            detect(path)
    (other / "ecg.json").write_text("[]")
    assert detect(other) == detect(other / "ecg.json") == "ecginstruct"
    with pytest.raises(UserError, match="pictures and conversations"):
        read_examples(other, SPLITS)


def test_nothing_usable_says_why(table: Path) -> None:
    for path in table.parent.glob("*.dat"):
        path.unlink()
    with pytest.raises(UserError, match=r"No usable record for train .*unreadable record"):
        read_examples(table, SPLITS)


def test_the_split_is_written_down(labels_csv: Path, tmp_path: Path) -> None:
    sides = {side: read_examples(labels_csv, (side,))[0] for side in SPLITS}
    path = tmp_path / "split.json"
    digest = write_split(path, sides)
    assert digest == sha256_file(path) == write_split(path, sides)
    written = json.loads(path.read_text())
    assert written["records"] == dict.fromkeys(SPLITS, 6)
    for side in SPLITS:
        assert collections.Counter(written["patients"][side]) == collections.Counter(
            e.patient for e in sides[side]
        )
        assert all(split(patient) == side for patient in written["patients"][side])
    before = path.read_bytes()
    with pytest.raises(UserError, match="other patients or records"):
        write_split(path, {**sides, "test": sides["test"][1:]})
    with pytest.raises(UserError, match="two sides"):
        write_split(tmp_path / "new.json", {**sides, "test": sides["train"][:1]})
    assert path.read_bytes() == before
    assert not (tmp_path / "new.json").exists()
