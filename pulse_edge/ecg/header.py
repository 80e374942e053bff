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

# name[/segments] signals [rate[/counter[(base)]] [samples [time [date]]]]
_RECORD_LINE: Final = re.compile(
    r"[^\s/]+(?:/(?P<segments>\d{1,6}))?\s+(?P<signals>\d{1,5})"
    r"(?:\s+(?P<fs>[0-9.]+(?:e[+-]?\d+)?)(?:/\S+)?"
    r"(?:\s+\d+(?:\s+[\d:.]+(?:\s+[\d/]+)?)?)?)?\s*",
    re.I,
)
# file format [gain[(baseline)][/unit] [resolution [zero [initial [checksum [block]]]]]] [description]
_SIGNAL_LINE: Final = re.compile(
    r"\S+\s+\S+(?:\s+(?P<gain>[-+.\d(]\S*))?(?:\s+-?\d+){0,5}\s*(?P<description>.*)"
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
    lines = _lines(header)
    line = lines[0] if lines else ""
    match = _RECORD_LINE.fullmatch(line)
    if match is None:
        raise RecordError(f"The first line of {header} is damaged: {line[:80]!r}. Copy the record again.")
    notes = []
    if match["fs"] is None:
        notes.append("The header gives no sampling rate; the format's default of 250 Hz was taken.")
    units: dict[str, set[str]] = {}
    if match["segments"]:
        for name in (line.split()[0] for line in lines[1:]):
            segment = header.with_name(f"{name}.hea") if re.fullmatch(r"[-\w]+", name) else header
            if segment != header and segment.is_file():  # what is missing is reported when it is read
                _add_units(segment, _lines(segment)[1:], units)
    else:
        if len(lines) - 1 != int(match["signals"]):
            raise RecordError(
                f"The header {header} announces {match['signals']} signals and describes {len(lines) - 1}. "
                "It is damaged or cut short; copy the record again."
            )
        _add_units(header, lines[1:], units)
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


def _lines(header: Path) -> list[str]:
    """The lines that are neither empty nor comments."""
    try:
        raw = header.read_bytes().splitlines()
    except OSError as error:
        raise RecordError(
            f"The header {header} cannot be read ({error.strerror}). Check its rights."
        ) from error
    lines = [line for line in raw if line.strip() and not line.strip().startswith(b"#")]
    for line in lines:
        if not line.isascii():
            text = line.decode("utf-8", "replace").strip()[:80]
            raise RecordError(
                f"A line of {header} holds letters outside ASCII, which WFDB does not allow: {text!r}. "
                "Write uV for microvolt and plain letters elsewhere."
            )
    return [line.decode("ascii").strip() for line in lines]


def _add_units(header: Path, signals: list[str], units: dict[str, set[str]]) -> None:
    """Check every lead's gain and add its unit, "" if there is none, to ``units``."""
    for line in signals:
        match = _SIGNAL_LINE.fullmatch(line)
        lead = lead_name(match["description"]) if match else None
        if match is None or lead is None:
            continue  # no lead, or no signal line at all: `wfdb` says so
        stated = _GAIN.fullmatch(match["gain"] or "")
        try:
            gain = float(stated["gain"]) if stated else math.nan
        except ValueError:
            gain = math.nan
        if stated is None or not _GAINS[0] <= abs(gain) <= _GAINS[1]:
            raise RecordError(
                f"Lead {lead} in {header} has the gain {match['gain'] or 'none'}, so its amplitude is not "
                "known. Write the steps per millivolt into the header, for example 200/mV."
            )
        units.setdefault(lead, set()).add((stated["unit"] or "").lower())
