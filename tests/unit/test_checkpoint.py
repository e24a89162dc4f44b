"""Checkpoints: complete or not there, exact, rotated, and refused where they are damaged or of another model."""

from __future__ import annotations

import copy
import hashlib
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from vlmphys import checkpoint
from vlmphys.config import TrainConfig
from vlmphys.engine import MOMENTS, PlainEngine
from vlmphys.world import Agreed, World, connect

pytestmark = pytest.mark.unit
WORLD = World(0, 1, torch.device("cpu"))
IDENTITY = {"data_fingerprint": "d", "config_sha256": "c", "model_fingerprint": "m"}


def started(sizes=(3, 4), seed=0):
    torch.manual_seed(seed)
    module = nn.ModuleDict({f"part{index}": nn.Linear(size, 2) for index, size in enumerate(sizes)})
    trained = {name: parameter for name, parameter in module.named_parameters() if name.endswith("weight")}
    return PlainEngine(WORLD, module, trained, TrainConfig(weight_decay=0.1))


def advance(engine, first, last):
    """Steps whose gradients hang on the step's number alone, as those of the loop do."""
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step)
        loss = sum((parameter * torch.randn(parameter.shape, generator=generator)).sum() for parameter in engine.trained.values())
        engine.backward(loss)
        engine.step(0.01 * (step + 1))


def marker(step, **more):
    default = {"world_size": 1, "engine": "plain", **IDENTITY, "window": []}
    return checkpoint.Marker(**{"step": step, **default, **more})


def weights(engine):
    return {name: parameter.detach().clone() for name, parameter in engine.trained.items()}


def test_going_on_from_a_checkpoint_is_bit_identical(tmp_path):
    whole, half, resumed = started(), started(), started(seed=9)
    advance(whole, 0, 7)
    advance(half, 0, 4)
    checkpoint.save(half, tmp_path, marker(4, window=[1.5, 2.0]), keep=2)
    folder = checkpoint.folder_of(tmp_path, 4)
    stored = checkpoint.read_marker(folder)
    assert stored.step == 4 and stored.window == [1.5, 2.0] and list(stored.files) == ["state-00001.safetensors"]
    assert checkpoint.restore(resumed, tmp_path, 4, IDENTITY) == stored
    advance(resumed, 4, 7)
    assert all(torch.equal(value, weights(resumed)[name]) for name, value in weights(whole).items())
    assert not any(torch.equal(value, weights(half)[name]) for name, value in weights(whole).items())


def test_many_shards_hold_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "SHARD_BYTES", 1)
    engine, other = started(), started(seed=9)
    advance(engine, 0, 2)
    checkpoint.save(engine, tmp_path, marker(2), keep=1)
    folder = checkpoint.folder_of(tmp_path, 2)
    assert sorted(path.name for path in folder.iterdir()) == ["COMPLETE", "state-00001.safetensors", "state-00002.safetensors"]
    checkpoint.restore(other, tmp_path, 2, IDENTITY)
    assert all(torch.equal(value, weights(other)[name]) for name, value in weights(engine).items())


def test_only_the_newest_are_kept(tmp_path):
    engine = started()
    for step in range(1, 5):
        advance(engine, step - 1, step)
        checkpoint.save(engine, tmp_path, marker(step), keep=2)
    assert checkpoint.complete(tmp_path) == [3, 4]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step_3", "step_4"]


def test_what_a_crash_leaves_is_no_checkpoint_and_is_removed(tmp_path):
    engine = started()
    advance(engine, 0, 1)
    checkpoint.save(engine, tmp_path, marker(1), keep=2)
    for name in ("step_2.partial", "step_3"):
        (tmp_path / "checkpoints" / name).mkdir()
        (tmp_path / "checkpoints" / name / "state-00001.safetensors").write_bytes(b"half")
    assert checkpoint.complete(tmp_path) == [1]
    with pytest.raises(ValueError, match="no complete checkpoint"):
        checkpoint.read_marker(checkpoint.folder_of(tmp_path, 3))
    assert checkpoint.remove_incomplete(tmp_path) == ["step_2.partial", "step_3"]
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_1"]


