"""What scoring a million rows takes: `python tests/bench/score_speed.py [--rows N] [--check]`.

Rows over the 22 categories of Phys-AD are drawn by seed, written as CSV and as JSONL (clip_id, label, score), and scored by launch/score.py in a
process of its own, start-up included. Prints wall seconds, CPU seconds and peak memory of that process; --check fails above 20 s of wall time or
2 GiB, and in any case it fails where the process has imported torch.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

REPOSITORY = Path(__file__).resolve().parents[2]
CATEGORIES = 22
MOST_SECONDS, MOST_GIB = 20.0, 2.0
# Says on its last line what it used, after the command has ended.
CHILD = """
import json, resource, runpy, sys
sys.path.append("tests")
from peak_memory import peak_resident_bytes
try:
    runpy.run_path("launch/score.py", run_name="__main__")
except SystemExit as end:
    assert end.code == 0, end.code
used = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps({"cpu_seconds": used.ru_utime + used.ru_stime, "peak_gib": peak_resident_bytes() / 2**30, "torch": "torch" in sys.modules}))
"""


def write_rows(folder: Path, rows: int, seed: int) -> list[Path]:
    """The same rows as scores.csv and scores.jsonl."""
    from vlmphys.scoring import PHYS_AD_CATEGORIES
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 2, rows)
    scores = np.round(generator.normal(size=rows) + labels, 6).tolist()
    table, lines = folder / "scores.csv", folder / "scores.jsonl"
    with open(table, "w") as first, open(lines, "w") as second:
        first.write("clip_id,label,score\n")
        for number, (label, score) in enumerate(zip(labels.tolist(), scores)):
            clip_id = f"{PHYS_AD_CATEGORIES[number % CATEGORIES]}/test/{'stuck' if label else 'anomaly_free'}/{number:07d}"
            first.write(f"{clip_id},{label},{score}\n")
            second.write(json.dumps({"clip_id": clip_id, "label": label, "score": score}) + "\n")
    return [table, lines]


def measure(file: Path, out: Path) -> dict:
    """Score one file in a new process; its figures."""
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", CHILD, "--predictions", file, "--out", out], cwd=REPOSITORY, capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(REPOSITORY)})
    wall = time.monotonic() - started
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    return {"file": file.name, "wall_seconds": wall, **json.loads(done.stdout.splitlines()[-1])}


def main() -> int:
    """0: measured; 1: a limit of --check was missed, or torch was imported."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--check", action="store_true", help=f"fail above {MOST_SECONDS:g} s or {MOST_GIB:g} GiB")
    options = parser.parse_args()
    missed = False
    with tempfile.TemporaryDirectory() as folder:
        for file in write_rows(Path(folder), options.rows, options.seed):
            figures = measure(file, Path(folder) / f"out_{file.suffix[1:]}")
            print(f"{options.rows:,} rows, {figures['file']}: {figures['wall_seconds']:.1f} s wall, {figures['cpu_seconds']:.1f} s CPU, "
                  f"{figures['peak_gib']:.2f} GiB, torch {'imported' if figures['torch'] else 'not imported'}")
            missed |= figures["torch"] or options.check and (figures["wall_seconds"] > MOST_SECONDS or figures["peak_gib"] > MOST_GIB)
    return int(missed)


if __name__ == "__main__":
    sys.path.insert(0, str(REPOSITORY))
    sys.exit(main())
