"""Where an optimizer step's time goes, without a wait for the device inside it; what memory this process holds; how busy the GPUs are."""

from __future__ import annotations

import time
from dataclasses import dataclass

import psutil
import torch

from vlmphys.cases import GIB
from vlmphys.flops import ModelFlops

PHASES = ("data", "forward", "backward", "step")


class StepClock:
    """Divides each optimizer step into phases: `start`, then `lap(phase)` wherever one ends; a phase may come back many times.

    On a CPU the marks are readings of the clock. On a GPU, which works behind the host, they are CUDA events: the time between two of them
    is what passed on the device, its waits for the host included. They are read when the next step starts, by which time they
    have long happened, since a step does not end before its loss and gradient norm have reached the host.
    """

    def __init__(self, device: torch.device):
        self._on_gpu = device.type == "cuda"
        self._marks: list[tuple[str, float | torch.cuda.Event]] = []    # of the step in hand; the first one is its start
        self._seconds: dict[str, float] = {}
        self._steps = 0

    def start(self) -> None:
        """A step begins here."""
        self._take_in()
        self._marks = [("", self._now())]

    def lap(self, phase: str) -> None:
        """What passed since the last mark was `phase`; only those in `PHASES` are reported."""
        self._marks.append((phase, self._now()))

    def read(self) -> tuple[dict[str, float], int]:
        """Seconds in each phase since the last call, and the number of steps. Waits for the last step's update."""
        self._take_in()
        seconds, steps = {phase: self._seconds.get(phase, 0.0) for phase in PHASES}, self._steps
        self._seconds, self._steps = {}, 0
        return seconds, steps

    def _now(self) -> float | torch.cuda.Event:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _take_in(self) -> None:
        if self._on_gpu and self._marks:
            self._marks[-1][1].synchronize()
        for (_, before), (phase, after) in zip(self._marks, self._marks[1:]):
            passed = before.elapsed_time(after) / 1000 if self._on_gpu else after - before
            self._seconds[phase] = self._seconds.get(phase, 0.0) + passed
        self._steps += bool(self._marks)
        self._marks = []


@dataclass(frozen=True)
class Gauges:
    """What a row of metrics.jsonl says of time, memory and the GPUs' utilisation; times and memory are those of this process."""

    clock: StepClock
    device: torch.device
    flops: ModelFlops
    peak_flops: float | None    # operations a second of all ranks' GPUs together; None without a GPU, or for an unknown one

    def read(self, sums: torch.Tensor) -> dict[str, float | None]:
        """The figures since the last call; `sums` (in the order of `loss.STATISTICS`) counts what was computed in that time, on all ranks.

        `data_seconds` to `step_seconds`: mean a step, in `PHASES`. `mfu`: the operations that `sums` needs, over these seconds and the
        peak. `gpu_memory_gib`: the most that torch has had allocated since the process began.
        """
        seconds, steps = self.clock.read()
        total = sum(seconds.values())
        on_gpu = self.device.type == "cuda"
        return {**{f"{phase}_seconds": value / max(1, steps) for phase, value in seconds.items()},
                "gpu_memory_gib": torch.cuda.max_memory_allocated(self.device) / GIB if on_gpu else None,
                "host_memory_gib": psutil.Process().memory_info().rss / GIB,
                "mfu": self.flops.of(sums) / total / self.peak_flops if self.peak_flops and total > 0 else None}
