"""The feature cache: packed, killed and resumed, checked, trained and predicted from, in place of pixels."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from launching import load_script, rows_of, run
from safetensors.torch import load_file, save_file

from vlmphys import feature_packing, train as training
from vlmphys.config import from_mapping
from vlmphys.features import FEATURES, FeaturesTable, open_features, take_features
from vlmphys.model import load_model, project, read_facts
from vlmphys.records import Split
from vlmphys.runs import load_run_model, open_run, write_model
from vlmphys.shards import FramesTable, open_packed
from vlmphys.signals import Stopped
from vlmphys.train import train
from vlmphys.tuning import tune
from vlmphys.verifying import verify

pytestmark = pytest.mark.integration
SETTINGS = {"max_steps": 4, "per_device_train_batch_size": 8, "warmup_ratio": 0, "logging_steps": 1, "save_steps": 0, "learning_rate": 1e-2}
CPU = torch.device("cpu")
AGREES = 1e-3       # relative, between losses from features, which are fp16, and from pixels


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def with_features(repository, packed_folder, tiny_model_folder, tmp_path_factory) -> Path:
    """The packed clips, and their features by the command."""
    folder = tmp_path_factory.mktemp("cache") / "packed"
    shutil.copytree(packed_folder, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["pack", "--out", str(folder), "--features", "--model", str(tiny_model_folder)])
        assert load_script(repository / "data_prep/pack.py").main() == 0
    assert FeaturesTable.open(folder / FEATURES).manifest["computed"] == {"device": "cpu", "dtype": "float32"} or torch.cuda.is_available()
    return folder


@pytest.fixture(scope="module")
def other_model(tiny_model_folder, tmp_path_factory) -> Path:
    """The same model with one weight of the tower changed by a little."""
    folder = tmp_path_factory.mktemp("other") / "model"
    shutil.copytree(tiny_model_folder, folder)
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in sorted(weights) if "video_tower" in name and name.endswith("layers.0.mlp.fc1.weight"))
    weights[name].flatten()[7] += 1e-3
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def config_of(data, model, out, **changes):
    return from_mapping({**SETTINGS, "data": str(data), "model": str(model), "out": str(out), **changes})


@pytest.fixture(scope="module")
def both(with_features, tiny_model_folder, tmp_path_factory) -> dict[str, Path]:
    """The same training twice with validations, from pixels and from features."""
    folder = tmp_path_factory.mktemp("runs")
    return {kind: train(config_of(with_features, tiny_model_folder, folder / kind, features=features, eval_steps=2))
            for kind, features in (("pixels", "false"), ("features", "auto"))}


def test_the_projector_makes_the_same_of_features_as_of_pixels(with_features, tiny_model_folder):
    packed, facts = open_packed(with_features), read_facts(str(tiny_model_folder))
    cached, said = take_features(packed, "true", str(tiny_model_folder), facts.image_mean, facts.image_std)
    clips = packed.clip_ids(Split.TRAIN)[:3]
    whole, without = load_model(str(tiny_model_folder)), load_model(str(tiny_model_folder), tower=False)
    assert without.model.video_tower is None and without.config.to_dict() == whole.config.to_dict() and "not loaded" in said
    with torch.no_grad():
        from_pixels, from_features = (project(network, torch.from_numpy(one.video(clips)), facts.image_mean, facts.image_std, torch.float32)
                                      for network, one in ((whole, packed), (without, cached)))
    assert cached.video(clips).dtype == np.float16 and cached.video(clips).shape == (3, 8, 5, 32)
    assert from_features.shape == from_pixels.shape
    assert (from_features - from_pixels).norm() < AGREES * from_pixels.norm() and not torch.equal(from_features, from_pixels)


def test_training_from_features_has_the_loss_of_training_from_pixels(both):
    for name, keys in (("metrics.jsonl", ("loss", "loss_turn_1", "loss_turn_4", "verdict_loss", "grad_norm")),
                       ("evaluations.jsonl", ("verdict_loss",))):
        pixels, features = (rows_of(both[kind], name) for kind in ("pixels", "features"))
        assert len(pixels) == len(features) == (4 if name == "metrics.jsonl" else 2)
        for one, other in zip(pixels, features):
            for key in keys:
                assert other[key] == pytest.approx(one[key], rel=AGREES), (name, one["step"], key)
    assert rows_of(both["pixels"])[0]["loss"] - rows_of(both["pixels"])[-1]["loss"] > 0.1, "it trains at all"
    assert rows_of(both["pixels"])[-1]["loss"] != rows_of(both["features"])[-1]["loss"], "the second run took pixels, too"
    recorded = {kind: json.loads((folder / "data.json").read_text())["features"] for kind, folder in both.items()}
    assert recorded["pixels"] is None and len(recorded["features"]) == 64


def test_the_run_s_model_is_whole_and_only_trained_weights_differ(both, tiny_model_folder):
    pixels, features = (load_file(folder / "model/model.safetensors") for folder in both.values())
    assert list(pixels) == list(features)
    differing = {name for name in pixels if not torch.equal(pixels[name], features[name])}
    assert differing and all(name.startswith("language_model.") and ".layers." in name for name in differing)
    assert any("video_tower" in name for name in features)
    texts = [{path.name: path.read_bytes() for path in (folder / "model").iterdir() if path.suffix != ".safetensors"} for folder in both.values()]
    assert texts[0] == texts[1]
    load_model(str(both["features"] / "model"))


def test_the_very_same_weights_are_written_to_the_byte(tiny_model_folder, tmp_path):
    """From a network without its tower as from a whole one, also in another precision than the base's."""
    for dtype in (torch.float32, torch.bfloat16):
        written = []
        for tower in (True, False):
            tuned = tune(load_model(str(tiny_model_folder), torch.float32, tower=tower), "full")
            config = from_mapping({"model": str(tiny_model_folder), "out": str(tmp_path / f"{dtype}{tower}")})
            Path(config.out).mkdir()
            written.append(tree(write_model(
                config, tuned, {name: value.detach().to(dtype) for name, value in tuned.network.state_dict().items()})))
        assert written[0] == written[1] and "model.safetensors" in written[0]


