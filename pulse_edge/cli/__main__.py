"""`python -m pulse_edge.cli`, for launchers such as torchrun."""

from __future__ import annotations

from pulse_edge.cli.guard import main

if __name__ == "__main__":
    main()
