"""Where training data comes from: one file per layout, and which of them a path is.

Each layout of records is a function ``rows(path, left_out)`` that yields
:class:`pulse_edge.train.sources.example.Row`; the signals are read and checked by
:func:`pulse_edge.train.sources.example.load`. ECGInstruct has pictures and conversations instead.
"""

from __future__ import annotations

import collections
import csv
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pulse_edge.errors import UserError
from pulse_edge.train.sources import labels_csv, ptbxl, snomed
from pulse_edge.train.sources.example import Row


@dataclass(frozen=True)
class Source:
    """A layout of records.

    Attributes:
        rows: reads its labels.
        card: what a model's card says of it: ``set``, ``split`` and ``licence``.
    """

    rows: Callable[[Path, collections.Counter[str]], Iterator[Row]]
    card: dict[str, str]


_BY_HASH: Final = "pulse_edge.ecg.split: 75 % train, 7 % validation, 18 % test"
SOURCES: Final = {
    "labels_csv": Source(
        labels_csv.rows,
        {
            "set": "PTB-XL 1.0.3 (Wagner et al., Scientific Data 2020), resampled to 200 Hz",
            "split": f"by patient, {_BY_HASH}",
            "licence": "CC BY 4.0",
        },
    ),
    "ptbxl": Source(
        ptbxl.rows,
        {
            "set": "PTB-XL as published (Wagner et al., Scientific Data 2020)",
            "split": "by patient, strat_fold: 1 to 8 train, 9 validation, 10 test",
            "licence": "CC BY 4.0",
        },
    ),
    "snomed": Source(
        snomed.rows,
        {
            "set": "WFDB records with SNOMED codes, as in the PhysioNet/CinC Challenges 2020 and 2021",
            "split": f"by record, {_BY_HASH}",
            "licence": "that of the folder, to be named by who trains",
        },
    ),
}
INSTRUCT: Final = "ecginstruct"
_EXPECTED: Final = (
    "Expected is one of: a table with the columns of shared/ecg/labels.csv (record, patient_id, scheme, "
    "codes, superclass); PTB-XL's folder with ptbxl_database.csv, scp_statements.csv and records500 or "
    "records100; a folder of WFDB records whose headers have a '# Dx:' line; ECGInstruct's JSON list, or the "
    "folder with it."
)


def detect(path: Path) -> str:
    """Return the layout at a path: ``labels_csv``, ``ptbxl``, ``snomed`` or ``ecginstruct``.

    Args:
        path: a folder, or the layout's table or JSON file.

    Raises:
        UserError: there is nothing, or nothing known; names what is expected of each layout.
    """
    if not os.path.exists(path):
        raise UserError(f"There is no {path}. {_EXPECTED}")
    if path.is_dir():
        if (path / ptbxl.DATABASE).is_file():
            return "ptbxl"
        if (path / "labels.csv").is_file():
            return "labels_csv"
        if len(list(path.glob("*.json"))) == 1:
            return INSTRUCT
        if any(snomed.read_dx(header) is not None for header in path.rglob("*.hea")):
            return "snomed"
    elif path.suffix.lower() == ".json":
        return INSTRUCT
    else:
        columns = _columns(path)
        if set(ptbxl.COLUMNS) <= columns:
            return "ptbxl"
        if set(labels_csv.COLUMNS) <= columns:
            return "labels_csv"
    raise UserError(f"The layout of {path} is not known. {_EXPECTED}")


def _columns(path: Path) -> set[str]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            return set(next(csv.reader(stream), []))
    except (OSError, UnicodeDecodeError, csv.Error):
        return set()
