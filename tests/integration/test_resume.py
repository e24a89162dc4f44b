"""kill -9 at random steps and in the middle of writing a checkpoint, a disk that is full at the end, a signal in the last step: the same
command again gives the weights of an uninterrupted run."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time

import launching
import pytest
import torch
from launching import run
from safetensors.torch import load_file

from vlmphys.checkpoint import complete

pytestmark = pytest.mark.integration
STEPS = 30
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


def kill_at(repository, arguments, out, step, wait_seconds):
    """Start the command and kill it some time after the checkpoint of `step` has begun."""
    assert not list((out / "checkpoints").glob(f"step_{step}*")), "it would be killed before it has trained"
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
    return [{key: value for key, value in row.items() if not key.endswith(changing)} for row in launching.rows_of(out)]


@pytest.mark.parametrize("setting", ["engine=plain", "deepspeed=ds_configs/zero2.json"])
def test_kill_and_resume_ends_with_the_same_weights(setting, repository, packed_folder, tiny_model_folder, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    done = run(repository, command(packed_folder, tiny_model_folder, whole, setting))
    assert done.returncode == 0, done.stderr
    # Clips are read in threads there, and when they are needed here.
    arguments = command(packed_folder, tiny_model_folder, cut, setting, "dataloader_num_workers=0")
    chance = random.Random(setting)
    for _ in range(3):
        newest = max(complete(cut), default=0)
        # The checkpoint before it is complete then, and newer than all that were there.
        kill_at(repository, arguments, cut, newest + chance.choice((4, 6)), chance.uniform(0, 0.03))
        assert max(complete(cut)) > newest
    died = run(repository, ["-c", DIE_INSIDE, *arguments])
    assert died.returncode == -signal.SIGKILL, died.stdout + died.stderr
    assert list((cut / "checkpoints").glob("step_*.partial")) and not (cut / "model").exists()
    resumed = run(repository, arguments)
    assert resumed.returncode == 0, resumed.stderr
    assert "resumed from" in resumed.stdout and not list((cut / "checkpoints").glob("*.partial"))
    one, other = (load_file(out / "model" / "model.safetensors") for out in (whole, cut))
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert rows_of(whole) == rows_of(cut) and [row["step"] for row in rows_of(cut)] == list(range(3, STEPS + 1, 3))


def test_one_of_two_ranks_is_killed_and_the_run_goes_on_to_the_same_weights(repository, packed_folder, tiny_model_folder, tmp_path):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    settings = ["engine=plain", "per_device_train_batch_size=4"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    done = run(repository, [*launcher, *command(packed_folder, tiny_model_folder, whole, *settings)])
    assert done.returncode == 0, done.stderr
    arguments = [*launcher, *command(packed_folder, tiny_model_folder, cut, *settings)]
    with subprocess.Popen([sys.executable, *arguments], cwd=repository, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True) as process:
        while process.poll() is None and not complete(cut):
            time.sleep(0.002)
        os.kill(json.loads((cut / "env.json").read_text())["pids"][1], signal.SIGKILL)
        printed, _ = process.communicate(timeout=600)
    assert process.returncode != 0 and not (cut / "model").exists(), printed
    resumed = run(repository, arguments)
    assert resumed.returncode == 0 and "resumed from" in resumed.stdout, resumed.stderr
    one, other = (load_file(out / "model" / "model.safetensors") for out in (whole, cut))
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert rows_of(whole) == rows_of(cut)


@pytest.fixture
def short(packed_folder, tiny_model_folder, tmp_path):
    """The settings of a run of three steps into a folder of that name, and the weights that it comes to if nothing happens."""
    from vlmphys.config import from_mapping
    from vlmphys.train import train

    def config(name):
        return from_mapping({"model": str(tiny_model_folder), "data": str(packed_folder), "max_steps": 3, "learning_rate": 1e-2,
                             "per_device_train_batch_size": 8, "save_steps": 0, "logging_steps": 1, "out": str(tmp_path / name)})
    train(config("whole"))
    return config, load_file(tmp_path / "whole" / "model" / "model.safetensors")


def no_space(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("end", ["full disk", "signal in the last step"])
def test_a_run_that_did_not_write_its_model_has_all_its_steps(end, short, tmp_path, monkeypatch):
    from vlmphys import runs, train as training
    config, expected = short
    out = tmp_path / "cut"
    with monkeypatch.context() as patch:
        if end == "full disk":
            patch.setattr(runs, "write_model", no_space)
            with pytest.raises(ValueError, match="model could not be written to .*No space left.*free some disk space .*same command"):
                training.train(config("cut"))
        else:
            step = training.train_step

            def told(job, number, is_first):
                figures = step(job, number, is_first)
                if number == 2:
                    signal.raise_signal(signal.SIGTERM)
                return figures
            patch.setattr(training, "train_step", told)
            with pytest.raises(training.Stopped, match="after step 3 of 3, which is saved"):
                training.train(config("cut"))
    assert complete(out) == [3] and not (out / "model").exists()
    monkeypatch.setattr(training, "train_step", lambda *_: pytest.fail("a step was made again"))
    training.train(config("cut"))
    found = load_file(out / "model" / "model.safetensors")
    assert all(torch.equal(value, found[name]) for name, value in expected.items())
    assert complete(out) == [] and [row["step"] for row in rows_of(out)] == [1, 2, 3]


def test_a_disk_too_full_for_the_last_checkpoint_does_not_cost_the_model(short, tmp_path, monkeypatch, capsys):
    from vlmphys import checkpoint, train as training
    config, expected = short
    monkeypatch.setattr(checkpoint, "save_file", no_space)
    training.train(config("cut"))
    assert "checkpoint of step 3 could not be written" in capsys.readouterr().out
    found = load_file(tmp_path / "cut" / "model" / "model.safetensors")
    assert all(torch.equal(value, found[name]) for name, value in expected.items())


def test_what_a_killed_engine_left_on_the_disk_is_removed(short, tmp_path):
    from vlmphys.train import train
    left = tmp_path / "whole_again" / ".offload" / "zero_stage_3"
    left.mkdir(parents=True)
    (left / "0.tensor.swp").write_bytes(b"moments")
    train(short[0]("whole_again"))
    assert not left.parent.exists()
