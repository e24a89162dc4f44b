"""Validation while training through the real command: rows, the best checkpoint, early stopping, kill and resume, ranks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import launching
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

pytestmark = pytest.mark.integration
# The mean over two categories of one normal and one anomalous clip can be 0, 0.5 or 1, so that it rises at most twice, and the verdict's loss
# goes up and down within 1 %: with a patience of 2 the run stopped after step 12.
SETTINGS = {"max_steps": 16, "learning_rate": 1e-2, "warmup_ratio": 0, "logging_steps": 3, "save_steps": 3, "save_total_limit": 1,
            "eval_steps": 2, "per_device_eval_batch_size": 3, "early_stopping_patience": 2, "load_best_model_at_end": True}


def command(packed_folder, model, out, **more):
    settings = {"per_device_train_batch_size": 8, **SETTINGS, **more}
    return ["launch/train.py", "--data", str(packed_folder), "--model", str(model), "--out", str(out), "--set",
            *(f"{key}={value}" for key, value in settings.items())]


def run(repository, arguments, launcher=()):
    done = launching.run(repository, arguments, launcher)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def rows_of(out):
    return [{key: value for key, value in row.items() if key != "seconds"} for row in launching.rows_of(out, "evaluations.jsonl")]


def model_of(out):
    return load_file(out / "model" / "model.safetensors")


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.fixture(scope="module")
def stopped(repository, packed_folder, tiny_model_folder, tmp_path_factory):
    """A run that validates, stops early and ends with its best model."""
    out = tmp_path_factory.mktemp("runs") / "stopped"
    return out, run(repository, command(packed_folder, tiny_model_folder, out))


def test_early_stopping_ends_the_run_with_its_best_model(stopped):
    from vlmphys.runs import load_run_model, open_run
    out, done = stopped
    rows = rows_of(out)
    best, last = rows[-1]["best_step"], rows[-1]["step"]
    assert [row["step"] for row in rows] == list(range(2, last + 1, 2)) and best + 4 <= last < 16
    assert rows[-1]["without_gain"] == 2 and f"stopped early after step {last} of 16" in done.stdout
    assert f"the model is that of step {best}" in done.stdout
    assert json.loads((out / "best.json").read_text()) == {
        "step": best, "auroc": max(row["auroc"] for row in rows), "verdict_loss": rows[best // 2 - 1]["verdict_loss"]}
    # One checkpoint is kept, the newest, and the best one beside it; that of the last step goes when the model stands.
    newest = 3 * ((last - 1) // 3)
    assert {path.name for path in (out / "checkpoints").iterdir()} == {f"step_{step}" for step in {best, max(newest, best)}}
    weights = load_run_model(open_run(out)).state_dict()
    stored = load_file(out / "checkpoints" / f"step_{best}" / "state-00001.safetensors")
    names = [name.removeprefix("weight/") for name in stored if name.startswith("weight/")]
    assert names and all(torch.equal(weights[name], stored[f"weight/{name}"]) for name in names)
    metrics = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    # The schedule is that of 16 steps, stopped or not.
    assert metrics[0]["learning_rate"] == pytest.approx(1e-2 * 0.5 * (1 + np.cos(np.pi * 2 / 16)))


def test_the_figures_are_those_of_predict_on_the_model_that_was_written(stopped, packed_folder):
    from vlmphys.dialogue import verdict_continuations
    from vlmphys.inference import judge_batch
    from vlmphys.model import load_tokenizer, read_facts
    from vlmphys.predictions import Explain
    from vlmphys.runs import load_run_model, open_run
    from vlmphys.shards import open_packed
    opened, packed = open_run(stopped[0]), open_packed(packed_folder)
    tokenizer = load_tokenizer(str(opened.model_folder))
    ids = packed.clip_ids("val")
    clips = [packed.frames.row(clip_id) for clip_id in ids]
    dialogues = [packed.dialogues.row(clip_id, opened.variant) for clip_id in ids]
    judged = judge_batch(load_run_model(opened), read_facts(str(opened.model_folder)),
                         [row.input_ids[:row.verdict_span[0]] for row in dialogues], np.stack([clip.frames_THWC for clip in clips]),
                         verdict_continuations(tokenizer), tokenizer.eos_token_id, Explain.NONE)
    (row,) = (row for row in rows_of(stopped[0]) if row["step"] == row["best_step"] == rows_of(stopped[0])[-1]["best_step"])
    truth = [clip.log_anomalous if shown.label else clip.log_normal for clip, shown in zip(judged, clips)]
    assert row["verdict_loss"] == pytest.approx(-np.mean(truth), abs=1e-4)
    assert row["log_odds_accuracy"] == np.mean([(clip.score >= 0) == bool(shown.label) for clip, shown in zip(judged, clips)])
    score = {clip_id: clip.score for clip_id, clip in zip(ids, judged)}
    for category, auroc in row["per_category"].items():
        normal, anomalous = (next(score[clip.clip_id] for clip in clips if (clip.category, clip.label) == (category, label))
                             for label in (0, 1))
        assert auroc == float(anomalous > normal)


def test_tensorboard_carries_the_same_figures(stopped):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    board = EventAccumulator(str(stopped[0] / "tensorboard"))
    board.Reload()
    for tag, of in (("eval/auroc", lambda row: row["auroc"]), ("eval/verdict_loss", lambda row: row["verdict_loss"]),
                    ("eval/auroc_hinge", lambda row: row["per_category"]["hinge"])):
        assert [(event.step, event.value) for event in board.Scalars(tag)] == [
            (row["step"], pytest.approx(of(row))) for row in rows_of(stopped[0])]


def test_a_killed_run_ends_with_the_same_best_step_stop_and_model(stopped, repository, packed_folder, tiny_model_folder, tmp_path):
    arguments = command(packed_folder, tiny_model_folder, tmp_path / "cut")
    process = subprocess.Popen([sys.executable, *arguments], cwd=repository, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                               start_new_session=True)
    deadline = time.monotonic() + 1800
    # While the checkpoint of step 3 is written or just after: the first validation is done, its best step has a checkpoint.
    while not list((tmp_path / "cut" / "checkpoints").glob("step_3*")) and time.monotonic() < deadline:
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "cut" / "model").exists(), "it ended before it could be killed"
    done = run(repository, arguments)
    assert "resumed from" in done.stdout and "stopped early after step" in done.stdout
    assert rows_of(tmp_path / "cut") == rows_of(stopped[0])
    assert (tmp_path / "cut" / "best.json").read_text() == (stopped[0] / "best.json").read_text()
    assert equal(model_of(tmp_path / "cut"), model_of(stopped[0]))


def test_a_run_stopped_early_without_disk_space_for_its_model_only_writes_it(stopped, packed_folder, tiny_model_folder, tmp_path,
                                                                             monkeypatch):
    from vlmphys import runs, train as training
    from vlmphys.config import from_mapping
    config = from_mapping({**SETTINGS, "per_device_train_batch_size": 8, "data": str(packed_folder), "model": str(tiny_model_folder),
                           "out": str(tmp_path / "cut")})

    def full(*_):
        raise OSError("No space left on device")
    with monkeypatch.context() as patch:
        patch.setattr(runs, "write_model", full)
        with pytest.raises(ValueError, match="No space left"):
            training.train(config)
    monkeypatch.setattr(training, "train_step", lambda *_: pytest.fail("it went on after its early end"))
    training.train(config)
    assert rows_of(tmp_path / "cut") == rows_of(stopped[0])
    assert equal(model_of(tmp_path / "cut"), model_of(stopped[0]))
    assert {path.name for path in (tmp_path / "cut" / "checkpoints").iterdir()} == {
        path.name for path in (stopped[0] / "checkpoints").iterdir()}


def test_two_ranks_validate_as_one(stopped, repository, packed_folder, tiny_model_folder, tmp_path):
    """ZeRO-3, whose forward pass is a collective call; 4 clips in batches of 3 leave the second rank a single one."""
    arguments = command(packed_folder, tiny_model_folder, tmp_path / "two", per_device_train_batch_size=4,
                        deepspeed="ds_configs/zero3.json")
    run(repository, arguments, launching.deepspeed(2))
    rows, expected = rows_of(tmp_path / "two"), rows_of(stopped[0])
    assert len(rows) == len(expected)
    for row, other in zip(rows, expected):
        assert row["verdict_loss"] == pytest.approx(other["verdict_loss"], abs=1e-4)
        assert {key: value for key, value in row.items() if key != "verdict_loss"} == {
            key: value for key, value in other.items() if key != "verdict_loss"}
    one, other = model_of(tmp_path / "two"), model_of(stopped[0])
    assert one.keys() == other.keys() and all(torch.allclose(value, other[name], atol=1e-4) for name, value in one.items())


@pytest.mark.parametrize("more", [{"tune": "full"}, {"tune": "lora", "lora_r": 4, "lora_dropout": 0.5}], ids=["full", "lora"])
def test_the_weights_with_and_without_validation_are_bit_identical(more, packed_folder, tiny_model_folder, tmp_path):
    from vlmphys.config import from_mapping
    from vlmphys.train import train
    config = from_mapping({"data": str(packed_folder), "model": str(tiny_model_folder), "out": str(tmp_path / "with"), "max_steps": 5,
                           "learning_rate": 1e-2, "per_device_train_batch_size": 8, "save_steps": 2, "eval_steps": 1,
                           "gradient_checkpointing": True, **more})
    train(config)
    train(replace(config, out=str(tmp_path / "without"), eval_steps=0))
    assert [row["step"] for row in rows_of(tmp_path / "with")] == [1, 2, 3, 4, 5]
    assert not (tmp_path / "without" / "evaluations.jsonl").exists() and not (tmp_path / "without" / "best.json").exists()
    name = "model.safetensors" if more["tune"] == "full" else "adapter_model.safetensors"
    assert equal(*(load_file(tmp_path / side / "model" / name) for side in ("with", "without")))


def test_a_val_split_without_anomalies_is_refused_before_anything_is_written(packed_folder, tiny_model_folder, tmp_path):
    import shutil

    from vlmphys.config import from_mapping
    from vlmphys.train import train
    data = tmp_path / "packed"
    shutil.copytree(packed_folder, data)
    split = json.loads((data / "split.json").read_text())
    split["clips"] = {clip_id: "train" if side == "val" and "test" in clip_id else side for clip_id, side in split["clips"].items()}
    (data / "split.json").write_text(json.dumps(split))
    config = from_mapping({"data": str(data), "model": str(tiny_model_folder), "out": str(tmp_path / "out"), "eval_steps": 5})
    with pytest.raises(ValueError, match=r"no category of the val split .*\(fan 1 \+ 0, hinge 1 \+ 0\).*--val-share"):
        train(config)
    assert not (tmp_path / "out").exists()
