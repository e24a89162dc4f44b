"""Whether every engine trains alike: losses of 20 optimizer steps and the final weights, against torch alone on one rank.

    python tests/bench/equivalence.py            # 22 runs through the real launchers, some minutes; exit status 1 where a target is missed
    python tests/bench/equivalence.py --quick    # 6 of them

Each run is `torchrun` or `deepspeed --num_gpus N` on launch/train.py, in fp32, on the same simulated clips of two mechanisms with dialogues
of different lengths, whole tuning of the tiny model, 4 clips a step in whatever split. 15 clips train, so that each fourth step has three,
and a rank of two may have none in a micro-batch. Targets:

- loss: the largest |loss - reference| / reference over the 20 steps, at most 1e-5. The loss of a step is computed before its update.
- weights: over the trained tensors the largest L2 norm of (weight - reference), divided by the reference's norm, at most 1e-4. The last
  column divides by how far training moved the tensor instead, which is stricter and has no target: it shows that what is compared moved.

Adam's settings are those of the quick start (learning rate 1e-3 after no warm-up, epsilon 1e-8, clipping at 1), with weight decay 0.1 so
that an engine that applies it twice is seen. Adam divides a gradient by its own size, so that an element whose gradient is next
to rounding moves by a full step in a direction that rounding decides; there are few of them, and the norms above hold them in proportion.
On a machine with one GPU the rows of two ranks are left out.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file

from vlmphys.world import free_port

ROOT = Path(__file__).resolve().parents[2]
STEPS, GLOBAL_BATCH = 20, 4
LOSS_TARGET, WEIGHT_TARGET = 1e-5, 1e-4
SETTINGS = {"plain": "engine=plain", "fsdp": "engine=fsdp", **{
    name: f"deepspeed=ds_configs/{name}.json" for name in ("zero1", "zero2", "zero2_offload", "zero3", "zero3_offload")}}
ACCUMULATED = ("plain", "zero2", "zero3", "fsdp")       # also with one clip a micro-batch
QUICK = {("plain", 1, 4), ("plain", 2, 2), ("zero2", 2, 1), ("zero3", 2, 1), ("zero3_offload", 1, 4), ("fsdp", 2, 1)}


@dataclass(frozen=True)
class Case:
    """A way to train the same thing."""

    engine: str
    ranks: int
    micro_batch: int

    @property
    def accumulation(self) -> int:
        return GLOBAL_BATCH // (self.ranks * self.micro_batch)

    @property
    def name(self) -> str:
        return f"{self.engine}_{self.ranks}x{self.micro_batch}"


def cases(quick: bool, most_ranks: int) -> list[Case]:
    """The reference first: plain, one rank, one micro-batch."""
    found = [Case(engine, ranks, micro_batch) for engine in SETTINGS for ranks in (1, 2) for micro_batch in (GLOBAL_BATCH // ranks, 1)
             if ranks <= most_ranks and (micro_batch > 1 or engine in ACCUMULATED)]
    return [case for case in found if not quick or (case.engine, case.ranks, case.micro_batch) in QUICK]


def make_clips(folder: Path) -> Path:
    """15 training clips of two mechanisms, simulated, split and packed for the tiny model by the project's own commands."""
    run = [sys.executable]
    command(*run, "data_prep/simulate.py", "--out", folder / "videos", "--categories", "fan,gear", "--clips-per-state", 2, "--size", 112)
    command(*run, "data_prep/split.py", "--videos", folder / "videos", "--out", folder / "split.json", "--protocol", "weak",
            "--per-anomaly", 1, "--val-share", 0)
    command(*run, "data_prep/pack.py", "--videos", folder / "videos", "--split", folder / "split.json", "--model", "tiny", "--out",
            folder / "packed", "--variants", "multi_turn")
    return folder / "packed"


def train(case: Case, packed: Path, out: Path) -> float:
    """One run; its seconds."""
    module = ["torch.distributed.run", "--nproc-per-node", case.ranks, "--master-port", free_port()]
    if case.engine not in ("plain", "fsdp"):
        module = ["deepspeed.launcher.runner", "--num_gpus", case.ranks, "--master_port", free_port()]
    started = time.monotonic()
    command(sys.executable, "-m", *module, "launch/train.py", "--model", "tiny", "--data", packed, "--out", out, "--set",
            SETTINGS[case.engine], f"per_device_train_batch_size={case.micro_batch}", f"gradient_accumulation_steps={case.accumulation}",
            f"max_steps={STEPS}", "learning_rate=1e-3", "warmup_ratio=0", "weight_decay=0.1", "logging_steps=1", "save_steps=0")
    return time.monotonic() - started


