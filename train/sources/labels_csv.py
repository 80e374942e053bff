"""One table with the columns of shared/ecg/labels.csv, records relative to its folder."""

from __future__ import annotations

import collections
import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from pulse_edge.ecg.instruct import FINDINGS, RHYTHMS, SUPERCLASS_PHRASES
from pulse_edge.ecg.split import split
from pulse_edge.errors import UserError
from pulse_edge.train.sources.example import Row

COLUMNS: Final = ("record", "patient_id", "scheme", "codes", "superclass")
# The 71 statements of PTB-XL's scp_statements.csv: what we have words for, and three more.
SCP_CODES: Final = frozenset({*RHYTHMS, *FINDINGS, "NORM", "INJLA", "3AVB"})


def rows(path: Path, left_out: collections.Counter[str]) -> Iterator[Row]:
    """Yield the rows coded with SCP statements, split by the patient's identifier (``ecg.split``).

    Other schemes of that table do not carry superclasses nor say what was looked for, and their
    licences are not all settled (see NOTICE).

    Args:
        path: the table, or the folder that holds it as labels.csv.
        left_out: counts what is left out, by reason; added to.

    Raises:
        UserError: a column is missing, or the table is no UTF-8 text.
    """
    table = path / "labels.csv" if path.is_dir() else path
    for row in read_table(table, COLUMNS):
        codes = frozenset(filter(None, row["codes"].split(";")))
        groups = frozenset(filter(None, row["superclass"].split(";")))
        if row["scheme"] != "scp" or not row["patient_id"]:
            left_out["not coded with SCP statements, or no patient"] += 1
        elif not row["record"]:
            left_out["no record named"] += 1
        elif not codes <= SCP_CODES or not groups <= set(SUPERCLASS_PHRASES):
            left_out["label not in the map"] += 1
        else:
            patient = row["patient_id"]
            yield Row(table.parent / row["record"], patient, split(patient), codes, groups)


def read_table(path: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    """Read a CSV file with a header line; cells that a short line lacks are empty.

    Raises:
        UserError: missing, unreadable, or without one of ``columns``.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream, restval="")
            found = list(reader)
            names = reader.fieldnames or ()
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"The table {path} cannot be read: {error}. Copy it again.") from error
    missing = [name for name in columns if name not in names]
    if missing:
        raise UserError(
            f"The table {path} lacks the column {', '.join(missing)}. Use the table as it was published."
        )
    return [{name: cell for name, cell in row.items() if isinstance(name, str)} for row in found]
