"""Read 12-lead ECG records in WFDB form.

The formats themselves are read by the `wfdb` package; here leads are recognised, put in standard
order, converted to millivolt, completed by Einthoven's and Goldberger's relations, and checked.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pulse_edge.errors import RecordError

LEADS: Final = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
_CHEST: Final = LEADS[6:]
_MV_PER: Final = {"mv": 1.0, "uv": 1e-3, "µv": 1e-3, "μv": 1e-3, "v": 1e3, "nv": 1e-6}
_SPELLINGS: Final = (
    {lead.lower(): lead for lead in LEADS}
    | {f"{word}{k}": f"V{k}" for word in ("c", "chest", "precordial") for k in range(1, 7)}
    | {f"d{lead.lower()}": lead for lead in LEADS[:3]}
    | {f"{word}{k}": LEADS[k - 1] for word in ("d", "l", "lead") for k in (1, 2, 3)}
)
# III, aVR, aVL and aVF as sums of I and II (Einthoven 1913, Goldberger 1942).
_FROM_I_II: Final = {"III": (-1.0, 1.0), "aVR": (-0.5, -0.5), "aVL": (1.0, -0.5), "aVF": (-0.5, 1.0)}
MIN_SECONDS: Final = 1.0
MIN_FS, MAX_FS = 50.0, 100_000.0  # below, a QRS is a few samples; above, the header is damaged
MAX_VALUES: Final = 100_000_000  # of all channels together: 12 leads at 500 Hz for over four hours
FLAT_MV: Final = 0.005
IMPLAUSIBLE_MV: Final = 50.0
# name[/segments] signals [rate[/counter[(base)]] [samples [time [date]]]], by the WFDB header's definition.
_RECORD_LINE: Final = re.compile(
    r"\S+\s+\d+(?:\s+(?P<fs>[0-9.]+(?:e[+-]?\d+)?)(?:/\S+)?"
    r"(?:\s+\d+(?:\s+[\d:.]+(?:\s+[\d/]+)?)?)?)?\s*",
    re.I,
)


@dataclass(frozen=True)
class Record:
    """A 12-lead ECG.

    Attributes:
        signal: float32 [12, n], millivolt, rows in the order of :data:`LEADS`; samples that the file
            marks as missing are NaN.
        fs: sampling rate in hertz.
        name: of the record, for messages.
        problems: sentences about what is wrong but readable: NaN or flat leads, ignored channels.
        comments: the header's ``#`` lines, without the mark.
    """

    signal: NDArray[np.float32]
    fs: float
    name: str = ""
    problems: tuple[str, ...] = ()
    comments: tuple[str, ...] = ()

    @property
    def duration(self) -> float:
        """Seconds."""
        return float(self.signal.shape[1] / self.fs)

    def resampled(self, fs: float) -> Record:
        """Return the record at another sampling rate (polyphase filter, anti-aliased; NaN counts as 0)."""
        from scipy.signal import resample_poly

        up, down = _ratio(fs / self.fs)
        signal = resample_poly(np.nan_to_num(self.signal), up, down, axis=1).astype(np.float32)
        return replace(self, signal=signal, fs=self.fs * up / down)


def read_record(path: str | PathLike[str]) -> Record:
    """Read a WFDB record.

    Args:
        path: with or without ``.hea`` or ``.dat``.

    Raises:
        RecordError: missing, damaged or truncated, shorter than a second, or a lead is absent and
            cannot be derived.
    """
    base = Path(path)
    if base.suffix in {".hea", ".dat"}:
        base = base.with_suffix("")
    header = base.with_name(base.name + ".hea")
    if not os.path.isfile(header):  # unlike Path.is_file, quiet about impossible names
        raise RecordError(
            f"There is no header {header}. Name a WFDB record, its .hea and signal files in one folder."
        )
    problems: list[str] = []
    _check_rate(header, problems)
    raw = _read(base)
    if raw.p_signal is None or not raw.fs:
        raise RecordError(f"The record {base} holds no signals or no sampling rate. Export it again.")
    if len(raw.p_signal) < MIN_SECONDS * raw.fs:
        raise RecordError(
            f"The record {base} lasts {len(raw.p_signal) / raw.fs:.2f} s; "
            f"at least {MIN_SECONDS:g} s are needed."
        )
    with _quiet():  # a damaged gain may overflow; what is not finite is reported as missing
        found = _leads(raw, raw.p_signal, problems, base)
        signal = _complete(found, base)
        _inspect(signal, problems)
    comments = tuple(str(line) for line in raw.comments or ())
    return Record(signal, float(raw.fs), base.name, tuple(problems), comments)


def _check_rate(header: Path, problems: list[str]) -> None:
    """Read the rate ourselves: `wfdb` takes 250 Hz in silence when it does not understand the field."""
    try:
        lines = header.read_bytes().decode("utf-8", "replace").splitlines()
    except OSError as error:
        raise RecordError(
            f"The header {header} cannot be read ({error.strerror}). Check its rights."
        ) from error
    line = next((line.strip() for line in lines if line.strip() and not line.strip().startswith("#")), "")
    match = _RECORD_LINE.fullmatch(line)
    if match is None:
        raise RecordError(f"The first line of {header} is damaged: {line[:80]!r}. Copy the record again.")
    if match["fs"] is None:
        problems.append("The header gives no sampling rate; the format's default of 250 Hz was taken.")
        return
    try:
        fs = float(match["fs"])
    except ValueError:
        fs = math.nan
    if not MIN_FS <= fs <= MAX_FS:
        raise RecordError(
            f"The sampling rate in {header} is {match['fs']} Hz; an ECG has {MIN_FS:g} to {MAX_FS:g}. "
            "Correct the header or export the record again."
        )


class _Raw:
    """The few attributes of wfdb.Record that are used, for the type checker."""

    p_signal: NDArray[np.float64] | None
    fs: float
    sig_name: list[str]
    units: list[str]
    adc_gain: list[float]
    comments: list[str]


def _read(base: Path) -> _Raw:
    try:
        with _quiet():
            import wfdb  # warns of its own use of pandas

            _check_size(base, wfdb.rdheader(str(base)))
            raw: _Raw = wfdb.rdrecord(str(base), physical=True)
    except RecordError:
        raise
    except FileNotFoundError as error:
        raise RecordError(
            f"The record {base} names a signal file that is not there ({Path(str(error.filename)).name}). "
            "Copy it beside the header."
        ) from error
    except Exception as error:  # wfdb raises whatever its parsing stumbles over
        reason = " ".join(str(error).split()) or type(error).__name__
        raise RecordError(
            f"The record {base} cannot be read: {reason[:200]}. "
            "Its header or signal file is damaged; copy it again."
        ) from error
    return raw


def _check_size(base: Path, header: Any) -> None:
    """Refuse a length that only a damaged header has, before anything of that size is allocated."""
    frames = max([header.sig_len or 0, *(skew or 0 for skew in getattr(header, "skew", None) or [])])
    each = sum(count or 1 for count in getattr(header, "samps_per_frame", None) or [1])
    if frames * each > MAX_VALUES:
        raise RecordError(
            f"The header of {base} announces {frames * each} samples, more than {MAX_VALUES}. "
            "It is damaged, or the record must be cut to the minutes of interest."
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        yield


def _leads(
    raw: _Raw, signals: NDArray[np.float64], problems: list[str], base: Path
) -> dict[str, NDArray[np.float64]]:
    found: dict[str, NDArray[np.float64]] = {}
    for k, name in enumerate(raw.sig_name or []):
        lead = lead_name(str(name))
        if lead is None:
            problems.append(f"Channel {name!r} is not one of the 12 leads and was ignored.")
            continue
        if lead in found:
            problems.append(f"Lead {lead} is stored twice; the first was taken.")
            continue
        unit = str(raw.units[k] or "mV").strip().lower()
        if unit not in _MV_PER:
            raise RecordError(
                f"Lead {lead} of {base} is in {raw.units[k]!r}, which is no voltage. "
                "Use mV, uV or V in the header."
            )
        found[lead] = signals[:, k] * _MV_PER[unit]
    return found


def lead_name(name: str) -> str | None:
    """Return the standard name of a lead in any common spelling, or None.

    Known are, for instance, ``"avr"``, ``"Lead V-1"`` and ``"MDC_ECG_LEAD_II"``.
    """
    if name.strip().startswith("-"):
        return None  # "-aVR" of the Cabrera sequence is the inverted lead
    plain = re.sub(r"[\s_\-+.:]", "", name.lower())
    return _SPELLINGS.get(plain) or _SPELLINGS.get(re.sub(r"^(mdc|ecg|ekg|lead)+", "", plain))


def _complete(found: dict[str, NDArray[np.float64]], base: Path) -> NDArray[np.float32]:
    missing = [lead for lead in _CHEST if lead not in found]
    limbs = [lead for lead in LEADS[:6] if lead in found]
    if missing or len(limbs) < 2:
        absent = missing + ([lead for lead in LEADS[:6] if lead not in found] if len(limbs) < 2 else [])
        raise RecordError(
            f"The record {base} lacks lead {', '.join(absent)}, which cannot be derived from the others. "
            "A 12-lead ECG is needed."
        )
    if "I" not in found or "II" not in found:
        # Any two limb leads determine I and II, since all six lie in one plane.
        known = [lead for lead in limbs if lead not in ("I", "II")]
        known = [lead for lead in ("I", "II") if lead in found] + known
        rows = [{"I": (1.0, 0.0), "II": (0.0, 1.0), **_FROM_I_II}[lead] for lead in known[:2]]
        both = np.linalg.solve(np.array(rows), np.stack([found[lead] for lead in known[:2]]))
        found = {"I": both[0], "II": both[1], **found}
    for lead, (a, b) in _FROM_I_II.items():
        if lead not in found:
            found[lead] = a * found["I"] + b * found["II"]
    return np.stack([found[lead] for lead in LEADS]).astype(np.float32)


def _inspect(signal: NDArray[np.float32], problems: list[str]) -> None:
    for lead, row in zip(LEADS, signal, strict=True):
        good = row[np.isfinite(row)]
        if not len(good):
            problems.append(f"Lead {lead} has no valid sample.")
        elif len(good) < len(row):
            problems.append(f"Lead {lead} has {len(row) - len(good)} missing samples of {len(row)}.")
        if len(good) and float(good.max() - good.min()) < FLAT_MV:
            problems.append(f"Lead {lead} is flat.")
        if len(good) and float(np.abs(good).max()) > IMPLAUSIBLE_MV:
            problems.append(
                f"Lead {lead} exceeds {IMPLAUSIBLE_MV:g} mV; the header's gain or unit may be wrong."
            )
    signal[~np.isfinite(signal)] = np.nan


def _ratio(value: float) -> tuple[int, int]:
    from fractions import Fraction

    ratio = Fraction(value).limit_denominator(1000)
    return ratio.numerator, ratio.denominator
