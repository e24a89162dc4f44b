"""Loading a model: every folder that is incomplete, damaged or changed is refused by name, and no code comes with a model."""

from __future__ import annotations

import json
import re
import shutil
import ssl
from pathlib import Path
from urllib.error import HTTPError, URLError

import pytest
from safetensors.torch import load_file, save_file

from vlmphys import model, runs
from vlmphys.config import TrainConfig
from vlmphys.records import Variant

pytestmark = pytest.mark.unit


@pytest.fixture
def folder(tiny_model_folder, tmp_path) -> Path:
    return Path(shutil.copytree(tiny_model_folder, tmp_path / "base"))


def rewrite(folder: Path, change) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def head(weights: dict) -> str:
    """The name of `lm_head.weight` in the file: versions of transformers differ in what they put before it."""
    return next(name for name in weights if name.endswith("lm_head.weight"))


def damage(folder: Path, kind: str) -> None:
    file = folder / "model.safetensors"
    if kind == "no file":
        file.unlink()
    elif kind == "half a file":
        file.write_bytes(file.read_bytes()[:file.stat().st_size // 2])
    elif kind == "an empty file":
        file.write_bytes(b"")
    elif kind == "another shape":
        rewrite(folder, lambda weights: weights.update({head(weights): weights[head(weights)][:-1].clone()}))
    elif kind == "a weight less":
        rewrite(folder, lambda weights: weights.pop(head(weights)))


@pytest.mark.parametrize(("kind", "words"), [
    ("no file", "weights cannot be read from .*base .*copy or download"), ("half a file", "weights cannot be read from .*base .*copy or download"),
    ("an empty file", "weights cannot be read from .*base .*copy or download"),
    ("another shape", "1 weights in .*base have another shape .*'lm_head.weight': .* stored, .* expected; copy or download"),
    ("a weight less", "lacks 1 weights, first 'lm_head.weight'")])
def test_a_damaged_folder_is_refused_by_name(folder, kind, words):
    assert model.load_model(str(folder)).model.image_tower is None
    damage(folder, kind)
    with pytest.raises(ValueError, match=words):
        model.load_model(str(folder))


@pytest.mark.parametrize(("load", "owner"), [("load_config", "AutoConfig"), ("load_tokenizer", "AutoTokenizer"),
                                             ("load_model", "VideoLlavaForConditionalGeneration")])
def test_code_in_a_model_folder_is_never_run(folder, load, owner, monkeypatch):
    given, original = {}, getattr(model, owner).from_pretrained
    monkeypatch.setattr(getattr(model, owner), "from_pretrained", lambda *args, **more: given.update(more) or original(*args, **more))
    getattr(model, load)(str(folder))
    assert given["trust_remote_code"] is False


def test_the_fingerprint_knows_the_middle_of_the_weights_and_the_config(folder):
    first = runs.model_fingerprint(str(folder))
    assert first == runs.folder_fingerprint(folder)
    file = folder / "model.safetensors"
    whole = bytearray(file.read_bytes())
    whole[len(whole) // 2] ^= 1
    file.write_bytes(whole)
    second = runs.model_fingerprint(str(folder))
    (folder / "config.json").write_text(json.dumps({**json.loads((folder / "config.json").read_text()), "note": 1}))
    assert len({first, second, runs.model_fingerprint(str(folder))}) == 3


def test_parts_of_large_files_are_spread(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "DIGEST_CHUNK_BYTES", 16)
    file = tmp_path / "model.safetensors"
    file.write_bytes(bytes(64 * 100))
    first, seen = runs.folder_fingerprint(tmp_path), 0
    for place in range(0, 64 * 100, 10):
        whole = bytearray(64 * 100)
        whole[place] = 1
        file.write_bytes(whole)
        seen += runs.folder_fingerprint(tmp_path) != first
    assert 64 <= seen < 640     # one or two of the ten places of each part, from end to end


def test_an_adapter_is_not_put_on_a_changed_base(folder, tmp_path, monkeypatch):
    run = runs.Run(tmp_path / "run", TrainConfig(model=str(folder), tune="lora"), tmp_path / "run" / "model", Variant.MULTI_TURN, "d")
    run.folder.mkdir()
    (run.folder / "data.json").write_text(json.dumps({"model_fingerprint": runs.model_fingerprint(str(folder))}))
    reached = []
    monkeypatch.setattr(runs, "load_model", lambda *given, **named: reached.append(given))
    with pytest.raises((AttributeError, ValueError, OSError)):     # there is no adapter
        runs.load_run_model(run)
    assert len(reached) == 1
    rewrite(folder, lambda weights: weights[head(weights)].mul_(2))
    with pytest.raises(ValueError, match="run is an adapter for the base model .*base, which has changed"):
        runs.load_run_model(run)
    assert len(reached) == 1


def crop(size):
    return {"crop_size": {"height": size, "width": size}, "size": {"shortest_edge": 48}}


@pytest.mark.parametrize(("name", "content", "made"), [
    ("preprocessor_config.json", crop(32), None), ("preprocessor_config.json", {**crop(336), "do_center_crop": False, "size": 32}, None),
    ("preprocessor_config.json", {"image_mean": None}, None), ("processor_config.json", {"patch_size": 14}, None),
    ("preprocessor_config.json", crop(336), "336"), ("preprocessor_config.json", {"size": {"shortest_edge": 24}}, "24"),
    ("preprocessor_config.json", {**crop(32), "do_center_crop": False}, "48"),
    ("preprocessor_config.json", {"size": {"height": 32, "width": 40}}, "32 x 40"), ("video_preprocessor_config.json", crop(64), "64"),
    ("preprocessor_config.json", {"size": {"longest_edge": 336}}, "336"), ("preprocessor_config.json", {"size": [32, 40]}, "32 x 40"),
    ("processor_config.json", {"image_processor": crop(32), "video_processor": {"size": 28}}, "28")])
def test_a_preprocessor_of_another_model_is_refused(folder, name, content, made):
    assert model.read_facts(str(folder)).image_size == 32
    (folder / name).write_text(json.dumps(content))
    if made is None:
        assert model.read_facts(str(folder)).image_size == 32
        return
    with pytest.raises(ValueError, match=f"base': its {name} makes pictures of {made} pixels, .* takes 32 x 32: put the files of one model"):
        model.read_facts(str(folder))


@pytest.mark.parametrize(("key", "value"), [
    ("size", 336.0), ("size", "336"), ("size", True), ("size", [32, "32"]), ("crop_size", {"height": "32", "width": 32})])
def test_a_picture_size_that_is_no_number_is_named(folder, key, value):
    (folder / "preprocessor_config.json").write_text(json.dumps({key: value}))
    with pytest.raises(ValueError, match=re.escape(f"'{key}' of its preprocessor_config.json is {value!r}: a whole number of pixels")):
        model.read_facts(str(folder))


def test_a_preprocessor_file_that_is_no_json_is_named(folder):
    (folder / "preprocessor_config.json").write_text("{")
    with pytest.raises(ValueError, match="preprocessor_config.json: not valid JSON .*; copy or download the whole folder again"):
        model.read_facts(str(folder))


def test_a_hub_id_that_cannot_be_reached_leads_to_a_folder(folder, monkeypatch):
    with pytest.raises(ValueError, match="cannot be read .*a connection or an earlier download is needed: .* --model DIR "
                                         ".*--set model=DIR.*ds_configs/README.md"):
        model.load_config("no-one-here/no-such-model")
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match="cannot be read") as caught:
        model.load_config(str(folder))
    assert "--model DIR" not in str(caught.value)


@pytest.mark.parametrize(("failure", "answers"), [
    (URLError(OSError("Name or service not known")), False), (TimeoutError(), False), (URLError(ssl.SSLError()), True),
    (HTTPError("x", 404, "no", None, None), True)])
def test_without_a_connection_the_cache_alone_is_asked_once(monkeypatch, failure, answers):
    def refuse(request, timeout):
        asked.append(timeout)
        raise failure

    def refuse_config(source, **more):
        given.append(more)
        raise OSError("not in the cache")

    asked, given = [], []
    monkeypatch.setattr(model.hub, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(model, "urlopen", refuse)
    monkeypatch.setattr(model.AutoConfig, "from_pretrained", refuse_config)
    model.hub_answers.cache_clear()
    try:
        for _ in range(2):
            with pytest.raises(ValueError, match="not in the cache"):
                model.load_config("no-one-here/no-such-model")
    finally:
        model.hub_answers.cache_clear()
    assert asked == [model.HUB_TIMEOUT_SECONDS]
    assert [more.get("local_files_only", False) for more in given] == [not answers] * 2


def test_a_folder_of_another_kind_is_told_by_its_kind(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ValueError, match="is of type 'llama': only Video-LLaVA"):
        model.load_tokenizer(str(tmp_path))
