"""kill -9 at random steps and in the middle of writing a checkpoint, then the same command again: the weights of an uninterrupted run."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

pytestmark = pytest.mark.integration
STEPS = 12
SETTINGS = [f"max_steps={STEPS}", "per_device_train_batch_size=8", "learning_rate=1e-2", "warmup_ratio=0", "weight_decay=0.1",
            "logging_steps=3", "save_steps=2"]
# Dies when the files of a checkpoint are written and its folder has its own name not yet.
DIE_INSIDE = """
import os, runpy, signal, sys
from vlmphys import checkpoint
checkpoint.fsync_folder = lambda folder: os.kill(os.getpid(), signal.SIGKILL)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def command(packed_folder, model, out, *settings):
    return ["launch/train.py", "--data", str(packed_folder), "--model", str(model), "--out", str(out), "--set", *SETTINGS, *settings]


def run(repository, arguments):
    return subprocess.run([sys.executable, *arguments], cwd=repository, capture_output=True, text=True, timeout=1800)


def kill_at(repository, arguments, out, step, wait_seconds):
    """Start the command and kill it some time after the checkpoint of `step` has begun."""
    process = subprocess.Popen([sys.executable, *arguments], cwd=repository, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                               start_new_session=True)
    deadline = time.monotonic() + 1800
    while process.poll() is None and not list((out / "checkpoints").glob(f"step_{step}*")) and time.monotonic() < deadline:
        time.sleep(0.002)
    time.sleep(wait_seconds)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    printed, _ = process.communicate()
    assert process.returncode == -signal.SIGKILL, f"it ended before it could be killed: {printed}"


def rows_of(out):
    changing = ("second", "seconds", "memory_gib")
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if not key.endswith(changing)} for row in rows]


@pytest.mark.parametrize("setting", ["engine=plain", "deepspeed=ds_configs/zero2.json"])
def test_kill_and_resume_ends_with_the_same_weights(setting, repository, packed_folder, tiny_model_folder, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    done = run(repository, command(packed_folder, tiny_model_folder, whole, setting))
    assert done.returncode == 0, done.stderr
    # Clips are read in threads there, and when they are needed here.
    arguments = command(packed_folder, tiny_model_folder, cut, setting, "dataloader_num_workers=0")
    chance = random.Random(setting)
    for step in sorted(chance.sample((2, 4, 6, 8), 3)):
        kill_at(repository, arguments, cut, step, chance.uniform(0, 0.05))
    died = run(repository, ["-c", DIE_INSIDE, *arguments])
    assert died.returncode == -signal.SIGKILL, died.stdout + died.stderr
    assert list((cut / "checkpoints").glob("step_*.partial")) and not (cut / "model").exists()
    resumed = run(repository, arguments)
    assert resumed.returncode == 0, resumed.stderr
    assert "resumed from" in resumed.stdout and not list((cut / "checkpoints").glob("*.partial"))
    one, other = (load_file(out / "model" / "model.safetensors") for out in (whole, cut))
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert rows_of(whole) == rows_of(cut) and [row["step"] for row in rows_of(cut)] == [3, 6, 9, 12]
