"""launch/README.md names the keys of metrics.jsonl and evaluations.jsonl: those that are written, and no others."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from rich.console import Console

from vlmphys.config import from_mapping
from vlmphys.flops import ModelFlops
from vlmphys.loss import STATISTICS
from vlmphys.model import read_facts
from vlmphys.shards import open_packed
from vlmphys.timing import Gauges, StepClock
from vlmphys.tracking import StepFigures, Tracker
from vlmphys.validation import Validator
from vlmphys.world import World

pytestmark = pytest.mark.unit
CPU = torch.device("cpu")


def keys_in_readme(repository, name: str) -> list[str]:
    """The keys in the first column of the table that follows the line "A row of `name`", `_k` once for each turn."""
    _, after = (repository / "launch" / "README.md").read_text().split(f"A row of `{name}`")
    rows = after.split("| key | |\n|---|---|\n")[1].split("\n\n")[0].splitlines()
    named = [key for row in rows for key in re.findall(r"`(\w+)`", row.split("|")[1])]
    assert len(named) == len(set(named))
    return [key for name in named for key in ([f"{name[:-1]}{turn}" for turn in (1, 2, 3, 4)] if name.endswith("_k") else [name])]


def test_the_tables_of_keys_are_those_that_are_written(repository, packed_folder, tiny_model_folder, tmp_path):
    config = from_mapping({"data": str(packed_folder), "model": str(tiny_model_folder), "out": str(tmp_path), "engine": "plain",
                           "eval_steps": 1, "logging_steps": 1})
    tracker = Tracker(config, Console(quiet=True), Gauges(StepClock(CPU), CPU, ModelFlops(0, 0, 0, 0), None), 0, 4, 2, [])
    tracker.add(1, StepFigures(torch.ones(len(STATISTICS), dtype=torch.float64), 0.1, 2.0, [0.5] * 4))
    validator = Validator(config, open_packed(packed_folder), read_facts(config.model), World(0, 1, CPU), 0, 4, 2)
    validator.measure = lambda engine: np.zeros((len(validator.clips), 2))
    validator.run(None, 1, tracker)
    tracker.close()
    for name in ("metrics.jsonl", "evaluations.jsonl"):
        (row,) = (json.loads(line) for line in (tmp_path / name).read_text().splitlines())
        assert set(row) == set(keys_in_readme(repository, name)), name


def test_no_key_of_one_file_means_another_thing_in_the_other(repository):
    """What both files have is told once and alike; accuracies of two kinds have two names."""
    both = set(keys_in_readme(repository, "metrics.jsonl")) & set(keys_in_readme(repository, "evaluations.jsonl"))
    assert both == {"step", "epoch", "verdict_loss", "seconds"}
