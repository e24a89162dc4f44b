"""What a person sees of a run: metrics.jsonl, TensorBoard, and a progress line. Only the first rank has one."""

from __future__ import annotations

import json
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

from vlmphys.files import write_atomic
from vlmphys.loss import STATISTICS, readable

SECONDS_BETWEEN_LINES = 10.0


class Tracker:
    """Collects the sums of each optimizer step and writes a row whenever `logging_steps` are full.

    A row: step (optimizer steps done), epoch, the figures of `loss.readable` over the window, learning_rate and grad_norm of the last step,
    samples_per_second, tokens_per_second (padding not counted), seconds (since this process began to train).
    """

    def __init__(self, run: Path, console: Console, first_step: int, total_steps: int, steps_per_epoch: int, logging_steps: int,
                 window: list[float]):
        self.path = run / "metrics.jsonl"
        self.console, self.logging_steps = console, logging_steps
        self.first_step, self.total_steps, self.steps_per_epoch = first_step, total_steps, steps_per_epoch
        keep_rows(self.path, first_step)
        self.rows = open(self.path, "a", encoding="utf-8")
        self.board = SummaryWriter(run / "tensorboard", purge_step=first_step + 1)
        self.window = torch.tensor(window, dtype=torch.float64) if window else torch.zeros(len(STATISTICS), dtype=torch.float64)
        self.started = self.since = self.last_line = time.monotonic()
        self.measured = torch.zeros(2, dtype=torch.float64)     # clips, tokens since `since`: not those from before a resume
        self.progress = _progress_bar(console) if console.is_terminal else None
        if self.progress:
            self.task = self.progress.add_task("training", total=total_steps, completed=first_step, figures="")
            self.progress.start()

    def add(self, step: int, sums: torch.Tensor, learning_rate: float, grad_norm: float) -> None:
        """Take in optimizer step number `step` (counted from 1): its sums over all ranks, in the order of `STATISTICS`."""
        self.window += sums
        self.measured += sums[-2:]
        if step % self.logging_steps == 0 or step == self.total_steps:
            self._write(step, learning_rate, grad_norm)
        elif self.progress:
            self.progress.update(self.task, completed=step)

    def _write(self, step: int, learning_rate: float, grad_norm: float) -> None:
        now = time.monotonic()
        seconds = max(now - self.since, 1e-9)
        row = {"step": step, "epoch": round(step / self.steps_per_epoch, 4), **readable(self.window), "learning_rate": learning_rate,
               "grad_norm": grad_norm, "samples_per_second": self.measured[0].item() / seconds,
               "tokens_per_second": self.measured[1].item() / seconds, "seconds": round(now - self.started, 3)}
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
        accuracy = f"{row['verdict_accuracy']:.2f}" if row["verdict_accuracy"] is not None else "-"
        figures = f"loss {row['loss']:.4f}  verdict {accuracy}  {row['samples_per_second']:.1f} samples/s"
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
