"""Look at a WFDB header before `wfdb` reads it, for what that package passes over in silence.

`wfdb` takes 250 Hz when it does not understand the rate, 200 steps per mV when there is no gain or a
gain of 0, mV when there is no unit, and drops every letter outside ASCII, which turns "µV" into "V".
The form of a header is defined in the WFDB Applications Guide, header(5).
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Final

from pulse_edge.ecg.leads import lead_name
from pulse_edge.errors import RecordError

MAX_VALUES: Final = 100_000_000  # of all channels together: 12 leads at 500 Hz for over four hours
# name[/segments] signals [rate[/counter[(base)]] [samples [time [date]]]]; the PhysioNet Challenge of 2020
# published its records with date and time the other way round, 05-Feb-2020 11:39:16
_RECORD_LINE: Final = re.compile(
    r"[^\s/]+(?:/(?P<segments>\d{1,6}))?\s+(?P<signals>\d{1,5})"
    r"(?:\s+(?P<fs>\d+\.?\d*|\.\d+)(?:/\S+)?"
    r"(?:\s+(?P<samples>\d{1,18})(?:\s+(?:[\d:.]+(?:\s+[\d/]+)?|\d\d-[A-Za-z]{3}-\d{4}\s+[\d:.]+))?)?)?"
)
# file format[xsamples per frame][:skew][+offset]
#   [gain[(baseline)][/unit] [resolution [zero [initial [checksum [block]]]]]] [description]
_SIGNAL_LINE: Final = re.compile(
    r"\S+\s+\d+(?:x(?P<count>\d{1,12}))?(?::(?P<skew>\d{1,12}))?(?:\+\d+)?"
    r"(?:\s+(?P<gain>[-+.\d(]\S*))?(?:\s+-?\d+){0,5}\s*(?P<description>.*)"
)
_GAIN: Final = re.compile(r"(?P<gain>[-+]?[\d.]*(?:e[-+]?\d+)?)(?:\(-?\d+\))?(?:/(?P<unit>\S+))?", re.I)
_GAINS: Final = (1e-9, 1e12)  # steps per unit, from nanovolt to volt


def check_header(header: Path) -> list[str]:
    """Check the rate, gains and units that a header states; return a sentence for each default taken.

    Args:
        header: the ``.hea`` file of a record, of one segment or several.

    Raises:
        RecordError: the header cannot be read, is cut short, or holds letters outside ASCII beyond its
            comments; a lead has no usable gain, or its unit changes between segments.
    """
    match, signals = _parts(header)
    notes = []
    if match["fs"] is None:
        notes.append("The header gives no sampling rate; the format's default of 250 Hz was taken.")
    units: dict[str, set[str]] = {}
    if match["segments"]:
        _check_size(header, match, int(match["signals"]), 0)
        for name in (line.split()[0] for line in signals):
            segment = header.with_name(f"{name}.hea") if re.fullmatch(r"[-\w]+", name) else header
            if segment != header and segment.is_file():  # what is missing is reported when it is read
                _check_signals(segment, *_parts(segment), units)
    else:
        _check_signals(header, match, signals, units)
    for lead, stated in units.items():
        if len(stated) > 1:
            raise RecordError(
                f"Lead {lead} of {header} changes its unit between segments. Export the record in one unit."
            )
    bare = [lead for lead, stated in units.items() if stated == {""}]
    if bare:
        notes.append(
            f"The header gives no unit for lead {', '.join(bare)}; the format's default, mV, was taken."
        )
    return notes


def _parts(header: Path) -> tuple[re.Match[str], list[str]]:
    """The record line, matched, and the lines after it that are neither empty nor comments."""
    try:
        # Lines end where `wfdb` ends them, and what it would drop is kept.
        text = header.read_bytes().decode("ascii", "surrogateescape")
    except OSError as error:
        raise RecordError(
            f"The header {header} cannot be read ({error.strerror}). Check its rights."
        ) from error
    lines = [line for raw in text.splitlines() if (line := raw.strip()) and not line.startswith("#")]
    for line in lines:
        if not line.isascii():
            shown = line.encode("ascii", "surrogateescape").decode("utf-8", "replace")[:80]
            raise RecordError(
                f"A line of {header} holds letters outside ASCII, which WFDB does not allow: {shown!r}. "
                "Write uV for microvolt and plain letters elsewhere."
            )
    first = lines[0] if lines else ""
    match = _RECORD_LINE.fullmatch(first)
    if match is None:
        raise RecordError(f"The first line of {header} is damaged: {first[:80]!r}. Copy the record again.")
    return match, lines[1:]


def _check_signals(header: Path, match: re.Match[str], lines: list[str], units: dict[str, set[str]]) -> None:
    """Check the signal lines of one header and add every lead's unit, "" if there is none, to ``units``."""
    if len(lines) != int(match["signals"]):
        raise RecordError(
            f"The header {header} announces {match['signals']} signals and describes {len(lines)}. "
            "It is damaged or cut short; copy the record again."
        )
    count = skew = 0
    for line in lines:
        signal = _SIGNAL_LINE.fullmatch(line)
        if signal is None:
            raise RecordError(f"A line of {header} is damaged: {line[:80]!r}. Copy the record again.")
        count, skew = count + int(signal["count"] or 1), max(skew, int(signal["skew"] or 0))
        lead = lead_name(signal["description"])
        if lead is not None:
            units.setdefault(lead, set()).add(_unit(header, lead, signal["gain"] or ""))
    _check_size(header, match, count, skew)


def _check_size(header: Path, match: re.Match[str], count: int, skew: int) -> None:
    """Refuse a length that only a damaged header has, before anything of that size is allocated."""
    values = max(int(match["samples"] or 0), skew) * count
    if values > MAX_VALUES:
        raise RecordError(
            f"The header {header} announces {values} samples, more than {MAX_VALUES}. "
            "It is damaged, or the record must be cut to the minutes of interest."
        )


def _unit(header: Path, lead: str, text: str) -> str:
    """Check a gain such as ``200(0)/mV`` and return its unit in small letters, "" if there is none."""
    stated = _GAIN.fullmatch(text)
    try:
        gain = float(stated["gain"]) if stated else math.nan
    except ValueError:
        gain = math.nan
    if stated is None or not _GAINS[0] <= abs(gain) <= _GAINS[1]:
        raise RecordError(
            f"Lead {lead} in {header} has the gain {text or 'none'}, so its amplitude is not known. "
            "Write the steps per millivolt into the header, for example 200/mV."
        )
    return (stated["unit"] or "").lower()
