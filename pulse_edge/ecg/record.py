"""Read 12-lead ECG records in WFDB form.

The formats themselves are read by the `wfdb` package; here leads are recognised, put in standard
order, converted to millivolt, completed by Einthoven's and Goldberger's relations, and checked.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from os import PathLike
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pulse_edge.ecg.header import check_header
from pulse_edge.ecg.leads import LEADS as LEADS  # named here too: who reads records orders by them
from pulse_edge.ecg.leads import complete, lead_name, underivable
from pulse_edge.errors import RecordError

_MV_PER: Final = {"mv": 1.0, "uv": 1e-3, "v": 1e3, "nv": 1e-6}
MIN_SECONDS: Final = 1.0
MIN_FS, MAX_FS = 50.0, 100_000.0  # below, a QRS is a few samples; above, the header is damaged
FLAT_MV: Final = 0.005
IMPLAUSIBLE_MV: Final = 50.0


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
        """Return the record at another sampling rate; missing samples stay missing."""
        ratio = Fraction(fs / self.fs).limit_denominator(1000)
        signal = _resample(self.signal, ratio).astype(np.float32)
        return replace(self, signal=signal, fs=self.fs * ratio.numerator / ratio.denominator)


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
    header = base.parent / f"{base.name}.hea"  # with_name would not take a path without a name
    if not os.path.isfile(header):  # unlike Path.is_file, quiet about impossible names
        raise RecordError(
            f"There is no header {header}. Name a WFDB record, its .hea and signal files in one folder."
        )
    problems = check_header(header)
    raw = _read(base)
    with _quiet():
        found, fs = _leads(raw, problems, base)
        missing = underivable(found)
        if missing:
            raise RecordError(
                f"The record {base} lacks lead {', '.join(missing)}, which cannot be derived "
                "from the others. A 12-lead ECG is needed."
            )
        signal = complete(found)
        _inspect(signal, problems)
    if signal.shape[1] < MIN_SECONDS * fs:
        raise RecordError(
            f"The record {base} lasts {signal.shape[1] / fs:.2f} s; at least {MIN_SECONDS:g} s are needed."
        )
    if np.isnan(signal).all():
        raise RecordError(f"The record {base} has no valid sample in any lead. Export it again.")
    return Record(signal, fs, base.name, tuple(problems), tuple(str(line) for line in raw.comments or ()))


class _Raw:
    """The few attributes of wfdb.Record that are used, for the type checker."""

    e_p_signal: list[NDArray[np.float64]] | None
    samps_per_frame: list[int]
    fs: float
    sig_name: list[str]
    units: list[str] | None
    comments: list[str]


def _read(base: Path) -> _Raw:
    try:
        with _quiet():
            import wfdb  # warns of its own use of pandas

            # Smoothed frames would average a lead down to the rate of the slowest channel.
            raw: _Raw = wfdb.rdrecord(str(base), physical=True, smooth_frames=False)
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


def _leads(raw: _Raw, problems: list[str], base: Path) -> tuple[dict[str, NDArray[np.float64]], float]:
    """Return the leads that are stored, in mV and at the rate of the fastest, and that rate."""
    if raw.units is None:  # `wfdb` drops them where segments differ, be it in another channel
        raise RecordError(f"Channels of {base} change their unit between segments. Export it in one unit.")
    found: dict[str, NDArray[np.float64]] = {}
    counts: dict[str, int] = {}
    for k, signal in enumerate(raw.e_p_signal or []):
        name = str(raw.sig_name[k] or "")
        lead = lead_name(name)
        if lead is None:
            problems.append(f"Channel {name!r} is not one of the 12 leads and was ignored.")
            continue
        if lead in found:
            problems.append(f"Lead {lead} is stored twice; the first was taken.")
            continue
        unit = str(raw.units[k] or "mV")
        if unit.lower() not in _MV_PER:
            raise RecordError(
                f"Lead {lead} of {base} is in {unit!r}, which is no voltage. Use mV, uV or V in the header."
            )
        found[lead], counts[lead] = signal * _MV_PER[unit.lower()], raw.samps_per_frame[k]
    most = max(counts.values(), default=1)
    for lead, count in counts.items():
        if not MIN_FS <= raw.fs * count <= MAX_FS:
            raise RecordError(
                f"The sampling rate of lead {lead} of {base} is {raw.fs * count:g} Hz; an ECG has {MIN_FS:g} "
                f"to {MAX_FS:g}. Correct the header or export the record again."
            )
        if count != most:
            problems.append(
                f"Lead {lead} is stored at {raw.fs * count:g} Hz, others at {raw.fs * most:g} Hz."
            )
            found[lead] = _resample(found[lead][None], Fraction(most, count))[0]
    return found, float(raw.fs * most)


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


def _resample(signal: NDArray[Any], ratio: Fraction) -> NDArray[Any]:
    """Resample [k, n] by a polyphase filter; a sample is NaN where the nearest one was.

    Gaps are bridged by straight lines before the filter, so that their edges do not ring.
    """
    from scipy.signal import resample_poly

    missing = np.isnan(signal)
    if missing.any():
        signal, at = signal.copy(), np.arange(signal.shape[1])
        for row, gap in zip(signal, missing, strict=True):
            row[gap] = 0 if gap.all() else np.interp(at[gap], at[~gap], row[~gap])
    up, down = ratio.numerator, ratio.denominator
    out: NDArray[Any] = resample_poly(signal, up, down, axis=1, padtype="line")
    if missing.any():
        nearest = np.round(np.arange(out.shape[1]) * down / up).astype(int)
        out[missing[:, nearest.clip(max=signal.shape[1] - 1)]] = np.nan
    return out
