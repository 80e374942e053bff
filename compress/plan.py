"""A plan: the form of integers that every layer of one checkpoint takes, from `search` to `quantize`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pulse_edge.bundle import write_atomic
from pulse_edge.compress.form import Form
from pulse_edge.errors import UserError

SCHEMA: Final = 1
FLOAT: Final = "float"  # of a layer that is left as it is


def write_plan(
    path: Path, forms: Mapping[str, Form | None], weights: Mapping[str, str], facts: Mapping[str, Any]
) -> None:
    """Write a plan.

    Args:
        path: of the file.
        forms: by layer, e.g. ``layers.0.mlp.up_proj``; None for one that is left as it is.
        weights: SHA-256 of the checkpoint's files, by name: a plan is for these weights only.
        facts: how it was found, for people.
    """
    named = {name: form.name if form else FLOAT for name, form in forms.items()}
    plan = {"schema": SCHEMA, "weights": dict(weights), "forms": named, **facts}
    write_atomic(path, (json.dumps(plan, indent=1) + "\n").encode())


def read_plan(path: Path) -> tuple[dict[str, Form | None], dict[str, str]]:
    """Read a plan: its forms and its weights, see :func:`write_plan`.

    Raises:
        UserError: there is none, or it is not one that this pulse-edge reads.
    """
    try:
        raw = json.loads(path.read_text("utf-8"))
        if raw["schema"] != SCHEMA:
            raise UserError(
                f"{path} has schema {raw['schema']!r}; this pulse-edge reads {SCHEMA}. Update it."
            )
        forms = {
            str(name): None if text == FLOAT else Form.parse(text) for name, text in raw["forms"].items()
        }
        return forms, {str(name): str(digest) for name, digest in raw["weights"].items()}
    except OSError as error:
        raise UserError(
            f"{path} cannot be read: {error.strerror}. Write a plan with: pulse-edge search"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not a plan of pulse-edge. Write one with: pulse-edge search") from error
