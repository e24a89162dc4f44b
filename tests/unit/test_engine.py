"""What the engines are told, and clear refusals; tests/integration/test_engines.py runs them."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from vlmphys.compiling import load_op
from vlmphys.config import TrainConfig
from vlmphys.deepspeed_parts import deepspeed_settings
from vlmphys.engine import DeepSpeedEngine, loading_dtype

pytestmark = pytest.mark.unit


@pytest.fixture
def config(tmp_path):
    def make(sharding, **more):
        path = tmp_path / "ds.json"
        path.write_text(json.dumps({"zero_optimization": sharding}))
        return TrainConfig(engine="deepspeed", deepspeed=str(path), out=str(tmp_path / "run"), **more)
    return make


def test_the_run_decides_batch_precision_and_clipping(config):
    told = deepspeed_settings(config({"stage": 3}, bf16=True, max_grad_norm=0.5, per_device_train_batch_size=3,
                                     gradient_accumulation_steps=4))
    assert told["train_micro_batch_size_per_gpu"] == 3 and told["bf16"] == {"enabled": True} and told["gradient_clipping"] == 0.5
    assert told["gradient_accumulation_steps"] == 1, "the loop accumulates, and DeepSpeed must divide by nothing"
    assert told["zero_optimization"] == {"stage": 3}


def test_what_goes_to_a_disk_lies_in_the_run_folder_unless_the_json_says_otherwise(config, tmp_path):
    told = deepspeed_settings(config({"stage": 3, "offload_optimizer": {"device": "nvme"},
                                      "offload_param": {"device": "nvme", "nvme_path": "/scratch"}}))["zero_optimization"]
    assert told["offload_optimizer"]["nvme_path"] == str(tmp_path / "run" / ".offload") and told["offload_param"]["nvme_path"] == "/scratch"
    told = deepspeed_settings(config({"stage": 3, "offload_optimizer": {"device": "cpu"}}))["zero_optimization"]
    assert told["offload_optimizer"] == {"device": "cpu"}


@pytest.mark.parametrize(("engine", "bf16", "dtype"), [
    ("plain", True, torch.float32), ("deepspeed", False, torch.float32), ("deepspeed", True, torch.bfloat16),
    ("fsdp", True, torch.bfloat16)])
def test_the_network_is_loaded_in_the_precision_from_which_masters_are_made(engine, bf16, dtype):
    assert loading_dtype(TrainConfig(engine=engine, bf16=bf16)) is dtype


@pytest.mark.parametrize("failure", [RuntimeError, ImportError, OSError])
def test_an_op_that_does_not_build_or_load_is_refused_with_its_cure(failure, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))

    class Builder:
        name = "async_io"

        def load(self, verbose):
            raise failure("Unable to JIT load the async_io op")
    with pytest.raises(ValueError, match="access to a disk could not be compiled or loaded .Unable to JIT load.*: install libaio.*remove"):
        load_op(Builder(), "DeepSpeed's access to a disk", True, "install libaio")
    assert "building DeepSpeed's access to a disk" in capsys.readouterr().err


def test_what_was_read_from_a_disk_is_let_go_also_after_an_error():
    """Without that the next visit to the same group finds its buffers taken."""
    calls = []
    engine = DeepSpeedEngine.__new__(DeepSpeedEngine)
    engine.divides_weights = True
    engine.engine = SimpleNamespace(optimizer=SimpleNamespace(
        _swappable_optimizer_subgroup=lambda group: True,
        _optimizer_states_and_gradient_swap_in=lambda group: calls.append("in"),
        _release_swap_buffers=lambda group: calls.append("release")))
    with pytest.raises(OSError), engine._at_hand(0, changed=False):
        raise OSError("Input/output error")
    assert calls == ["in", "release"]