def test_predictions_from_features_are_those_from_pixels(both, repository, with_features, tmp_path, monkeypatch, capsys):
    """The run from features is predicted with and without the tower; the tuned model's own tower is the base's."""
    module = load_script(repository / "launch/predict.py")
    scores = {}
    for features in ("false", "true"):
        out = tmp_path / f"{features}.jsonl"
        monkeypatch.setattr(sys, "argv", ["predict", "--run", str(both["features"]), "--data", str(with_features), "--out", str(out),
                                          "--explain", "none", "--features", features])
        assert module.main() == 0
        assert ("not loaded" in capsys.readouterr().out) == (features == "true")
        scores[features] = [json.loads(line)["score"] for line in out.read_text().splitlines()]
    assert len(scores["true"]) == 14 and scores["true"] != scores["false"]
    assert np.abs(np.subtract(scores["true"], scores["false"])).max() < 0.01


def test_lora_through_deepspeed_by_the_command_and_predicted_with_the_tower(repository, with_features, tiny_model_folder, tmp_path):
    settings = {**SETTINGS, "tune": "lora", "lora_r": 4, "lora_alpha": 8, "lora_dropout": 0, "deepspeed": "ds_configs/zero2.json"}
    done = run(repository, ["launch/train.py", "--data", str(with_features), "--model", str(tiny_model_folder), "--out", str(tmp_path / "run"),
                            "--set", "features=true", *(f"{key}={value}" for key, value in settings.items())])
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())
    assert "the tower is not loaded" in said and "vision tower" not in said and "projector" in said
    train(config_of(with_features, tiny_model_folder, tmp_path / "pixels", **{**settings, "deepspeed": None}, features="false"))
    losses = [[row["loss"] for row in rows_of(tmp_path / name)] for name in ("run", "pixels")]
    assert losses[0] == pytest.approx(losses[1], rel=AGREES) and losses[0] != losses[1]
    opened = open_run(tmp_path / "run")
    assert load_run_model(opened).model.video_tower is not None and load_run_model(opened, tower=False).model.video_tower is None


