"""Two ranks give the losses and weights of one, for the same global batch, also where the last batch leaves a rank without clips; and a run
goes on with another engine and number of ranks. tests/bench/equivalence.py prints all of it as a table."""

from __future__ import annotations

import shutil

import pytest
import torch
from launching import deepspeed, rows_of, run, torchrun
from safetensors.torch import load_file

pytestmark = pytest.mark.integration
STEPS = 6   # 20 clips in batches of 8: steps 3 and 6 hold 4 clips, all of them on the first rank


def train(repository, packed_folder, model, out, launcher, *settings):
    arguments = ["launch/train.py", "--data", str(packed_folder), "--model", str(model), "--out", str(out), "--set", f"max_steps={STEPS}",
                 "learning_rate=1e-3", "warmup_ratio=0", "logging_steps=1", "save_steps=4", *settings]
    done = run(repository, arguments, launcher)
    assert done.returncode == 0, done.stdout + done.stderr
    return rows_of(out), load_file(out / "model" / "model.safetensors"), done.stdout


ONE_RANK = ["per_device_train_batch_size=8"]
ZERO3 = ["deepspeed=ds_configs/zero3.json", "per_device_train_batch_size=2", "gradient_accumulation_steps=2"]
FSDP = ["engine=fsdp", "per_device_train_batch_size=4"]


@pytest.fixture(scope="module")
def one_rank(repository, packed_folder, tiny_model_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "one"
    return *train(repository, packed_folder, tiny_model_folder, out, [], *ONE_RANK)[:2], out


def check_equal(rows, weights, expected_rows, expected_weights):
    assert len(rows) == len(expected_rows) == STEPS
    assert expected_rows[-1]["loss"] < expected_rows[0]["loss"], "weights that do not move would be equal without any merit"
    for row, expected in zip(rows, expected_rows):
        for key in ("loss", "loss_turn_1", "loss_turn_4", "verdict_loss"):
            assert row[key] == pytest.approx(expected[key], rel=1e-5), (row["step"], key)
        assert row["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-4)
    assert weights.keys() == expected_weights.keys()
    for name, value in expected_weights.items():
        # By norm, as tests/bench/equivalence.py has it: Adam divides a gradient that is all rounding by its own size, so that one weight in
        # thousands may go another way by a thousandth of a step.
        assert (weights[name] - value).norm() <= 1e-5 * value.norm(), name


def cut_back(run, out):
    """A copy of a finished run as it stood after its last checkpoint."""
    shutil.copytree(run, out)
    shutil.rmtree(out / "model")
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["step_4"]


@pytest.mark.parametrize(("launcher", "settings"), [
    (deepspeed, ["deepspeed=ds_configs/zero2.json", "per_device_train_batch_size=4"]),
    (deepspeed, ["deepspeed=ds_configs/zero2_offload.json", "per_device_train_batch_size=2", "gradient_accumulation_steps=2"]),
    (torchrun, ["engine=plain", "per_device_train_batch_size=4"]),
    (torchrun, FSDP)])
def test_two_ranks_equal_one(launcher, settings, one_rank, repository, packed_folder, tiny_model_folder, tmp_path):
    rows, weights, _ = train(repository, packed_folder, tiny_model_folder, tmp_path / "two", launcher(2), *settings)
    check_equal(rows, weights, *one_rank[:2])


def test_a_run_goes_on_with_another_engine_and_other_ranks(one_rank, repository, packed_folder, tiny_model_folder, tmp_path):
    expected = one_rank[:2]
    zero3, after_zero3, after_plain = tmp_path / "zero3", tmp_path / "after_zero3", tmp_path / "after_plain"
    rows, weights, _ = train(repository, packed_folder, tiny_model_folder, zero3, torchrun(2), *ZERO3)
    check_equal(rows, weights, *expected)
    cut_back(zero3, after_zero3)
    rows, weights, said = train(repository, packed_folder, tiny_model_folder, after_zero3, [], *ONE_RANK)
    assert "resumed from" in said and "written by engine deepspeed on 2 rank(s)" in " ".join(said.split())
    check_equal(rows, weights, *expected)
    cut_back(one_rank[2], after_plain)
    rows, weights, said = train(repository, packed_folder, tiny_model_folder, after_plain, torchrun(2), *ZERO3)
    assert "written by engine plain on 1 rank(s)" in " ".join(said.split())
    check_equal(rows, weights, *expected)