def command(*words: object) -> None:
    """Run a command from the repository's root, one thread a process; what it printed is shown where it fails."""
    done = subprocess.run([str(word) for word in words], cwd=ROOT, capture_output=True, text=True,
                          env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, words))} ended with {done.returncode}:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")


def losses_of(out: Path) -> torch.Tensor:
    """The loss at each step, float64."""
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1)), f"{out}: a row for each step is needed"
    return torch.tensor([row["loss"] for row in rows], dtype=torch.float64)


def weights_of(out: Path) -> dict[str, torch.Tensor]:
    return {name: value.double() for name, value in load_file(out / "model" / "model.safetensors").items()}


def compare(out: Path, reference: Path, base: dict[str, torch.Tensor]) -> tuple[float, float, float]:
    """Largest relative difference of the losses, of the weights, and of the weights against how far they moved."""
    losses, expected = losses_of(out), losses_of(reference)
    weights, expected_weights = weights_of(out), weights_of(reference)
    assert weights.keys() == expected_weights.keys() == base.keys()
    of_norm, of_way = [], []
    for name, value in expected_weights.items():
        way, off = (value - base[name]).norm(), (weights[name] - value).norm()
        if way > 0:
            of_norm.append(float(off / value.norm()))
            of_way.append(float(off / way))
        else:
            assert off == 0, f"{out}: {name} is frozen and changed"
    assert len(of_norm) > 1, "the reference trained nothing"
    return float(((losses - expected).abs() / expected).max()), max(of_norm), max(of_way)


def main() -> int:
    parser = argparse.ArgumentParser(description="Losses and weights of every engine against torch alone on one rank.")
    parser.add_argument("--quick", action="store_true", help="6 runs instead of 22")
    parser.add_argument("--out", help="folder for clips and runs; default: a temporary one")
    arguments = parser.parse_args()
    console = Console(width=max(110, Console().width))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(arguments.out or scratch).absolute()
        if folder.exists() and any(folder.iterdir()):
            sys.exit(f"error: {folder} is not empty: give a new folder with --out")
        packed = make_clips(folder)
        most_ranks = 1 if torch.cuda.device_count() == 1 else 2
        base = {name: value.double() for name, value in load_file(ROOT / "vlmphys" / "tiny_base" / "model.safetensors").items()}
        table = Table(title=f"{STEPS} steps of {GLOBAL_BATCH} clips, fp32, against plain on one rank, {GLOBAL_BATCH} x 1",
                      title_justify="left", padding=(0, 0))
        for name in ("engine", "ranks", "micro-batch\nx accumulation", "first\nloss", "last\nloss", f"loss\n(<= {LOSS_TARGET:g})",
                     f"weights\n(<= {WEIGHT_TARGET:g})", "weights,\nof the way", "seconds"):
            table.add_column(name, justify="left" if name == "engine" else "right", no_wrap=True)
        missed, every_loss, reference = 0, {}, None
        for case in cases(arguments.quick, most_ranks):
            out = folder / case.name
            console.print(f"-- {case.name}", highlight=False)
            seconds = train(case, packed, out)
            reference = reference or out
            losses = every_loss[case.name] = losses_of(out).tolist()
            of_loss, of_norm, of_way = compare(out, reference, base)
            bad = of_loss > LOSS_TARGET or of_norm > WEIGHT_TARGET
            missed += bad
            table.add_row(case.engine, str(case.ranks), f"{case.micro_batch} x {case.accumulation}",
                          f"{losses[0]:.5f}", f"{losses[-1]:.5f}",
                          *("reference" if out == reference else f"{value:.1e}" for value in (of_loss, of_norm, of_way)), f"{seconds:.0f}",
                          style="red" if bad else None)
        if arguments.out:
            (folder / "losses.json").write_text(json.dumps(every_loss, indent=1))
    console.print(table)
    compared = table.row_count - 1
    console.print(f"{missed} of {compared} rows miss a target" if missed else f"all {compared} rows meet both targets")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
