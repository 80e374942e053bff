"""The one error tree of pulse-edge.

::

    PulseEdgeError                 exit code 1: something failed that the user did not type
    ├── UserError                  exit code 2: the command line or an input is at fault
    │   ├── ImageError             a picture that cannot be read or used
    │   ├── RecordError            an ECG record that cannot be read or used
    │   ├── CheckpointError        a checkpoint folder that is incomplete or of another layout
    │   ├── BundleError            a bundle that is damaged, incomplete or of a newer schema
    │   ├── FitError               a model that the device has no memory for (names remedies)
    │   └── UnknownNameError       a device, layout, recipe … that does not exist (names the nearest)
    ├── MissingExtraError          a package that is not installed (names the pip command)
    └── GateError                  a result that failed its parity gate
        └── BudgetError            exit code 3: a step that cost more accuracy than its budget
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PulseEdgeError(Exception):
    """Base of every error that pulse-edge raises on purpose.

    The message has three parts: what happened, why, and the next step.
    """

    exit_code = 1


class UserError(PulseEdgeError):
    """The command line or an input file is at fault; nothing was changed."""

    exit_code = 2


class ImageError(UserError):
    """A picture cannot be read, or is not usable as an ECG page."""


class RecordError(UserError):
    """An ECG record cannot be read, or its signals are not usable."""


class CheckpointError(UserError):
    """A checkpoint folder is incomplete, damaged or of an unknown layout."""


class BundleError(UserError):
    """A bundle is damaged, incomplete or written by a newer pulse-edge."""


class FitError(UserError):
    """A model does not fit the memory of the device it is for; the message names what makes it fit."""


class UnknownNameError(UserError):
    """A name is not in its registry.

    Args:
        kind: what the name stands for, e.g. ``"device"``.
        name: what was asked for.
        known: the names that exist; the nearest is suggested, never silently used.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        plain = {known_name.lower(): known_name for known_name in names}
        near = [plain[key] for key in difflib.get_close_matches(name.lower(), plain, n=1, cutoff=0.4)]
        hint = f"Did you mean {near[0]!r}? " if near else ""
        super().__init__(f"Unknown {kind} {name!r}. {hint}Known: {', '.join(names) or 'none'}.")
        self.kind, self.name, self.nearest = kind, name, near[0] if near else None
        self.known = names


class MissingExtraError(PulseEdgeError):
    """A package of an optional extra is not installed.

    Args:
        package: the module that failed to import.
        extra: the extra of pulse-edge that brings it.
    """

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f"This step needs the package {package!r}, which is not installed. "
            f'Install it with: pip install "pulse-edge[{extra}]"'
        )
        self.package, self.extra = package, extra


class GateError(PulseEdgeError):
    """A parity or accuracy gate was not passed; the result was not kept."""


class BudgetError(GateError):
    """A step of compression cost more accuracy than its budget; the result was not kept."""

    exit_code = 3
