"""Read 12-lead ECG records in WFDB form.

The formats themselves are read by the `wfdb` package; here leads are recognised, put in standard
order, converted to millivolt, completed by Einthoven's and Goldberger's relations, and checked.
"""

from __future__ import annotations

import contextlib
import math
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pulse_edge.errors import RecordError

LEADS: Final = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
_CHEST: Final = LEADS[6:]
_MV_PER: Final = {"mv": 1.0, "uv": 1e-3, "µv": 1e-3, "μv": 1e-3, "v": 1e3, "nv": 1e-6}
_SPELLINGS: Final = {lead.lower(): lead for lead in LEADS} | {
    f"{word}{k}": f"V{k}" for word in ("c", "chest", "precordial") for k in range(1, 7)
}
# III, aVR, aVL and aVF as sums of I and II (Einthoven 1913, Goldberger 1942).
_FROM_I_II: Final = {"III": (-1.0, 1.0), "aVR": (-0.5, -0.5), "aVL": (1.0, -0.5), "aVF": (-0.5, 1.0)}
MIN_SECONDS: Final = 1.0
FLAT_MV: Final = 0.005


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
    if not header.is_file():
        raise RecordError(
            f"There is no header {header}. Name a WFDB record, its .hea and signal files in one folder."
        )
    raw = _read(base)
    if raw.p_signal is None or not raw.fs or not math.isfinite(raw.fs) or raw.fs <= 0:
        raise RecordError(f"The record {base} holds no signals or no sampling rate. Export it again.")
    if len(raw.p_signal) < MIN_SECONDS * raw.fs:
        raise RecordError(
            f"The record {base} lasts {len(raw.p_signal) / raw.fs:.2f} s; "
            f"at least {MIN_SECONDS:g} s are needed."
        )
    problems: list[str] = []
    found = _leads(raw, raw.p_signal, problems, base)
    signal = _complete(found, base)
    _inspect(signal, problems)
    comments = tuple(str(line) for line in raw.comments or ())
    return Record(signal, float(raw.fs), base.name, tuple(problems), comments)


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

            raw: _Raw = wfdb.rdrecord(str(base), physical=True)
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
    plain = re.sub(r"^(mdc_ecg_lead_|lead|ecg|ekg)", "", name.strip().lower())
    return _SPELLINGS.get(re.sub(r"[\s_\-+.:]", "", plain))


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
    signal[~np.isfinite(signal)] = np.nan


def _ratio(value: float) -> tuple[int, int]:
    from fractions import Fraction

    ratio = Fraction(value).limit_denominator(1000)
    return ratio.numerator, ratio.denominator
