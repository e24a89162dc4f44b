"""What `launch/train.py` refuses at its start, through the real command: status 2, one sentence, and not a file more than before."""

from __future__ import annotations

import hashlib
import json
import shutil

import pytest
import torch
from launching import run

pytestmark = pytest.mark.integration


def command(packed_folder, model, out, *settings):
    return ["launch/train.py", "--data", str(packed_folder), "--model", str(model), "--out", str(out), "--set", "engine=plain",
            "per_device_train_batch_size=8", *settings]


def contents(folder):
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


def refused(repository, tmp_path, arguments):
    """The message; nothing in `tmp_path` may change."""
    before = contents(tmp_path)
    done = run(repository, arguments)
    assert done.returncode == 2 and done.stderr.count("error: ") == 1 and "Traceback" not in done.stderr, done.stdout + done.stderr
    assert contents(tmp_path) == before
    return done.stderr


def test_a_run_that_needs_more_host_memory_than_there_is(repository, packed_folder, tiny_model_folder, tmp_path):
    """The weights are never read: the config says that they are too many."""
    large = tmp_path / "large"
    shutil.copytree(tiny_model_folder, large)
    config = json.loads((large / "config.json").read_text())
    config["text_config"]["intermediate_size"] = 1 << 35     # 64 hidden units, 2 layers: 53 TB in fp32
    (large / "config.json").write_text(json.dumps(config))
    message = refused(repository, tmp_path, command(packed_folder, large, tmp_path / "out"))
    assert "does not fit this machine: there are" in message and "of host memory" in message
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="for a machine without GPU")
def test_4_bits_without_a_gpu(repository, packed_folder, tiny_model_folder, tmp_path):
    settings = ("tune=qlora", "engine=auto", "deepspeed=ds_configs/zero2.json")
    message = refused(repository, tmp_path, command(packed_folder, tiny_model_folder, tmp_path / "out", *settings))
    assert "tune is 'qlora', but there is no CUDA GPU here" in message and not (tmp_path / "out").exists()


def test_a_checkpoint_of_another_model(repository, packed_folder, tiny_model_folder, tmp_path):
    """In its own run folder, and brought into a new one."""
    own = tmp_path / "own"
    done = run(repository, command(packed_folder, tiny_model_folder, own, "max_steps=2", "save_steps=1"))
    assert done.returncode == 0, done.stderr
    shutil.rmtree(own / "model")
    other = tmp_path / "other_model"
    shutil.copytree(tiny_model_folder, other)
    from safetensors.torch import load_file, save_file
    weights = load_file(other / "model.safetensors")
    save_file({name: 1.5 * value for name, value in weights.items()}, other / "model.safetensors", metadata={"format": "pt"})
    assert "model" in refused(repository, tmp_path, command(packed_folder, other, own, "max_steps=2", "save_steps=1"))
    shutil.copytree(own / "checkpoints", tmp_path / "new" / "checkpoints")
    refused(repository, tmp_path, command(packed_folder, other, tmp_path / "new", "max_steps=2", "save_steps=1"))
