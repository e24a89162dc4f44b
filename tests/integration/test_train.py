"""Training through the real command: what a run folder holds, refusals."""

from __future__ import annotations

import json
import shutil
import sys

import pytest
import torch
from launching import deepspeed, load_script, rows_of, run
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.integration
SETTINGS = ["per_device_train_batch_size=8", "warmup_ratio=0", "logging_steps=2", "save_steps=2"]


def command(packed_folder, model, out, *settings):
    return ["launch/train.py", "--data", str(packed_folder), "--model", str(model), "--out", str(out), "--set", *SETTINGS, *settings]


def model_of(out, name="model.safetensors"):
    return load_file(out / "model" / name)


@pytest.fixture(scope="module")
def finished(repository, packed_folder, tiny_model_folder, tmp_path_factory):
    """A run through DeepSpeed's launcher with the optimizer on the CPU: 4 epochs of 3 steps."""
    out = tmp_path_factory.mktemp("runs") / "finished"
    arguments = command(packed_folder, tiny_model_folder, out, "deepspeed=ds_configs/zero2_offload.json", "num_train_epochs=4",
                        "learning_rate=1e-2")
    done = run(repository, arguments, deepspeed(1))
    assert done.returncode == 0, done.stdout + done.stderr
    return out, arguments, done


def test_a_run_folder_holds_exactly_this(finished):
    out, _, done = finished
    assert {path.name for path in out.iterdir()} == {
        "config.yaml", "env.json", "data.json", "metrics.jsonl", "tensorboard", "checkpoints", "model"}
    assert {path.name for path in (out / "checkpoints").iterdir()} == {"step_8", "step_10"}
    assert {path.name for path in (out / "checkpoints" / "step_10").iterdir()} == {"COMPLETE", "state-00001.safetensors"}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"} <= {
        path.name for path in (out / "model").iterdir()}
    assert "LLM attention q, k, v" in done.stdout and "frozen" in done.stdout
    facts = json.loads((out / "data.json").read_text())
    assert (facts["train_clips"], facts["global_batch"], facts["steps_per_epoch"], facts["total_steps"]) == (20, 8, 3, 12)
    environment = json.loads((out / "env.json").read_text())
    assert environment["packages"]["torch"] == torch.__version__ and environment["deepspeed_settings"]["zero_optimization"]["stage"] == 2
    assert environment["pids"] == [], "the run has ended: another process may have its number"


def test_metrics_carry_each_turn_and_the_verdict_and_the_loss_falls(finished):
    rows = rows_of(finished[0])
    assert [row["step"] for row in rows] == [2, 4, 6, 8, 10, 12] and rows[-1]["epoch"] == 4
    turns = {f"{name}_{k}" for name in ("loss_turn", "share_turn") for k in (1, 2, 3, 4)}
    known = {"step", "epoch", "loss", "verdict_loss", "first_choice_accuracy", "learning_rate", "grad_norm", "samples_per_second",
             "tokens_per_second", "data_seconds", "forward_seconds", "backward_seconds", "step_seconds", "host_memory_gib", "seconds",
             *turns}
    assert set(rows[0]) == known | {"gpu_memory_gib", "mfu"}
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.3
    assert all(row[name] is not None for row in rows for name in known)
    assert all(sum(row[f"share_turn_{k}"] for k in (1, 2, 3, 4)) == pytest.approx(1) for row in rows)
    assert all(row["forward_seconds"] > 0 and row["backward_seconds"] > 0 for row in rows)
    assert rows[0]["learning_rate"] > rows[-1]["learning_rate"] > 0


def test_tensorboard_carries_the_same_figures(finished):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    board = EventAccumulator(str(finished[0] / "tensorboard"))
    board.Reload()
    rows = rows_of(finished[0])
    for name in ("loss", "loss_turn_4", "share_turn_4", "first_choice_accuracy", "backward_seconds", "host_memory_gib"):
        found = [(event.step, event.value) for event in board.Scalars(f"train/{name}")]
        assert [step for step, _ in found] == [row["step"] for row in rows]
        assert [value for _, value in found] == pytest.approx([row[name] for row in rows])


def test_the_model_loads_and_only_the_tuned_weights_differ_from_the_base(finished, tiny_model_folder):
    from vlmphys.model import load_model
    from vlmphys.runs import load_run_model, open_run
    opened = open_run(finished[0])
    assert opened.variant.value == "multi_turn" and opened.data_fingerprint
    trained, base = load_run_model(opened).state_dict(), load_model(str(tiny_model_folder)).state_dict()
    assert set(base) == set(trained)
    changed = {name for name, value in base.items() if not torch.equal(value, trained[name])}
    assert changed == {name for name in base
                       if "language_model.layers" in name and ("self_attn" in name or ".mlp." in name) and "o_proj" not in name}


def test_a_finished_run_says_so_and_changes_nothing(finished, repository):
    out, arguments, _ = finished
    before = (out / "model" / "model.safetensors").stat().st_mtime_ns
    done = run(repository, arguments)
    assert done.returncode == 0 and "finished" in done.stdout
    assert (out / "model" / "model.safetensors").stat().st_mtime_ns == before