def test_the_marker_comes_last(tmp_path, monkeypatch):
    engine = started()
    advance(engine, 0, 1)

    def power_cut(path, data):
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "write_atomic", power_cut)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(engine, tmp_path, marker(1), keep=2)
    assert checkpoint.complete(tmp_path) == []


@pytest.mark.parametrize("damage", ["shorter", "missing", "marker"])
def test_a_damaged_checkpoint_is_refused_by_name(tmp_path, damage):
    engine = started()
    advance(engine, 0, 1)
    checkpoint.save(engine, tmp_path, marker(1), keep=2)
    folder = checkpoint.folder_of(tmp_path, 1)
    file = folder / "state-00001.safetensors"
    if damage == "shorter":
        file.write_bytes(file.read_bytes()[:-1])
    elif damage == "missing":
        file.unlink()
    else:
        file = folder / "COMPLETE"
        file.write_text("{")
    with pytest.raises(ValueError, match=file.name):
        checkpoint.read_marker(folder)


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    engine = started()
    advance(engine, 0, 1)
    checkpoint.save(engine, tmp_path, marker(1), keep=2)
    for other, part in ((started((3,)), "'part1.weight' is trained in one"),
                        (started((3, 5)), "'part1.weight' is \\(2, 4\\), the model's is \\(2, 5\\)")):
        with pytest.raises(Agreed, match=part):
            checkpoint.restore(other, tmp_path, 1, IDENTITY)


@pytest.mark.parametrize("key", IDENTITY)
def test_a_checkpoint_of_the_same_shapes_from_another_run_is_refused(tmp_path, key):
    engine, other = started(), started(seed=9)
    advance(engine, 0, 1)
    checkpoint.save(engine, tmp_path, marker(1), keep=2)
    before = weights(other)
    with pytest.raises(Agreed, match=rf"step_1 is a checkpoint of another run: {key} \({IDENTITY[key]} there, else here\); remove it"):
        checkpoint.restore(other, tmp_path, 1, {**IDENTITY, key: "else"})
    assert all(torch.equal(value, before[name]) for name, value in weights(other).items())


def test_a_changed_byte_of_equal_length_is_refused(tmp_path):
    engine, other = started(), started(seed=9)
    advance(engine, 0, 1)
    checkpoint.save(engine, tmp_path, marker(1), keep=2)
    file = checkpoint.folder_of(tmp_path, 1) / "state-00001.safetensors"
    whole = bytearray(file.read_bytes())
    whole[-1] ^= 1      # the last bit of a moment
    file.write_bytes(whole)
    before = weights(other)
    with pytest.raises(Agreed, match="state-00001.safetensors is damaged .*sha256"):
        checkpoint.restore(other, tmp_path, 1, IDENTITY)
    assert all(torch.equal(value, before[name]) for name, value in weights(other).items())


def test_empty_tensors_are_noticed_when_they_are_written(tmp_path):
    engine = started()
    advance(engine, 0, 1)
    # What ZeRO-3 hands out if it is asked the wrong way.
    engine.export_state = lambda: iter([("part0.weight", {key: torch.empty(0) for key in ("weight", *MOMENTS)})])
    with pytest.raises(Agreed, match="part0.weight"):
        checkpoint.save(engine, tmp_path, marker(1), keep=2)
    assert checkpoint.complete(tmp_path) == []


@pytest.mark.parametrize("damage", ["longer", "missing", "not fp32"])
def test_a_state_that_is_not_whole_is_no_checkpoint_and_the_older_one_stays(tmp_path, monkeypatch, damage):
    engine = started()
    advance(engine, 0, 1)
    checkpoint.save(engine, tmp_path, marker(1), keep=1)
    whole = engine.export_state
    if damage == "longer":
        write = checkpoint.save_file

        def padded(tensors, path):
            write(tensors, path)
            with open(path, "ab") as stream:
                stream.write(b"x")
        monkeypatch.setattr(checkpoint, "save_file", padded)
    elif damage == "missing":
        engine.export_state = lambda: iter(list(whole())[:-1])
    else:
        engine.export_state = lambda: ((name, {key: value.bfloat16() for key, value in tensors.items()}) for name, tensors in whole())
    words = {"longer": "bytes were written", "missing": "1 trained parameters were not handed out, first part1.weight",
             "not fp32": "torch.bfloat16, instead of"}[damage]
    with pytest.raises(Agreed, match=f"checkpoint of step 2 could not be written .*{words}.*the older checkpoints are untouched"):
        checkpoint.save(engine, tmp_path, marker(2), keep=1)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_1"]
    checkpoint.read_marker(checkpoint.folder_of(tmp_path, 1))


