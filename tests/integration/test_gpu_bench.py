"""The benchmark of a 7B run on one card, on the CPU with a model of two layers: the way from a model's folder to the table."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

pytestmark = pytest.mark.integration


def bench(repository, *arguments):
    command = [sys.executable, "tests/bench/gpu_7b.py", *arguments]
    return subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=1800)


@pytest.mark.skipif(torch.cuda.is_available(), reason="for a machine without GPU: with one the command measures it")
def test_the_benchmark_of_one_card_goes_through_on_a_cpu(repository, tmp_path):
    done = bench(repository, "--model", "tiny", "--runs", "full", "--steps", "2", "--out", str(tmp_path / "bench"))
    assert done.returncode == 0, done.stdout + done.stderr
    header, _, row = [line for line in done.stdout.splitlines() if line.startswith("|")]
    cells = dict(zip(header.strip("| ").split(" | "), row.strip("| ").split(" | ")))
    assert cells["run"] == "full tuning, micro-batch 1 (2 layers)" and float(cells["tokens/s"].replace(",", "")) > 0
    assert all(float(part) >= 0 for part in cells["data / forward / backward / update, s"].split(" / "))
    if torch.version.cuda is None:      # a build for CUDA maps libraries that the plan does not count on a machine without GPU
        assert float(cells["plan: host GiB"]) == pytest.approx(float(cells["host GiB (resident, mapped files too)"]), rel=0.15)
    assert bench(repository, "--model", "7b").returncode == 2
