"""PTB-XL as PhysioNet publishes it (Wagner et al., Scientific Data 7, 154, 2020; version 1.0.3).

Read are ptbxl_database.csv, scp_statements.csv and records500/, or records100/ where the former is
not there. The split is the published recommendation: folds 1 to 8 train, 9 validation, 10 test.

Codes are all statements of ``scp_codes`` whatever their likelihood, and superclasses are the
``diagnostic_class`` of every diagnostic one among them, as the data set's own example aggregates
them. A likelihood of 0 means that the report does not give any, not that the finding is absent.
"""

from __future__ import annotations

import ast
import collections
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from pulse_edge.ecg.instruct import SUPERCLASS_PHRASES
from pulse_edge.ecg.split import Split
from pulse_edge.errors import UserError
from pulse_edge.train.sources.example import Row
from pulse_edge.train.sources.labels_csv import read_table

DATABASE: Final = "ptbxl_database.csv"
COLUMNS: Final = ("patient_id", "scp_codes", "strat_fold", "filename_lr", "filename_hr")
SIDES: Final[dict[str, Split]] = {
    **{str(fold): "train" for fold in range(1, 9)},
    "9": "validation",
    "10": "test",
}
_MAX_CHARS: Final = 10_000  # the longest cell of version 1.0.3 has some hundred


def rows(path: Path, left_out: collections.Counter[str]) -> Iterator[Row]:
    """Yield the usable rows of the database.

    A patient whose rows stand on two sides is left out whole: the published folds have none.

    Args:
        path: the folder of PTB-XL, or its ptbxl_database.csv.
        left_out: counts what is left out, by reason; added to.

    Raises:
        UserError: a table or the folder of the records is missing or damaged.
    """
    folder = path if path.is_dir() else path.parent
    classes = read_statements(folder / "scp_statements.csv")
    records = next((name for name in ("records500", "records100") if (folder / name).is_dir()), None)
    if records is None:
        raise UserError(
            f"There is neither records500 nor records100 in {folder}. Copy one beside {DATABASE}."
        )
    column = "filename_hr" if records == "records500" else "filename_lr"
    table = read_table(folder / DATABASE, COLUMNS)
    sides: dict[str, set[Split | None]] = collections.defaultdict(set)
    for row in table:
        sides[_plain(row["patient_id"])].add(SIDES.get(_plain(row["strat_fold"])))
    for row in table:
        patient, side = _plain(row["patient_id"]), SIDES.get(_plain(row["strat_fold"]))
        codes = parse_scp_codes(row["scp_codes"])
        if not patient or side is None:
            left_out["no patient or no fold of 1 to 10"] += 1
        elif len(sides[patient]) > 1:
            left_out["patient on two sides of the published split"] += 1
        elif not row[column]:
            left_out["no record named"] += 1
        elif codes is None:
            left_out["statements that cannot be read"] += 1
        elif not codes:
            left_out["no statement"] += 1
        elif not codes.keys() <= classes.keys():
            left_out["label not in the map"] += 1
        else:
            groups = frozenset(group for code in codes if (group := classes[code]))
            yield Row(folder / row[column], patient, side, frozenset(codes), groups)


def parse_scp_codes(text: str) -> dict[str, float] | None:
    """Return ``scp_codes``, the text of a Python dict of statements and likelihoods in percent, or None."""
    if len(text) > _MAX_CHARS:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd escapes in what is no dict anyway
            found = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None
    if not isinstance(found, dict):
        return None
    for code, likelihood in found.items():
        if not isinstance(code, str) or not isinstance(likelihood, (int, float)):
            return None
        if isinstance(likelihood, bool) or not (math.isfinite(likelihood) and 0 <= likelihood <= 100):
            return None
    return {code: float(likelihood) for code, likelihood in found.items()}


def read_statements(path: Path) -> dict[str, str]:
    """Return the superclass of every statement of scp_statements.csv, "" for one that is not diagnostic.

    Raises:
        UserError: missing, damaged, or a class that PTB-XL does not have.
    """
    classes = {}
    for row in read_table(path, ("", "diagnostic", "diagnostic_class")):
        group = row["diagnostic_class"] if _plain(row["diagnostic"]) == "1" else ""
        if group and group not in SUPERCLASS_PHRASES:
            raise UserError(
                f"{path} gives {row['']!r} the class {group!r}; PTB-XL has {', '.join(SUPERCLASS_PHRASES)}. "
                "Use the table as it was published."
            )
        classes[row[""]] = group
    return classes


def _plain(number: str) -> str:
    """``"15709.0"`` -> ``"15709"``: pandas writes whole numbers so where the column once had gaps."""
    return number.strip().removesuffix(".0")
