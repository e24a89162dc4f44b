"""SIGTERM and SIGINT end a run early and whole, under each launcher; what is measured beside a run changes nothing of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from launching import deepspeed, run, torchrun
from safetensors.torch import load_file

pytestmark = pytest.mark.integration
STEPS = 30
SETTINGS = [f"max_steps={STEPS}", "learning_rate=1e-2", "warmup_ratio=0", "logging_steps=1", "save_steps=0"]


def command(packed_folder, model, out, *settings):
    return ["launch/train.py", "--data", str(packed_folder), "--model", str(model), "--out", str(out), "--variant", "no_physics",
            "--set", *SETTINGS, *settings]


def finish(repository, arguments):
    done = run(repository, arguments)
    assert done.returncode == 0, done.stdout + done.stderr


def stop(repository, arguments, out, number, whole_group):
    """Send a signal when the second row is there. Returns the launcher's exit status and what all of its processes printed."""
    process = subprocess.Popen([sys.executable, *arguments], cwd=repository, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                               start_new_session=True)
    deadline = time.monotonic() + 1800
    while process.poll() is None and len(rows_of(out)) < 2 and time.monotonic() < deadline:
        time.sleep(0.005)
    assert process.poll() is None, process.communicate()[0]
    (os.killpg if whole_group else os.kill)(process.pid, number)
    printed, _ = process.communicate(timeout=600)   # until the ranks, which hold the other end, are gone as well
    return process.returncode, printed


def rows_of(out):
    path = out / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")] if path.exists() else []


def checkpoint_of(out, printed):
    """The step after which the run says that it stopped; its checkpoint must be there and be the only one."""
    (line,) = (line for line in printed.splitlines() if line.startswith("stopped by"))
    step = int(line.split("after step ")[1].split(" of ")[0])
    assert f"of {STEPS}" in line and "the same command goes on" in line and 2 <= step < STEPS
    assert [path.parent.name for path in (out / "checkpoints").glob("*/COMPLETE")] == [f"step_{step}"]
    assert not (out / "model").exists()
    return step


ON_TWO_RANKS = ["deepspeed=ds_configs/zero2.json", "per_device_train_batch_size=4"]


@pytest.fixture(scope="module")
def measured(repository, packed_folder, tiny_model_folder, tmp_path_factory):
    """An uninterrupted run on two ranks, which measures each turn's gradient."""
    out = tmp_path_factory.mktemp("runs") / "measured"
    finish(repository, [*deepspeed(2), *command(packed_folder, tiny_model_folder, out, *ON_TWO_RANKS, "turn_grad_norm_steps=10")])
    return out


def test_a_stopped_run_on_two_ranks_ends_with_the_weights_of_an_uninterrupted_one_that_also_measures(
        measured, repository, packed_folder, tiny_model_folder, tmp_path):
    out = tmp_path / "out"
    arguments = command(packed_folder, tiny_model_folder, out, *ON_TWO_RANKS)
    # A terminal or a cluster signals the whole group: the ranks are hit by it, and by their launcher once more.
    _, printed = stop(repository, [*deepspeed(2), *arguments], out, signal.SIGTERM, True)
    assert "stopped by SIGTERM" in printed
    checkpoint_of(out, printed)
    finish(repository, [*deepspeed(2), *arguments])
    expected, found = (load_file(folder / "model" / "model.safetensors") for folder in (measured, out))
    assert expected and all(torch.equal(value, found[name]) for name, value in expected.items())
    assert [row["step"] for row in rows_of(out)] == list(range(1, STEPS + 1))
    for row, other in zip(rows_of(measured), rows_of(out)):
        assert row["loss"] == other["loss"] and "grad_norm_turn_1" not in other


def test_one_rank_measures_the_turns_norms_of_two(measured, packed_folder, tiny_model_folder, tmp_path):
    from vlmphys.config import from_mapping
    from vlmphys.train import train
    given = dict(pair.split("=") for pair in [*SETTINGS, "per_device_train_batch_size=8", "turn_grad_norm_steps=10"])
    train(from_mapping({**given, "variant": "no_physics", "model": str(tiny_model_folder), "data": str(packed_folder),
                        "out": str(tmp_path / "one")}))
    of_two, of_one = ([row["grad_norm_turn_1"] for row in rows_of(run) if "grad_norm_turn_1" in row]
                      for run in (measured, tmp_path / "one"))
    assert len(of_one) == STEPS // 10 and all(norm > 0 for norm in of_one)
    assert of_two == pytest.approx(of_one, rel=1e-2)     # after 30 large steps two ranks' sums have drifted apart in the last places
    assert of_two[0] == pytest.approx(of_one[0], rel=1e-3)


def test_torchrun_passes_the_signal_on_to_its_ranks(repository, packed_folder, tiny_model_folder, tmp_path):
    out = tmp_path / "out"
    arguments = [*torchrun(2), *command(packed_folder, tiny_model_folder, out, "engine=plain", "per_device_train_batch_size=4")]
    status, printed = stop(repository, arguments, out, signal.SIGTERM, False)
    assert status != 0
    checkpoint_of(out, printed)


def test_one_process_leaves_with_the_signals_status(repository, packed_folder, tiny_model_folder, tmp_path):
    out = tmp_path / "out"
    arguments = command(packed_folder, tiny_model_folder, out, "per_device_train_batch_size=8")
    status, printed = stop(repository, arguments, out, signal.SIGINT, False)
    assert status == 128 + signal.SIGINT and "stopped by SIGINT" in printed and "Traceback" not in printed
    checkpoint_of(out, printed)


def test_measuring_turns_and_reading_ahead_change_no_bit(packed_folder, tiny_model_folder, tmp_path):
    from vlmphys.config import from_mapping
    from vlmphys.train import train
    shared = {"model": str(tiny_model_folder), "data": str(packed_folder), "max_steps": 6, "tune": "lora", "lora_r": 4, "lora_dropout": 0.3,
              "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "logging_steps": 1, "save_steps": 0,
              "learning_rate": 1e-2}
    for name, more in (("without", {"dataloader_num_workers": 0}), ("with", {"turn_grad_norm_steps": 2, "dataloader_num_workers": 2})):
        train(from_mapping({**shared, **more, "out": str(tmp_path / name)}))
    expected, found = (load_file(tmp_path / name / "model" / "adapter_model.safetensors") for name in ("without", "with"))
    assert expected and all(torch.equal(value, found[name]) for name, value in expected.items())
    rows = rows_of(tmp_path / "with")
    assert [row["step"] for row in rows if "grad_norm_turn_1" in row] == [2, 4, 6]
    norms = [rows[5][f"grad_norm_turn_{k}"] for k in (1, 2, 3, 4)]
    assert all(norm > 0 for norm in norms) and rows[5]["grad_norm"] <= sum(norms) * 1.001
    assert [row["loss"] for row in rows] == [row["loss"] for row in rows_of(tmp_path / "without")]
