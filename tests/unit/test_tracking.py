"""The rows of metrics.jsonl and the clock of a step."""

from __future__ import annotations

import io
import json

import pytest
import torch
from rich.console import Console

from vlmphys import timing
from vlmphys.config import TrainConfig
from vlmphys.flops import ModelFlops
from vlmphys.loss import STATISTICS
from vlmphys.timing import Gauges, StepClock
from vlmphys.tracking import StepFigures, Tracker

pytestmark = pytest.mark.unit
CPU = torch.device("cpu")


def test_the_clock_gives_each_phase_its_time_and_leaves_out_what_lies_between_steps(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    clock = StepClock(CPU)
    for _ in range(2):
        clock.start()
        for phase, seconds in (("data", 1), ("forward", 2), ("backward", 3), ("measure", 50), ("forward", 4), ("backward", 5), ("step", 6)):
            now[0] += seconds
            clock.lap(phase)
        now[0] += 1000     # a checkpoint
    assert clock.read() == ({"data": 2, "forward": 12, "backward": 16, "step": 12}, 2)
    assert clock.read() == ({"data": 0, "forward": 0, "backward": 0, "step": 0}, 0)


def sums(**values):
    return torch.tensor([float(values.get(name, 0)) for name in STATISTICS], dtype=torch.float64)


def tracker(out, gauges, window=(), **settings):
    config = TrainConfig(out=str(out), **settings)
    return Tracker(config, Console(quiet=True), gauges, 0, 4, 2, list(window))


def rows(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_rows_are_means_over_their_window_and_carry_turn_norms_where_they_were_measured(tmp_path):
    gauges = Gauges(StepClock(CPU), CPU, ModelFlops(0, 0, 0, 0), None)
    keep = tracker(tmp_path, gauges, logging_steps=2)
    step = sums(loss_turn_1=6, tokens_turn_1=2, loss_turn_4=2, tokens_turn_4=2, verdicts=1, clips=3, tokens=9)
    for number in range(1, 5):
        keep.add(number, StepFigures(step * number, 0.1, 2.0, [0.5, None, None, 0.25] if number == 4 else None))
    keep.close()
    first, second = rows(tmp_path)
    assert (first["step"], second["step"], second["epoch"]) == (2, 4, 2.0)
    assert first["loss"] == 2.0 and first["loss_turn_1"] == 3.0 and first["share_turn_1"] == 0.5 and first["share_turn_2"] == 0.0
    assert "grad_norm_turn_1" not in first and (second["grad_norm_turn_1"], second["grad_norm_turn_2"]) == (0.5, None)
    assert first["mfu"] is None and first["gpu_memory_gib"] is None and 0.01 < first["host_memory_gib"] < 1000
    assert first["samples_per_second"] / first["tokens_per_second"] == pytest.approx(1 / 3)


def test_utilisation_is_work_over_time_and_peak_and_counts_only_this_process(tmp_path, monkeypatch):
    clock = StepClock(CPU)
    monkeypatch.setattr(clock, "read", lambda: ({"data": 1.0, "forward": 2.0, "backward": 4.0, "step": 1.0}, 4))
    gauges = Gauges(clock, CPU, ModelFlops(per_token=5.0, per_token_squared=2.0, per_supervised=3.0, per_clip=7.0), peak_flops=100.0)
    step = sums(loss_turn_1=6, tokens_turn_1=2, clips=3, tokens=9, tokens_squared=30)
    keep = tracker(tmp_path, gauges, window=step.tolist(), logging_steps=1)
    keep.add(1, StepFigures(step, 0.1, 2.0, None))
    keep.close()
    (row,) = rows(tmp_path)
    # 9 x 5 + 30 x 2 + 2 x 3 + 3 x 7 = 132 operations in 8 seconds at 100 a second.
    assert row["mfu"] == pytest.approx(132 / 8 / 100)
    assert (row["data_seconds"], row["forward_seconds"], row["backward_seconds"], row["step_seconds"]) == (0.25, 0.5, 1.0, 0.25)


@pytest.mark.parametrize(("loss", "settings", "said"), [
    (2.76, {}, "the verdict is still near chance (verdict_loss 0.69; ln 2 = 0.693 is chance) after 4 updates: more epochs (--set num_train"),
    (2.76, {"max_steps": 4}, "more updates (--set max_steps=...) may be needed"), (2.36, {}, None), (None, {}, None),
    (12.0, {}, "still worse than chance (verdict_loss 3.00")])
def test_a_run_that_ends_with_a_verdict_near_chance_says_so(tmp_path, loss, settings, said):
    gauges = Gauges(StepClock(CPU), CPU, ModelFlops(0, 0, 0, 0), None)
    stream = io.StringIO()
    keep = Tracker(TrainConfig(out=str(tmp_path), logging_steps=2, **settings), Console(file=stream, width=80), gauges, 0, 4, 2, [])
    verdict = {} if loss is None else {"verdict_loss": loss / 4, "verdicts": 1}
    for number in range(1, 5):
        keep.add(number, StepFigures(sums(loss_turn_1=6, tokens_turn_1=2, **verdict), 0.1, 2.0, None))
        assert "chance" not in stream.getvalue() or number == 4
    keep.close()
    lines = [line for line in stream.getvalue().splitlines() if "chance" in line]
    assert len(lines) == (said is not None) and (said is None or said in lines[0])


def test_a_run_that_is_stopped_early_says_so_too(tmp_path):
    stream = io.StringIO()
    keep = Tracker(TrainConfig(out=str(tmp_path), logging_steps=2), Console(file=stream), Gauges(
        StepClock(CPU), CPU, ModelFlops(0, 0, 0, 0), None), 0, 4, 2, [])
    step = StepFigures(sums(loss_turn_1=6, tokens_turn_1=2, verdict_loss=0.7, verdicts=1), 0.1, 2.0, None)
    keep.add(1, step)
    keep.finish(1, step)
    keep.close()
    assert "near chance (verdict_loss 0.70" in stream.getvalue()


def test_sums_of_another_version_are_not_mixed_in(tmp_path):
    gauges = Gauges(StepClock(CPU), CPU, ModelFlops(0, 0, 0, 0), None)
    keep = tracker(tmp_path, gauges, window=[99.0] * 3, logging_steps=1)
    keep.add(1, StepFigures(sums(loss_turn_1=6, tokens_turn_1=2), 0.1, 2.0, None))
    keep.close()
    assert rows(tmp_path)[0]["loss"] == 3.0
