"""Folders of WFDB records whose headers carry SNOMED codes: ``# Dx: 426783006,39732003``.

So come CSN (Chapman-Shaoxing and Ningbo), CPSC, Georgia and the others of the PhysioNet/CinC
Challenges 2020 and 2021, signals in .mat or .dat files, in folders of any depth.

These labels are translated by `snomed_codes.py`. They carry no superclass: what a record is not
labelled with may still be there, so "normal" cannot be concluded. Which codes a database looked for
is not published either; a code counts as assignable only if a record of the same database (names
begin with the same letters) states it, and is never denied otherwise. There are no patients: the
record's name stands for one, and the split goes by it.

Not covered: the Challenge's own copy of PTB-XL (HR…) shares signals with PTB-XL as published; do not
train on one and evaluate on the other.
"""

from __future__ import annotations

import collections
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from pulse_edge.ecg.split import split
from pulse_edge.train.sources.example import Row
from pulse_edge.train.sources.snomed_codes import EXCEPTIONS, MEANINGS, Meaning

_DX: Final = re.compile(r"#\s*Dx\s*:(.*)", re.IGNORECASE)
_MAX_BYTES: Final = 100_000  # of a header; theirs have under two thousand


def rows(path: Path, left_out: collections.Counter[str]) -> Iterator[Row]:
    """Yield the records whose codes are all known and say something that we have words for.

    Args:
        path: a folder; all below it is searched.
        left_out: counts what is left out, by reason; added to.
    """
    found: list[tuple[Path, list[Meaning]]] = []
    carried: dict[str, set[str]] = collections.defaultdict(set)
    for header in sorted(path.rglob("*.hea")):
        codes = read_dx(header)
        if codes is None:
            left_out["header without # Dx"] += 1
            continue
        known = MEANINGS | EXCEPTIONS.get(database(header.stem), {})
        if not codes or not known.keys() >= set(codes):
            left_out["label not in the map"] += 1
            continue
        meanings = [known[code] for code in codes]
        carried[database(header.stem)].update(*(meaning.stated for meaning in meanings))
        found.append((header.with_suffix(""), meanings))
    for base, meanings in found:
        stated = frozenset[str]().union(*(meaning.stated for meaning in meanings))
        doubtful = frozenset[str]().union(*(meaning.open for meaning in meanings))
        if not stated:
            left_out["no label that we have words for"] += 1
            continue
        assignable = frozenset(carried[database(base.name)] - doubtful) | stated
        yield Row(base, base.name, split(base.name), stated, frozenset(), assignable)


def database(name: str) -> str:
    """Return the letters that a record's name begins with: A CPSC, E Georgia, JS CSN …"""
    return name.rstrip("0123456789") if name[-1:].isdigit() else name


def read_dx(header: Path) -> tuple[str, ...] | None:
    """Return the codes of a header's Dx comment; None if it has none or cannot be read."""
    try:
        with header.open("rb") as stream:
            text = stream.read(_MAX_BYTES).decode("latin-1")
    except OSError:
        return None
    lines = [codes for line in text.splitlines() if (codes := parse_dx(line)) is not None]
    return tuple(dict.fromkeys(code for codes in lines for code in codes)) if lines else None


def parse_dx(line: str) -> tuple[str, ...] | None:
    """Return what a header's line lists behind ``# Dx:``, in order; None if it is no such line."""
    match = _DX.fullmatch(line.strip())
    return tuple(filter(None, map(str.strip, match[1].split(",")))) if match else None