def test_a_full_disk_is_told_and_leaves_the_older_checkpoint(tmp_path, monkeypatch):
    engine = started()
    advance(engine, 0, 1)
    checkpoint.save(engine, tmp_path, marker(1), keep=1)
    taken = []
    whole = engine.export_state

    def export():
        for item in whole():
            taken.append(item[0])
            yield item

    def full(tensors, path):
        raise checkpoint.SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    monkeypatch.setattr(checkpoint, "SHARD_BYTES", 1)
    monkeypatch.setattr(checkpoint, "save_file", full)
    engine.export_state = export
    with pytest.raises(Agreed, match="No space left on device.*free some disk space there and start the same command again"):
        checkpoint.save(engine, tmp_path, marker(2), keep=1)
    assert taken == list(engine.trained), "other ranks would wait for the rest for ever"
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_1"]


def test_an_error_inside_the_engine_is_not_taken_for_one_of_writing(tmp_path):
    """The other ranks are inside the engine's collective calls then: to tell them would never end."""
    engine = started()
    advance(engine, 0, 1)
    whole, told = engine.export_state, []

    def export():
        yield next(whole())
        raise OSError("Input/output error")
    engine.export_state = export
    engine.world = SimpleNamespace(is_first=True, agree=told.append, barrier=lambda: told.append("barrier"))
    with pytest.raises(ValueError, match="could not be read back from where the engine keeps them .Input/output error.") as caught:
        checkpoint.save(engine, tmp_path, marker(2), keep=1)
    assert not isinstance(caught.value, Agreed) and not told and checkpoint.complete(tmp_path) == []


def test_another_engine_or_number_of_ranks_is_told_and_allowed():
    plain, fsdp = TrainConfig(engine="plain"), TrainConfig(engine="fsdp")
    assert checkpoint.saved_elsewhere(marker(1), plain, 1) == ""
    assert "written by engine plain on 1 rank(s); here it is fsdp on 1" in checkpoint.saved_elsewhere(marker(1), fsdp, 1)
    assert "here it is plain on 2: the same clips, losses equal but for rounding" in checkpoint.saved_elsewhere(marker(1), plain, 2)


def test_other_ranks_draw_other_dropout_masks_and_that_is_told():
    lora = TrainConfig(engine="plain", tune="lora", lora_dropout=0.1)
    assert "other masks of lora_dropout" in checkpoint.saved_elsewhere(marker(1), lora, 2)
    assert "but for rounding" in checkpoint.saved_elsewhere(marker(1), replace(lora, lora_dropout=0.0), 2)
    assert "but for rounding" in checkpoint.saved_elsewhere(marker(1), replace(lora, engine="fsdp"), 1)


def test_ranks_without_a_meeting_place_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    for engine in ("plain", "deepspeed"):
        with pytest.raises(ValueError, match="WORLD_SIZE is 2, but MASTER_ADDR is not set"):
            connect(TrainConfig(engine=engine))


def test_marker_is_plain_json(tmp_path):
    engine = started()
    advance(engine, 0, 1)
    checkpoint.save(engine, tmp_path, marker(1), keep=2)
    stored = json.loads((checkpoint.folder_of(tmp_path, 1) / "COMPLETE").read_text())
    expected = copy.deepcopy(vars(marker(1)))
    file = checkpoint.folder_of(tmp_path, 1) / "state-00001.safetensors"
    expected["files"], expected["sha256"] = {file.name: file.stat().st_size}, {file.name: hashlib.sha256(file.read_bytes()).hexdigest()}
    assert stored == expected
