"""Records: leads, units and rates against arithmetic of this file; damage gives one sentence."""

from __future__ import annotations

import csv
import warnings

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pulse_edge.ecg.leads import LEADS, lead_name
from pulse_edge.ecg.record import Record, read_record
from pulse_edge.errors import RecordError


def wfdb_call(function, *args, **more):
    """Call a function of `wfdb`, whose own use of pandas warns."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import wfdb

        return getattr(wfdb, function)(*args, **more)


FS, SECONDS = 250, 4
STORED = ("I", "II", "V1", "V2", "V3", "V4", "V5", "V6")
SPELLED = {
    "I": ["I", "i", "Lead I", "MDC_ECG_LEAD_I", "ECG I", "DI", "D1", "lead 1"],
    "II": ["ii", "LEAD_II", "DII", "L2"],
    "aVR": ["AVR", "avr", "aVR", "aV-R", "Lead aVR", "MDC_ECG_LEAD_AVR", "ECG Lead aVR"],
    "aVF": ["avf+", "AVF"],
    "V1": ["v1", "V-1", "C1", "chest 1", "Lead V1", "MDC_ECG_LEAD_V1", "ecg_v1"],
    "V6": ["c6", "V6 ", "Precordial 6"],
}


def electrodes(fs=FS, seconds=SECONDS, seed=0):
    """Potentials of nine electrodes in mV: smooth, different, and what every lead is a difference of."""
    rng = np.random.default_rng(seed)
    t = np.arange(round(fs * seconds)) / fs
    names = ("RA", "LA", "LL", "C1", "C2", "C3", "C4", "C5", "C6")
    return {
        name: rng.uniform(0.2, 1) * np.sin(2 * np.pi * rng.uniform(0.7, 9) * t + rng.uniform(0, 6))
        for name in names
    }


def leads_of(e):
    """The 12 leads by their textbook definition from electrodes, not from I and II."""
    wct = (e["RA"] + e["LA"] + e["LL"]) / 3
    limb = {
        "I": e["LA"] - e["RA"],
        "II": e["LL"] - e["RA"],
        "III": e["LL"] - e["LA"],
        "aVR": e["RA"] - (e["LA"] + e["LL"]) / 2,
        "aVL": e["LA"] - (e["RA"] + e["LL"]) / 2,
        "aVF": e["LL"] - (e["RA"] + e["LA"]) / 2,
    }
    return limb | {f"V{k}": e[f"C{k}"] - wct for k in range(1, 7)}


def write(folder, channels, fs=FS, units="mV", fmt="16", name="rec", **more):
    """Write a record of {channel name: millivolt}, stored in ``units``."""
    factor = {"mV": 1.0, "uV": 1e3, "V": 1e-3}[units]
    wfdb_call(
        "wrsamp",
        name,
        fs=fs,
        units=[units] * len(channels),
        sig_name=list(channels),
        p_signal=np.stack(list(channels.values()), axis=1) * factor,
        fmt=[fmt] * len(channels),
        write_dir=str(folder),
        **more,
    )
    return folder / name


@pytest.fixture
def truth():
    return leads_of(electrodes())


def close(record, truth, tolerance=1e-3):
    assert record.signal.shape == (12, len(truth["I"]))
    assert record.signal.dtype == np.float32
    np.testing.assert_allclose(record.signal, np.stack([truth[lead] for lead in LEADS]), atol=tolerance)


# --- leads --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lead", "name"), [(lead, name) for lead, names in SPELLED.items() for name in names]
)
def test_spellings(lead, name):
    assert lead_name(name) == lead


@pytest.mark.parametrize(
    "name",
    ["", "V7", "V3R", "X", "RESP", "pleth", "-aVR", "aVR-", "V", "IV", "ECG", "1", "aVQ", "MLII"]
    + ["I-II", "II - I", "I+I", "I I", "V1-V2"],
)
def test_other_channels_are_no_leads(name):
    assert lead_name(name) is None


@given(st.text(max_size=40))
def test_any_name_is_a_lead_or_none(name):
    assert lead_name(name) in (*LEADS, None)


@pytest.mark.parametrize("seed", range(3))
def test_any_order(tmp_path, truth, seed):
    order = np.random.default_rng(seed).permutation(LEADS)
    record = read_record(write(tmp_path, {str(lead): truth[str(lead)] for lead in order}))
    close(record, truth)
    assert record.problems == ()
    assert (record.fs, record.duration, record.name) == (FS, SECONDS, "rec")


def test_spelled_otherwise(tmp_path, truth):
    names = {lead: SPELLED[lead][-1].strip() if lead in SPELLED else lead.upper() for lead in LEADS}
    close(read_record(write(tmp_path, {names[lead]: truth[lead] for lead in LEADS})), truth)


def test_eight_stored_leads_give_twelve(tmp_path, truth):
    close(read_record(write(tmp_path, {lead: truth[lead] for lead in STORED})), truth)


@pytest.mark.parametrize("pair", [(a, b) for k, a in enumerate(LEADS[:6]) for b in LEADS[k + 1 : 6]])
def test_any_two_limb_leads_give_the_others(tmp_path, truth, pair):
    close(read_record(write(tmp_path, {lead: truth[lead] for lead in (*pair, *LEADS[6:])})), truth, 2e-3)


@pytest.mark.parametrize("missing", ["V1", "V4", "V6"])
def test_a_missing_chest_lead_is_named(tmp_path, truth, missing):
    path = write(tmp_path, {lead: truth[lead] for lead in LEADS if lead != missing})
    with pytest.raises(RecordError, match=f"lacks lead {missing},"):
        read_record(path)


def test_one_limb_lead_is_too_few(tmp_path, truth):
    with pytest.raises(RecordError, match="lacks lead I, III, aVR, aVL, aVF,"):
        read_record(write(tmp_path, {lead: truth[lead] for lead in ("II", *LEADS[6:])}))


def test_other_channels_are_ignored_and_told(tmp_path, truth):
    record = read_record(write(tmp_path, {"RESP": truth["V2"] * 0 + 9, **truth, "V3R": truth["V3"]}))
    close(record, truth)
    assert [problem.split("'")[1] for problem in record.problems] == ["RESP", "V3R"]


def test_a_lead_stored_twice_is_told(tmp_path, truth):
    record = read_record(write(tmp_path, {**truth, "v2": truth["V2"] * 0 + 1}))
    close(record, truth)
    assert record.problems == ("Lead V2 is stored twice; the first was taken.",)


# --- units, rates and formats -------------------------------------------------------------------


@pytest.mark.parametrize("units", ["mV", "uV", "V"])
def test_units(tmp_path, truth, units):
    close(read_record(write(tmp_path, truth, units=units)), truth)


def test_channels_may_differ_in_unit_and_gain(tmp_path, truth):
    counts = np.stack([np.round(truth[lead] * 400) for lead in LEADS], axis=1).astype("<i2")
    counts[:, 6:] //= 2  # the chest leads are stored with half the gain, in microvolt, and an offset
    counts[:, 6:] += 100
    (tmp_path / "r.dat").write_bytes(counts.tobytes())
    lines = [f"r 12 {FS} {len(counts)}"]
    lines += [
        f"r.dat 16 {'400(0)/mV' if k < 6 else '0.2(100)/uV'} 16 0 0 0 0 {lead}"
        for k, lead in enumerate(LEADS)
    ]
    (tmp_path / "r.hea").write_text("\n".join(lines) + "\n# age: 60\n")
    record = read_record(tmp_path / "r")
    close(record, truth, 6e-3)
    assert record.comments == ("age: 60",)


def test_a_unit_that_is_no_voltage_is_refused(tmp_path, truth):
    path = write(tmp_path, truth)
    header = path.with_suffix(".hea")
    header.write_text(header.read_text().replace("/mV", "/mmHg"))
    with pytest.raises(RecordError, match="'mmHg', which is no voltage"):
        read_record(path)


def rewrite(path, *changes):
    """Replace pieces of a header, which is then written in Latin-1: one byte for each letter."""
    header = path.with_suffix(".hea")
    text = header.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    header.write_bytes(text.encode("latin-1"))
    return path


@pytest.mark.parametrize("letter", ["\xb5", "\xc2\xb5"])  # Latin-1 and UTF-8
def test_a_micro_sign_is_refused_since_wfdb_would_drop_it(tmp_path, truth, letter):
    path = rewrite(write(tmp_path, truth, units="uV"), ("/uV", f"/{letter}V"))
    with pytest.raises(RecordError, match=r"letters outside ASCII.*Write uV for microvolt"):
        read_record(path)


def test_comments_may_hold_any_letter(tmp_path, truth):
    path = write(tmp_path, truth)
    with path.with_suffix(".hea").open("ab") as stream:
        stream.write("# M\u00fcller\n".encode())
    close(read_record(path), truth)


def calibrated(folder, gain):
    """A record of counts, 200 to a millivolt, whose header says ``gain``; and its truth."""
    truth = leads_of(electrodes())
    counts = np.round(np.stack([truth[lead] for lead in LEADS], axis=1) * 200).astype("<i2")
    (folder / "r.dat").write_bytes(counts.tobytes())
    lines = [f"r 12 {FS} {len(counts)}", *(f"r.dat 16 {gain} 16 0 0 0 0 {lead}" for lead in LEADS)]
    (folder / "r.hea").write_text("\n".join(lines) + "\n")
    return folder / "r", truth


@pytest.mark.parametrize("gain", ["0", "0(0)/mV", "0.0/mV", "(0)/mV", "1e-300/mV", "1e999/mV", "1..2/mV"])
def test_an_unusable_gain_is_refused(tmp_path, gain):
    path, _ = calibrated(tmp_path, gain)
    with pytest.raises(RecordError, match=r"Lead I in .* has the gain .*200/mV"):
        read_record(path)


def test_an_ignored_channel_needs_no_gain(tmp_path):
    path, truth = calibrated(tmp_path, "200/mV")
    header = path.with_suffix(".hea")
    data = np.fromfile(path.with_suffix(".dat"), "<i2").reshape(-1, 12)
    np.concatenate([data, data[:, :1]], axis=1).tofile(path.with_suffix(".dat"))
    header.write_text(header.read_text().replace("r 12 ", "r 13 ") + "r.dat 16 0 16 0 0 0 0 RESP\n")
    close(read_record(path), truth, 3e-3)


@pytest.mark.parametrize("gain", ["200", "200(0)", "2e2"])
def test_no_unit_means_millivolt_and_is_told(tmp_path, gain):
    path, truth = calibrated(tmp_path, gain)
    record = read_record(path)
    close(record, truth, 3e-3)
    assert record.problems == (
        f"The header gives no unit for lead {', '.join(LEADS)}; the format's default, mV, was taken.",
    )


def test_a_negative_gain_turns_the_signal(tmp_path):
    path, truth = calibrated(tmp_path, "-200(0)/mV")
    close(read_record(path), {lead: -row for lead, row in truth.items()}, 3e-3)


def test_channels_of_several_rates(tmp_path):
    """Frames of 10 ms: leads of 1,000 Hz, V6 of 500 Hz and a slow channel. None is averaged."""
    truth = leads_of(electrodes(1000))
    truth["V1"] = truth["V1"] + 0.5 * np.sin(2 * np.pi * 150 * np.arange(4000) / 1000)  # averaging spoils it
    parts = [truth[lead].reshape(400, 10) for lead in LEADS[:11]]
    parts += [truth["V6"].reshape(400, 10)[:, ::2], np.zeros((400, 1))]
    (tmp_path / "r.dat").write_bytes(np.round(np.concatenate(parts, axis=1) * 1000).astype("<i2").tobytes())
    counts = [10] * 11 + [5, 1]
    lines = [
        f"r.dat 16x{n} 1000/mV 16 0 0 0 0 {name}" for n, name in zip(counts, (*LEADS, "RESP"), strict=True)
    ]
    (tmp_path / "r.hea").write_text("\n".join(["r 13 100 400", *lines]) + "\n")
    record = read_record(tmp_path / "r")
    assert record.fs == 1000
    np.testing.assert_allclose(record.signal[:11], np.stack([truth[lead] for lead in LEADS[:11]]), atol=1e-3)
    np.testing.assert_allclose(record.signal[11, 50:-50], truth["V6"][50:-50], atol=5e-3)
    assert "Lead V6 is stored at 500 Hz, others at 1000 Hz." in record.problems


@pytest.mark.parametrize("fs", [50, 128, 257, 360, 500, 1000, 999.5])
def test_sampling_rates(tmp_path, fs):
    truth = leads_of(electrodes(fs))
    record = read_record(write(tmp_path, truth, fs=fs))
    assert record.fs == fs
    close(record, truth)


@pytest.mark.parametrize("fmt", ["16", "24", "32", "212", "516", "524"])
def test_formats(tmp_path, truth, fmt):
    close(read_record(write(tmp_path, truth, fmt=fmt)), truth, 2.5e-3 if fmt == "212" else 1e-3)


@pytest.mark.parametrize("suffix", ["", ".hea", ".dat"])
def test_the_path_may_name_either_file(tmp_path, truth, suffix):
    path = write(tmp_path, truth)
    assert read_record(str(path) + suffix).name == "rec"


def test_no_rate_means_the_formats_default_and_is_told(tmp_path, truth):
    header = write(tmp_path, truth).with_suffix(".hea")
    header.write_text(header.read_text().replace(f"rec 12 {FS} {FS * SECONDS}", "rec 12"))
    record = read_record(tmp_path / "rec")
    assert record.fs == 250
    assert any("no sampling rate" in problem for problem in record.problems)


@pytest.mark.parametrize("fs", ["0", "-250", "1e-9", "0.5", "49", "1e9", "nan", "inf", "2..5", "2S0"])
def test_an_impossible_rate_is_refused(tmp_path, truth, fs):
    header = write(tmp_path, truth).with_suffix(".hea")
    header.write_text(header.read_text().replace(f"rec 12 {FS} ", f"rec 12 {fs} "))
    with pytest.raises(RecordError, match=r"sampling rate|first line"):
        read_record(tmp_path / "rec")


# --- several segments ---------------------------------------------------------------------------


def segments(folder, truth, units=("mV", "mV")):
    """Two halves as records of their own, and a master header: as one layout or with a layout segment."""
    half = len(truth["I"]) // 2
    for k, unit in enumerate(units):
        part = slice(k * half, (k + 1) * half)
        write(folder, {lead: row[part] for lead, row in truth.items()}, units=unit, name=f"s{k}")
    (folder / "fixed.hea").write_text(f"fixed/2 12 {FS} {2 * half}\ns0 {half}\ns1 {half}\n")
    layout = [f"layout 12 {FS} 0", *(f"~ 0 200/mV 16 0 0 0 0 {lead}" for lead in LEADS)]
    (folder / "layout.hea").write_text("\n".join(layout) + "\n")
    gap = f"variable/4 12 {FS} {2 * half + 50}\nlayout 0\ns0 {half}\n~ 50\ns1 {half}\n"
    (folder / "variable.hea").write_text(gap)
    return half


def test_segments_are_joined(tmp_path, truth):
    half = segments(tmp_path, truth)
    close(read_record(tmp_path / "fixed"), truth)
    record = read_record(tmp_path / "variable")
    expected = np.stack([truth[lead] for lead in LEADS])
    np.testing.assert_allclose(record.signal[:, :half], expected[:, :half], atol=1e-3)
    np.testing.assert_allclose(record.signal[:, half + 50 :], expected[:, half:], atol=1e-3)
    assert np.isnan(record.signal[:, half : half + 50]).all()
    assert record.problems[0] == f"Lead I has 50 missing samples of {2 * half + 50}."


@pytest.mark.parametrize("name", ["fixed", "variable"])
def test_a_unit_that_changes_between_segments_is_refused(tmp_path, truth, name):
    segments(tmp_path, truth, ("mV", "uV"))
    with pytest.raises(RecordError, match="changes its unit between segments"):
        read_record(tmp_path / name)


def test_a_missing_segment_is_named(tmp_path, truth):
    segments(tmp_path, truth)
    (tmp_path / "s1.hea").unlink()
    with pytest.raises(RecordError, match=r"not there \(s1\.hea\)"):
        read_record(tmp_path / "fixed")


def test_a_record_that_is_its_own_segment_is_refused(tmp_path):
    (tmp_path / "r.hea").write_text(f"r/2 12 {FS} 2000\nr 1000\nr 1000\n")
    with pytest.raises(RecordError, match="damaged"):
        read_record(tmp_path / "r")


# --- what is wrong but readable -----------------------------------------------------------------


def test_missing_and_flat_samples_are_reported(tmp_path, truth):
    channels = {lead: truth[lead].copy() for lead in LEADS}
    channels["V2"][10:35] = np.nan
    channels["V5"][:] = 0.25
    path = write(tmp_path, channels)
    counts = np.fromfile(path.with_suffix(".dat"), "<i2").reshape(-1, 12)
    counts[:, LEADS.index("V3")] = -32768  # format 16's mark of a missing sample
    counts.tofile(path.with_suffix(".dat"))
    record = read_record(path)
    assert record.problems == (
        "Lead V2 has 25 missing samples of 1000.",
        "Lead V3 has no valid sample.",
        "Lead V5 is flat.",
    )
    assert np.isnan(record.signal[7]).nonzero()[0].tolist() == list(range(10, 35))
    assert np.isnan(record.signal[8]).all()


def test_missing_samples_spread_to_derived_leads_only_where_they_are(tmp_path, truth):
    channels = {lead: truth[lead].copy() for lead in ("III", "aVR", *LEADS[6:])}
    channels["III"][100:103] = np.nan
    record = read_record(write(tmp_path, channels))
    assert len(record.problems) == 5  # every limb lead but aVR
    expected = np.zeros(len(truth["I"]), bool)
    expected[100:103] = True
    for k in (0, 1, 2, 4, 5):
        np.testing.assert_array_equal(np.isnan(record.signal[k]), expected)
    np.testing.assert_allclose(record.signal[0][~expected], truth["I"][~expected], atol=2e-3)


def test_a_wrong_gain_is_told(tmp_path, truth):
    record = read_record(write(tmp_path, {**truth, "V4": truth["V4"] * 1000}))
    assert record.problems == ("Lead V4 exceeds 50 mV; the header's gain or unit may be wrong.",)


def test_no_valid_sample_at_all_is_refused(tmp_path):
    path, _ = calibrated(tmp_path, "200/mV")
    np.full(12 * FS * SECONDS, -32768, "<i2").tofile(path.with_suffix(".dat"))
    with pytest.raises(RecordError, match="no valid sample in any lead"):
        read_record(path)


# --- resampling ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("old", "new"), [(500, 200), (200, 500), (257, 200), (1000, 50), (360, 361)])
def test_resampling_keeps_a_sine(old, new):
    t = np.arange(old * 6) / old
    record = Record(np.tile(np.sin(2 * np.pi * 3 * t), (12, 1)).astype(np.float32), float(old))
    other = record.resampled(new)
    assert other.fs == pytest.approx(new)
    assert other.duration == pytest.approx(6, abs=1.01 / new)
    inner = slice(round(0.5 * new), round(5.5 * new))  # the filter has no past and no future at the ends
    at = (np.arange(other.signal.shape[1]) / other.fs)[inner]
    np.testing.assert_allclose(other.signal[5][inner], np.sin(2 * np.pi * 3 * at), atol=2e-3)


def test_resampling_does_not_alias():
    t = np.arange(6000) / 1000
    record = Record(np.tile(np.sin(2 * np.pi * 240 * t), (12, 1)).astype(np.float32), 1000.0)
    assert np.abs(record.resampled(100).signal[:, 50:-50]).max() < 0.01


@pytest.mark.parametrize(("old", "new"), [(500, 200), (200, 500)])
def test_resampling_keeps_gaps_as_gaps(old, new):
    """A gap stays where it was, and neither it nor an offset disturbs what lies around it or at the ends."""
    t = np.arange(old * 4) / old
    signal = np.tile(2 + 0.1 * np.sin(2 * np.pi * 2 * t), (12, 1)).astype(np.float32)
    signal[3, old : 2 * old] = np.nan
    signal[7] = np.nan
    given_in = signal.copy()
    other = Record(signal, float(old)).resampled(new)
    np.testing.assert_array_equal(signal, given_in)
    at = np.arange(other.signal.shape[1]) / new
    gap = np.isnan(other.signal[3])
    assert (abs(gap.nonzero()[0][0] / new - 1), abs(gap.nonzero()[0][-1] / new - 2)) < (1.5 / new, 1.5 / new)
    assert gap.sum() == pytest.approx(new, abs=2)
    assert np.isnan(other.signal[7]).all()
    truth = 2 + 0.1 * np.sin(2 * np.pi * 2 * at)
    np.testing.assert_allclose(other.signal[0], truth, atol=0.02)
    np.testing.assert_allclose(other.signal[3][~gap], truth[~gap], atol=0.02)


# --- real records -------------------------------------------------------------------------------


def test_real_records(shared):
    with (shared / "ecg" / "labels.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))[::150]
    assert len({row["database"] for row in rows}) >= 1
    for row in rows:
        path = shared / "ecg" / row["record"]
        record = read_record(path)
        stored = wfdb_call("rdrecord", str(path))
        assert record.signal.shape == (12, 2000)
        assert record.fs == 200
        for k, lead in enumerate(stored.sig_name):
            np.testing.assert_allclose(record.signal[LEADS.index(lead)], stored.p_signal[:, k], atol=1e-5)
        i, ii, iii, avr, avl, avf = record.signal[:6].astype(np.float64)
        np.testing.assert_allclose(i + iii, ii, atol=1e-5)  # Einthoven's law
        np.testing.assert_allclose(avr + avl + avf, 0, atol=1e-5)  # Goldberger's leads sum to zero
        np.testing.assert_allclose(avl - avr, 1.5 * i, atol=1e-5)


# --- damage -------------------------------------------------------------------------------------


def test_no_header(tmp_path):
    with pytest.raises(RecordError, match=r"There is no header .*nothing\.hea"):
        read_record(tmp_path / "nothing")


def test_no_signal_file(tmp_path, truth):
    path = write(tmp_path, truth)
    path.with_suffix(".dat").unlink()
    with pytest.raises(RecordError, match=r"not there \(rec\.dat\)"):
        read_record(path)


@pytest.mark.parametrize("fmt", ["16", "212", "24", "516"])
@pytest.mark.parametrize("kept", [0.0, 0.4, 0.999])
def test_a_truncated_signal_file(tmp_path, truth, fmt, kept):
    path = write(tmp_path, {lead: truth[lead] for lead in STORED}, fmt=fmt)
    data = path.with_suffix(".dat").read_bytes()
    path.with_suffix(".dat").write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(RecordError, match="damaged"):
        read_record(path)


@pytest.mark.parametrize("samples", [1, 100])
def test_too_short(tmp_path, samples):
    truth = {lead: row[:samples] for lead, row in leads_of(electrodes()).items()}
    with pytest.raises(RecordError, match="at least 1 s"):
        read_record(write(tmp_path, truth))


@pytest.mark.parametrize(
    "header",
    [
        "",
        "\n\n",
        f"rec 12 {FS} 1000\nrec.dat 16 200/mV 16 0 0 0 0 I\n",
        "# only a comment\n",
        "rec 0 250 0\n",
        "rec\n",
        "rec 12 250 1000\n",
    ],
)
def test_a_header_without_content(tmp_path, header):
    (tmp_path / "rec.hea").write_text(header)
    with pytest.raises(RecordError):
        read_record(tmp_path / "rec")


def test_a_zero_length_record(tmp_path, truth):
    header = write(tmp_path, truth).with_suffix(".hea")
    header.write_text(header.read_text().replace(f" {FS} {FS * SECONDS}", f" {FS} 0"))
    with pytest.raises(RecordError):
        read_record(tmp_path / "rec")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (f" {FS * SECONDS}\n", " 2000000000\n"),
        ("rec.dat 16 ", "rec.dat 16x100000000 "),
        ("rec.dat 16 ", "rec.dat 16:1000000000 "),
    ],
)
def test_an_absurd_length_is_refused_before_it_is_allocated(tmp_path, truth, old, new):
    header = write(tmp_path, truth).with_suffix(".hea")
    header.write_text(header.read_text().replace(old, new))
    with pytest.raises(RecordError, match="announces"):
        read_record(tmp_path / "rec")


@pytest.fixture(scope="session")
def sound(tmp_path_factory):
    path = write(tmp_path_factory.mktemp("fuzz"), {lead: leads_of(electrodes())[lead] for lead in STORED})
    return path, path.with_suffix(".hea").read_bytes()


def edits():
    """Changes of a header: replace, insert or cut, at a place given as a share of its length."""
    piece = st.one_of(
        st.binary(min_size=1, max_size=6), st.sampled_from([b"0", b"-1", b"1e300", b"\n", b" ", b"/"])
    )
    return st.lists(st.tuples(st.sampled_from("ric"), st.floats(0, 1), piece), min_size=1, max_size=4)


def damage(data, changes):
    for kind, place, piece in changes:
        at = int(place * len(data))
        data = data[:at] + (b"" if kind == "c" else piece) + data[at + (0 if kind == "i" else len(piece)) :]
    return data


@settings(max_examples=120, deadline=4000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=edits())
@example(changes=[("r", 0.0, b"\xff\xfe")])
@example(changes=[("i", 0.1, b"e300")])
def test_a_damaged_header_is_read_or_refused(sound, changes):
    path, header = sound
    path.with_suffix(".hea").write_bytes(damage(header, changes))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            record = read_record(path)
        except RecordError:
            return
    assert record.signal.shape[0] == 12
    assert not np.isinf(record.signal).any()


@settings(max_examples=60, deadline=4000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(header=st.binary(max_size=300))
def test_any_bytes_as_a_header(sound, header):
    path, _ = sound
    path.with_suffix(".hea").write_bytes(header)
    with pytest.raises(RecordError):
        read_record(path)
