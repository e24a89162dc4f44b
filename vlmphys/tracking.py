"""What a person sees of a run: metrics.jsonl, TensorBoard, and a progress line. Only the first rank has one."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

from vlmphys.config import TrainConfig
from vlmphys.files import write_atomic
from vlmphys.finished import chance_text
from vlmphys.loss import STATISTICS, readable
from vlmphys.timing import Gauges

SECONDS_BETWEEN_LINES = 10.0


@dataclass(frozen=True)
class StepFigures:
    """What is known of one optimizer step. `turn_norms`: the L2 norm of each turn's own gradient, where it was measured."""

    sums: torch.Tensor      # over all ranks, in the order of `STATISTICS`, float64, on the CPU
    learning_rate: float
    grad_norm: float        # before clipping
    turn_norms: list[float | None] | None


class Tracker:
    """Collects the figures of each optimizer step and writes a row whenever `logging_steps` are full.

    A row: step (optimizer steps done), epoch, the figures of `loss.readable` over the window, learning_rate and grad_norm of the last step,
    grad_norm_turn_k where the last step was measured, samples_per_second, tokens_per_second (padding not counted; by the wall clock, with
    checkpoints and all), the figures of `timing.Gauges`, seconds (since this process began to train).
    """

    def __init__(self, config: TrainConfig, console: Console, gauges: Gauges, first_step: int, total_steps: int, steps_per_epoch: int,
                 window: list[float]):
        run = Path(config.out)
        self.path = run / "metrics.jsonl"
        self.config, self.console, self.gauges = config, console, gauges
        self.first_step, self.total_steps, self.steps_per_epoch = first_step, total_steps, steps_per_epoch
        keep_rows(self.path, first_step)
        self.rows = open(self.path, "a", encoding="utf-8")
        self.board = SummaryWriter(run / "tensorboard", purge_step=first_step + 1)
        # Another version's sums mean something else; then the first row counts from the resume.
        known = len(window) == len(STATISTICS)
        self.window = torch.tensor(window if known else [0.0] * len(STATISTICS), dtype=torch.float64)
        self.measured = torch.zeros_like(self.window)   # since `since`: without what a resume brought along
        self.verdict_loss: float | None = None      # of the last row
        self.started = self.since = self.last_line = time.monotonic()
        self.progress = _progress_bar(console) if console.is_terminal else None
        if self.progress:
            self.task = self.progress.add_task("training", total=total_steps, completed=first_step, figures="")
            self.progress.start()

    def add(self, step: int, figures: StepFigures) -> None:
        """Take in optimizer step number `step` (counted from 1)."""
        self.window += figures.sums
        self.measured += figures.sums
        if step % self.config.logging_steps == 0 or step == self.total_steps:
            self._write(step, figures)
        elif self.progress:
            self.progress.update(self.task, completed=step)
        if step == self.total_steps:
            self._say_if_near_chance(step)

    def finish(self, step: int, figures: StepFigures) -> None:
        """Write what the window holds of a run that ends before its last step."""
        if step % self.config.logging_steps:
            self._write(step, figures)
        self._say_if_near_chance(step)

    def _say_if_near_chance(self, step: int) -> None:
        """The other answers are learnt first, so that a low loss may come with a verdict that was not learnt at all."""
        said = chance_text(self.verdict_loss)
        if said is not None:
            more = "epochs (--set num_train_epochs=...)" if self.config.max_steps == -1 else "updates (--set max_steps=...)"
            say(self.console, f"the verdict is still {said} after {step} "
                              f"update{'s' if step > 1 else ''}: more {more} may be needed")

    def _write(self, step: int, figures: StepFigures) -> None:
        gauges = self.gauges.read(self.measured)
        now = time.monotonic()
        seconds = max(now - self.since, 1e-9)
        clips, tokens = (self.measured[STATISTICS.index(name)].item() for name in ("clips", "tokens"))
        row = {"step": step, "epoch": round(step / self.steps_per_epoch, 4),
               **readable(self.window, self.config.loss_mode, self.config.turn_weights),
               "learning_rate": figures.learning_rate, "grad_norm": figures.grad_norm,
               **{f"grad_norm_turn_{k}": norm for k, norm in enumerate(figures.turn_norms or [], start=1)},
               "samples_per_second": clips / seconds, "tokens_per_second": tokens / seconds, **gauges,
               "seconds": round(now - self.started, 3)}
        self.verdict_loss = row["verdict_loss"]
        self.rows.write(json.dumps(row) + "\n")
        self.rows.flush()
        for name, value in row.items():
            if name not in ("step", "epoch") and value is not None:
                self.board.add_scalar(f"train/{name}", value, step)
        self.window.zero_()
        self.measured.zero_()
        self.since = now
        self._show(step, row, now)

    def _show(self, step: int, row: dict, now: float) -> None:
        verdict = f"{row['verdict_loss']:.2f}, right {row['first_choice_accuracy']:.0%}" if row["first_choice_accuracy"] is not None else "-"
        figures = f"loss {row['loss']:.3f}  verdict's {verdict}  {row['samples_per_second']:.1f} samples/s"
        if self.progress:
            self.progress.update(self.task, completed=step, figures=figures)
        elif now - self.last_line >= SECONDS_BETWEEN_LINES or step == self.total_steps:
            self.last_line = now
            passed = now - self.started
            left = passed / (step - self.first_step) * (self.total_steps - step)
            say(self.console, f"step {step}/{self.total_steps}  {figures}  {passed:.0f} s, {left:.0f} s left")

    def close(self) -> None:
        """Flush and release everything; also after an error."""
        if self.progress:
            self.progress.stop()
        self.rows.close()
        self.board.close()


def say(console: Console, text: str) -> None:
    """Print a line as it is: not wrapped, so that paths can be copied, and nothing in it taken for markup."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def _progress_bar(console: Console) -> Progress:
    # Short enough for 80 columns; the steps name themselves.
    return Progress(TextColumn("step"), MofNCompleteColumn(), BarColumn(bar_width=10), TextColumn("{task.fields[figures]}"),
                    TimeRemainingColumn(), TextColumn("left"), console=console)


def keep_rows(path: Path, last_step: int) -> None:
    """Drop rows beyond `last_step`, and a last line that a crash cut in two: a resumed run writes them again."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            break
        if row["step"] <= last_step:
            kept.append(line + "\n")
    write_atomic(path, "".join(kept).encode())