def test_another_tower_is_refused_and_auto_takes_pixels(with_features, other_model, tmp_path):
    facts, packed = read_facts(str(other_model)), open_packed(with_features)
    with pytest.raises(ValueError, match=r"features was made with the video tower \w{12}, that of .*model is \w{12}, and only the very same "
                                         r"weights are allowed: make them anew with python data_prep/pack.py --out .* --features --model .*, or "
                                         r"set features to auto or false"):
        take_features(packed, "true", str(other_model), facts.image_mean, facts.image_std)
    same, said = take_features(packed, "auto", str(other_model), facts.image_mean, facts.image_std)
    assert same.features is None and said.startswith("pixels are taken, because ") and "made with the video tower" in said
    with pytest.raises(ValueError, match="only the very same weights are allowed"):
        train(config_of(with_features, other_model, tmp_path / "run", features=True))
    assert not (tmp_path / "run").exists()
    checks = verify(with_features, model=str(other_model))
    assert [problem for check in checks for problem in check.problems if "video tower" in problem]


def test_features_of_other_frames_and_of_none_are_refused(packed_folder, with_features, tiny_model_folder, tmp_path):
    facts = read_facts(str(tiny_model_folder))
    rest = (str(tiny_model_folder), facts.image_mean, facts.image_std)
    with pytest.raises(ValueError, match="features is true, but .* holds none: make them with .*--features"):
        take_features(open_packed(packed_folder), "true", *rest)
    taken, said = take_features(open_packed(packed_folder), "auto", *rest)
    assert taken.features is None and said == ""
    copy = tmp_path / "packed"
    shutil.copytree(with_features, copy)
    manifest = json.loads((copy / "frames/manifest.json").read_text())
    manifest["shards"][0]["sha256"] = "0" * 64
    (copy / "frames/manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="was made of other frames than those in"):
        take_features(open_packed(copy), "true", *rest)
    with pytest.raises(ValueError, match="normalised in another way"):
        take_features(open_packed(with_features), "true", str(tiny_model_folder), (0.5, 0.5, 0.5), facts.image_std)


def test_a_run_that_began_with_pixels_goes_on_with_them(packed_folder, tiny_model_folder, with_features, tmp_path, monkeypatch):
    """Features that were made in between change no run; asked for outright, they are another run."""
    data, out = tmp_path / "packed", tmp_path / "run"
    shutil.copytree(packed_folder, data)
    config, steps = config_of(data, tiny_model_folder, out, max_steps=3, save_steps=1), []
    own = training.train_step

    def stops(job, step, is_first):
        steps.append(job.packed.features is not None)
        os.kill(os.getpid(), signal.SIGTERM) if len(steps) == 1 else None
        return own(job, step, is_first)
    monkeypatch.setattr(training, "train_step", stops)
    with pytest.raises(Stopped):
        train(config)
    shutil.copytree(with_features / FEATURES, data / FEATURES)
    with pytest.raises(ValueError, match=r"belongs to another run: features \(None there, '\w{64}' here\)"):
        train(replace(config, features="true"))
    train(config)
    assert steps == [False] * 3 and (out / "model").is_dir()


def die_in_the_middle(packed: str, out: str, model: str, dies_at: int) -> None:
    """Pack features in shards of 8 clips; the process kills itself, as by `kill -9`, after `dies_at` clips."""
    feature_packing.CLIPS_PER_SHARD, feature_packing.MOST_CLIPS = 8, 3
    feature_packing.pack_features(FramesTable.open(Path(packed) / "frames"), Path(out), feature_packing.TowerRun(model, read_facts(model), CPU),
                                  lambda done: os.kill(os.getpid(), signal.SIGKILL) if done >= dies_at else None)


def test_resumed_after_a_kill_they_are_the_same_to_the_byte(packed_folder, tiny_model_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(feature_packing, "CLIPS_PER_SHARD", 8)
    monkeypatch.setattr(feature_packing, "MOST_CLIPS", 3)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    frames, model = FramesTable.open(packed_folder / "frames"), str(tiny_model_folder)
    tower = feature_packing.TowerRun(model, read_facts(model), CPU)
    for folder in (whole, broken):
        folder.mkdir()
    assert feature_packing.pack_features(frames, whole, tower).shards == 5
    process = multiprocessing.get_context("spawn").Process(
        target=die_in_the_middle, args=(str(packed_folder), str(broken), str(tiny_model_folder), 23))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL and not (broken / FEATURES).exists()
    assert (broken / "features.partial/features-00002.arrow.tmp").is_file()
    done: list[int] = []
    report = feature_packing.pack_features(frames, broken, tower, done.append)
    assert done[0] == 16 and done[-1] == 38 and report.rows == 38 and not report.skipped
    assert tree(broken) == tree(whole)
    assert feature_packing.pack_features(frames, broken, tower).skipped
    for damage in (lambda path: os.truncate(path, path.stat().st_size // 2), Path.unlink):
        damage(broken / "features/manifest.json")
        assert feature_packing.pack_features(frames, broken, tower).rows == 38 and tree(broken) == tree(whole)


def test_verify_reads_every_row(with_features, tiny_model_folder, tmp_path):
    checks = {check.name: check for check in verify(with_features, model=str(tiny_model_folder))}
    own = checks["features: of these frames, finite"]
    assert not [problem for check in checks.values() for problem in check.problems] and own.checked.startswith("38 rows of 8 x 5 x 32 float16")
    broken = tmp_path / "packed"
    shutil.copytree(with_features, broken)
    shard = broken / "features/features-00000.arrow"
    place, raw = shard.read_bytes().find(open_features(open_packed(with_features)).row("fan/train/0002").tobytes()), bytearray(shard.read_bytes())
    raw[place:place + 2] = np.array([np.inf], np.float16).tobytes()
    shard.write_bytes(bytes(raw))
    problems = [problem for check in verify(broken) for problem in check.problems]
    assert any("features-00000.arrow: its bytes are not those that were written" in problem for problem in problems)
    manifest = json.loads((broken / "features/manifest.json").read_text())
    manifest["shards"][0]["sha256"] = hashlib.sha256(raw).hexdigest()
    (broken / "features/manifest.json").write_text(json.dumps(manifest))
    problems = [problem for check in verify(broken) for problem in check.problems]
    assert any(problem.startswith("fan/train/0002: 1 of its 1280 features are infinite") for problem in problems)
    shard.unlink()
    (only,) = verify(broken)
    assert "features-00000.arrow: is missing" in only.problems[0]
    with pytest.raises(ValueError, match="features-00000.arrow: is missing"):
        FeaturesTable.open(broken / FEATURES)


def test_a_plan_leaves_the_tower_out(with_features, packed_folder, tiny_model_folder):
    from vlmphys import memory, plan
    machine = plan.Machine(0, None, 64 << 30, None, "")
    cases = {}
    for kind, data in (("pixels", packed_folder), ("features", with_features)):
        config = from_mapping({"data": str(data), "model": str(tiny_model_folder), "engine": "plain", "deepspeed": None})
        size = plan.model_size(config)
        cases[kind] = plan.case_of(config, size, plan.read_data(data, config, size), machine)
    tower = cases["pixels"].size.parameters["vision tower"]
    assert cases["features"].features and not cases["pixels"].features
    assert memory.weight_bytes(cases["pixels"]) - memory.weight_bytes(cases["features"]) == 4 * tower > 0
    assert memory.model_bytes(cases["features"]) == memory.model_bytes(cases["pixels"])
    assert memory.tower_bytes(cases["features"], 8) < memory.tower_bytes(cases["pixels"], 8)
    network = load_model(str(tiny_model_folder), tower=False)
    assert memory.weight_bytes(cases["features"]) == 4 * sum(parameter.numel() for parameter in network.parameters())