def test_train_clips_that_could_not_be_read_are_counted_at_the_start(repository, packed_folder, tiny_model_folder, tmp_path):
    packed = tmp_path / "packed"
    shutil.copytree(packed_folder, packed)
    split = json.loads((packed / "split.json").read_text())
    split["clips"]["fan/train/broken"] = "train"
    (packed / "split.json").write_text(json.dumps(split))
    done = run(repository, command(packed, tiny_model_folder, tmp_path / "run", "max_steps=1"))
    assert done.returncode == 0, done.stderr
    said = " ".join((done.stdout + done.stderr).split())
    assert f"20 clips (1 more could not be read: {packed}/frames/quarantine.jsonl), " in said, said


def test_lora_writes_an_adapter_that_merges(repository, packed_folder, tiny_model_folder, tmp_path):
    settings = ["tune=lora", "lora_r=4", "lora_alpha=8", "max_steps=3", "learning_rate=1e-2", "gradient_checkpointing=true", "bf16=true",
                "per_device_train_batch_size=1", "gradient_accumulation_steps=8", "deepspeed=ds_configs/single_4090.json"]
    done = run(repository, command(packed_folder, tiny_model_folder, tmp_path / "lora", *settings))
    assert done.returncode == 0, done.stderr
    from vlmphys.model import load_model
    from vlmphys.runs import load_run_model, open_run
    adapter = model_of(tmp_path / "lora", "adapter_model.safetensors")
    assert not (tmp_path / "lora" / "model" / "README.md").exists(), "an empty card says less than none"
    stored = json.loads((tmp_path / "lora" / "model" / "adapter_config.json").read_text())
    assert stored["base_model_name_or_path"] == str(tiny_model_folder) and stored["r"] == 4
    merged, base = load_run_model(open_run(tmp_path / "lora")).state_dict(), load_model(str(tiny_model_folder)).state_dict()
    name = "model.language_model.layers.1.mlp.down_proj"
    lower, upper = (adapter[f"base_model.model.{name}.lora_{half}.weight"].float() for half in "AB")
    assert upper.any(), "LoRA's second matrix starts at zero: it was not trained"
    assert torch.allclose(merged[f"{name}.weight"], base[f"{name}.weight"] + 2.0 * upper @ lower, atol=1e-5)
    assert len(adapter) == 2 * 2 * 6 and torch.equal(merged["lm_head.weight"], base["lm_head.weight"])


def test_a_loss_that_is_not_finite_stops_before_the_update(repository, packed_folder, tiny_model_folder, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(tiny_model_folder, broken)
    weights = load_file(broken / "model.safetensors")
    (head,) = (name for name in weights if name.endswith("lm_head.weight"))
    weights[head][7] = float("nan")
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    done = run(repository, command(packed_folder, broken, tmp_path / "out"))
    assert done.returncode == 2
    assert "loss of step 1 is not finite" in done.stderr and "fan/" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out" / "model").exists() and not list((tmp_path / "out" / "checkpoints").iterdir())


def test_a_weight_that_is_trained_or_frozen_by_mistake_is_refused_after_the_first_backward_pass(packed_folder, tiny_model_folder, tmp_path,
                                                                                                  monkeypatch):
    from vlmphys import train
    from vlmphys.config import from_mapping
    settings = {"model": str(tiny_model_folder), "data": str(packed_folder), "max_steps": 2}

    def mistaken(name, requires_grad):
        def prepare(network, _):
            network.get_parameter(name).requires_grad_(requires_grad)
        return prepare
    for name, requires_grad, words in (("lm_head.weight", True, "is frozen, but the first backward pass reached it"),
                                       ("model.language_model.layers.0.mlp.up_proj.weight", False, "gave it no gradient")):
        monkeypatch.setattr(train, "prepare_modes", mistaken(name, requires_grad))
        with pytest.raises(ValueError, match=f"{name} .*{words}"):
            train.train(from_mapping({**settings, "out": str(tmp_path / name)}))
        assert not (tmp_path / name / "model").exists()


@pytest.mark.parametrize(("host", "disk", "words"), [
    (64 << 20, 64 << 30, "there are 64.0 MiB of host memory"), (64 << 30, 64 << 10, "0.1 MiB are free on the disk of")])
def test_a_run_without_memory_or_disk_is_refused_before_it_begins(refused, packed_folder, tiny_model_folder, tmp_path, monkeypatch, host,
                                                                  disk, words):
    from vlmphys import plan
    from vlmphys.doctor import HostMemory
    monkeypatch.setattr(plan, "gpus_here", lambda indices=None: [])
    monkeypatch.setattr(plan, "host_memory", lambda: HostMemory(host, host))
    monkeypatch.setattr(plan, "free_disk", lambda path: disk)
    monkeypatch.setattr(plan, "resident_bytes", lambda: 0)      # this process holds all the tests before this one
    message = refused("--data", packed_folder, "--model", tiny_model_folder, "--out", tmp_path / "out")
    assert "this run does not fit this machine" in message and words in message and "--set force=true" in message
    assert not (tmp_path / "out").exists()


@pytest.fixture
def refused(repository, monkeypatch, capsys):
    """Call the command within this process, which spares the imports; it must fail with one message."""
    monkeypatch.chdir(repository)
    module = load_script(repository / "launch" / "train.py")

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["launch/train.py", *map(str, arguments)])
        capsys.readouterr()
        assert module.main() == 2
        message = capsys.readouterr().err
        assert message.startswith("error: ") and "Traceback" not in message
        return message
    return call


