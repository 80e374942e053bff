"""ECGBench, PULSE's benchmark: scored as published, or strictly; docs/ecgbench.md tells them apart."""

from __future__ import annotations

from pulse_edge.evaluate.ecgbench.judge import judge_prompts
from pulse_edge.evaluate.ecgbench.score import ALL, score_all, score_ecgbench
from pulse_edge.evaluate.ecgbench.sets import SETS, Protocol

__all__ = ["ALL", "SETS", "Protocol", "judge_prompts", "score_all", "score_ecgbench"]
