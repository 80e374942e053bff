"""One process of `bench`: opens a model, measures it, prints one line of JSON for each event.

python -m pulse_edge.commands._bench_child '{"model": …, "page": …, "runs": …}'
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pulse_edge.errors import PulseEdgeError

if TYPE_CHECKING:
    from pulse_edge.runtimes.session import Session


def main() -> None:
    """Read the settings of the command line, do the work, report an error as an event."""
    settings: dict[str, Any] = json.loads(sys.argv[1])
    out, sys.stdout = sys.stdout, sys.stderr  # libraries may print

    def say(event: dict[str, Any]) -> None:
        out.write(json.dumps(event) + "\n")
        out.flush()

    try:
        import numpy as np

        from pulse_edge.image_io import open_image
        from pulse_edge.runtimes.bench.measure import work

        page = np.array(open_image(Path(settings["page"]), upright=True))
        for event in work(
            lambda: _open(settings), page, settings["tokens"], settings["warm_up"], settings["runs"],
            settings["seconds"],
        ):  # fmt: skip
            say(event)
    except PulseEdgeError as error:
        say({"event": "error", "message": str(error), "exit_code": error.exit_code})


def _open(settings: dict[str, Any]) -> Session:
    from pulse_edge.commands._open import open_model

    return open_model(settings["model"], runtime=settings["runtime"])


if __name__ == "__main__":
    main()