def test_refusals_write_nothing(refused, packed_folder, tiny_model_folder, tmp_path):
    out = tmp_path / "out"
    good = ["--data", packed_folder, "--model", tiny_model_folder, "--out", out]
    batch = tmp_path / "batch.json"
    batch.write_text('{"train_batch_size": 4, "zero_optimization": {"stage": 2}}')
    assert "did you mean 'learning_rate'" in refused(*good, "--set", "learning_rat=1e-3")
    assert "'train_batch_size'" in refused(*good, "--set", f"deepspeed={batch}")
    assert "no such config file" in refused("--config", tmp_path / "none.yaml", *good)
    assert "no such folder" in refused("--data", tmp_path / "none", *good[2:])
    assert "give a Hugging Face Video-LLaVA folder" in refused(*good[:2], "--model", tmp_path / "none", *good[4:])
    assert "no rank can measure" in refused(*good, "--set", "engine=fsdp", "turn_grad_norm_steps=10")
    assert "a multiple of logging_steps (10)" in refused(*good, "--set", "turn_grad_norm_steps=15")
    assert "only have the turns [1]" in refused(*good, "--variant", "no_physics", "--set", "turn_weights=0,0,0,1")
    assert not out.exists()


def test_data_of_another_model_or_without_train_clips_is_refused(refused, packed_folder, tiny_model_folder, tmp_path):
    from vlmphys.tiny import build_random, save_model_folder, tiny_config, train_tokenizer
    tokenizer = train_tokenizer(["other words for another model"], 300)
    sizes = {"image_size": 32, "vision_hidden": 32, "vision_layers": 2, "text_hidden": 64, "text_layers": 2}
    save_model_folder(build_random(tiny_config(len(tokenizer), **sizes)), tokenizer, tmp_path / "other")
    assert "tokenizer_sha256" in refused("--data", packed_folder, "--model", tmp_path / "other", "--out", tmp_path / "out")

    empty = tmp_path / "empty"
    shutil.copytree(packed_folder, empty)
    split = json.loads((empty / "split.json").read_text())
    split["clips"] = {clip_id: "test" for clip_id in split["clips"]}
    (empty / "split.json").write_text(json.dumps(split))
    assert "no clip of the train split" in refused("--data", empty, "--model", tiny_model_folder, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_changed_byte_of_the_packed_data_is_refused(refused, packed_folder, tiny_model_folder, tmp_path):
    damaged = tmp_path / "packed"
    shutil.copytree(packed_folder, damaged)
    shard = damaged / "frames" / "frames-00000.arrow"
    whole = bytearray(shard.read_bytes())
    whole[len(whole) // 2] ^= 255   # a pixel
    shard.write_bytes(whole)
    assert "frames-00000.arrow: its bytes are not those" in refused(
        "--data", damaged, "--model", tiny_model_folder, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_second_training_into_the_same_folder_is_refused(refused, packed_folder, tiny_model_folder, tmp_path):
    from vlmphys.files import only_writer
    with only_writer(tmp_path / "out", "training"):
        message = refused(*command(packed_folder, tiny_model_folder, tmp_path / "out")[1:])
        assert message.count("\n") == 1 and "another process is training into this folder" in message
        assert not list((tmp_path / "out").iterdir())


def test_a_used_folder_is_refused_with_the_key_that_differs(finished, refused, packed_folder, tiny_model_folder, tmp_path):
    out, arguments, _ = finished
    assert "learning_rate (0.01 there, 0.02 here)" in refused(*arguments[1:], "learning_rate=2e-2")
    assert "global_batch (8 there, 16 here)" in refused(*arguments[1:], "gradient_accumulation_steps=2")
    assert "'never'" in refused(*arguments[1:], "--resume", "never")
    other = tmp_path / "packed"
    shutil.copytree(packed_folder, other)
    split = json.loads((other / "split.json").read_text())
    split["seed"] = 1
    (other / "split.json").write_text(json.dumps(split))
    assert "fingerprint" in refused("--data", other, *(argument for argument in arguments[3:]))
    stranger = tmp_path / "stranger"
    stranger.mkdir()
    (stranger / "thesis.txt").write_text("keep me")
    assert "not empty and no run folder" in refused(*command(packed_folder, tiny_model_folder, stranger)[1:])
    assert [path.name for path in stranger.iterdir()] == ["thesis.txt"]
