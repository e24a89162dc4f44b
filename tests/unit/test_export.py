"""Export: what it refuses, precision, a cut-short write, and a card whose code runs and whose texts stay texts."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from llama_tokenizers import llama_trained
from safetensors.torch import load_file, save_file

from vlmphys import card, cli, export as exporting, runs
from vlmphys.asking import Asker, Asking
from vlmphys.config import TrainConfig
from vlmphys.dialogue import tokenize_dialogue, verdict_continuations
from vlmphys.inference import Decoding, judge_batch
from vlmphys.model import load_model, load_tokenizer, read_facts
from vlmphys.priors import load_priors
from vlmphys.predict import Predictor
from vlmphys.predictions import UNCALIBRATED, Explain, Grounding, Identity
from vlmphys.prompts import SYSTEM, Turn, all_texts, dialogue_text, spoken
from vlmphys.records import Variant
from vlmphys.shards import open_packed
from vlmphys.tuning import tune

pytestmark = pytest.mark.unit
HOSTILE = "fan|\n---\nlicense: mit\n# <b>*[x](http://y)*</b> `"
SENTENCES = {"component": "Blades on a hub.", "dynamic": "A motor drives them.", "motion": "They turn evenly."}


def make_run(folder, model, tune_mode="lora", variant="multi_turn", **facts):
    """A run folder as training leaves it, its weights moved at random rather than trained."""
    config = TrainConfig(model=str(model), out=str(folder), tune=tune_mode, variant=variant, lora_r=2, lora_alpha=4, engine="plain")
    tuned = tune(load_model(str(model)), tune_mode, lora_r=2, lora_alpha=4)
    torch.manual_seed(7)
    for weight in tuned.trained().values():
        weight.data.add_(0.1 * torch.randn_like(weight))
    data = {"fingerprint": "d1", "split": "5a", "protocol": "weak", "model_fingerprint": runs.model_fingerprint(str(model)),
            "categories": ["fan", "hinge"], "frame_settings": {"frames": 8, "height": 32, "width": 32, "rule": "official", "fit": "crop"},
            "system": False, "wordings": "train", "controls": {"shuffle_labels": None}, "train_clips": 20, "global_batch": 8, "total_steps": 12,
            **facts}
    runs.write_identity(config, data, 1)
    runs.write_model(config, tuned, {name: value.detach() for name, value in tuned.network.state_dict().items()
                                     if tuned.adapter is None or "lora_" in name})
    return folder


@pytest.fixture(scope="module")
def run(tiny_model_folder, tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "lora", tiny_model_folder)


def scores_file(path, run, **changes):
    own = runs.folder_fingerprint(run / "model")[:12]
    record = {"n": 4, "auroc": 0.75, "auroc_ci95": [0.5, 1.0], "auroc_verdict": None, "ap": 0.5, "accuracy": 0.25}
    one = {"model": f"renamed@{own}", "n": 8, "n_anomalous": 4, "protocol": "weak", "warnings": [], "average": {**record, "n_categories": 2},
           "per_category": {"fan": record, "hinge": record}, **changes}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"version": 1, "runs": {"other": {**one, "model": "x@0"}, "this": one}}))
    return path


@pytest.mark.parametrize("variant", list(Variant))
@pytest.mark.parametrize("system", ["", SYSTEM])
def test_the_cards_prompt_is_that_of_training(variant, system, tiny_model_folder):
    """Up to the questions' paraphrases and the priors' sentences, token by token, also with Llama's own kind of tokenizer."""
    priors = load_priors(["fan"])
    for tokenizer in (load_tokenizer(str(tiny_model_folder)), llama_trained(all_texts(priors))):
        prior = priors["fan"]
        form = card.prompt_form(variant, tokenizer.eos_token, system)
        prompt = form.format(category="fan", component=prior.component, dynamic=prior.dynamic, motion=prior.motion)
        turns = first_paraphrases(prior, variant)
        tokens = tokenize_dialogue(turns, tokenizer, 1, 4096, "clip", system)
        asked = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        assert [tokenizer.bos_token_id, *asked] == tokens.input_ids[:tokens.verdict_span[0]]


def first_paraphrases(prior, variant):
    turns = dialogue_text(replace(prior, questions={}), "anomaly_free", variant, "any")
    keys = {Variant.MULTI_TURN: ("component", "dynamic", "motion", "verdict"), Variant.SINGLE_TURN: ("single_turn",),
            Variant.NO_PHYSICS: ("verdict",)}[variant]
    return [Turn(card.QUESTIONS[key][0].replace("{category}", "fan"), turn.answer) for key, turn in zip(keys, turns, strict=True)]


@pytest.mark.parametrize("merge", [False, True])
def test_the_cards_code_gives_the_runs_log_odds(run, tiny_model_folder, tmp_path, monkeypatch, merge):
    out = exporting.export(run, tmp_path / "out", merge=merge, dtype="float32")
    text = (out / "README.md").read_text()
    first, *others = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names: dict = {}
    monkeypatch.chdir(out)
    exec(first, names)
    frames_THWC = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    prompt = names["PROMPT"].format(category="fan", **SENTENCES)
    tokenizer, facts = load_tokenizer(str(tiny_model_folder)), read_facts(str(tiny_model_folder))
    answers = {**SENTENCES, "verdict": "Verdict: Normal. Reason: x"}
    turns = [Turn(card.QUESTIONS[part][0].replace("{category}", "fan"), answer) for part, answer in answers.items()]
    tokens = tokenize_dialogue(turns, tokenizer, 8 * facts.tokens_per_frame, facts.max_positions, "clip")
    (judged,) = judge_batch(runs.load_run_model(runs.open_run(run)), facts, [tokens.input_ids[:tokens.verdict_span[0]]], frames_THWC[None],
                            verdict_continuations(tokenizer), tokenizer.eos_token_id)
    assert abs(names["log_odds"](frames_THWC, prompt) - judged.score) < 1e-5
    assert len(others) == (0 if merge else 1)
    for block in others:    # the same through PEFT's own class
        exec(block.replace("FOLDER_OF_THE_BASE_MODEL", str(tiny_model_folder)), names)
        assert abs(names["log_odds"](frames_THWC, prompt) - judged.score) < 1e-5


def test_the_cards_code_gives_predicts_scores_of_the_test_clips(run, tiny_model_folder, packed_folder, tmp_path, monkeypatch):
    out = exporting.export(run, tmp_path / "out", merge=True, dtype="float32")
    names: dict = {}
    monkeypatch.chdir(out)
    exec(re.findall(r"```python\n(.*?)```", (out / "README.md").read_text(), re.DOTALL)[0], names)
    packed, tokenizer = open_packed(packed_folder), load_tokenizer(str(tiny_model_folder))
    decoding = Decoding(verdict_continuations(tokenizer), tokenizer.eos_token_id, Explain.NONE)
    predictor = Predictor(runs.load_run_model(runs.open_run(run)), read_facts(str(tiny_model_folder)), tokenizer, packed, Asker(tokenizer, False),
                          decoding, UNCALIBRATED)
    asking = Asking(Variant.MULTI_TURN, Grounding.PRIOR)
    identity = Identity("run", "multi_turn", "prior", packed.fingerprint)
    clip_ids = packed.clip_ids("test")[::3]
    assert len(clip_ids) > 3
    (rows,) = predictor.rows(predictor.read(clip_ids, [asking]), [asking], [identity])
    for row in rows:
        prior = load_priors([row.category])[row.category]
        prompt = names["PROMPT"].format(category=spoken(row.category), component=prior.component, dynamic=prior.dynamic, motion=prior.motion)
        assert abs(names["log_odds"](packed.frames.row(row.clip_id).frames_THWC, prompt) - row.score) < 1e-5


def test_precision_and_files_of_limited_size(run, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "MAX_SHARD", "300KB")
    out = exporting.export(run, tmp_path / "out", merge=True, dtype="bfloat16")
    index = json.loads((out / "model.safetensors.index.json").read_text())
    names = {path.name for path in out.glob("*.safetensors")}
    assert names == set(index["weight_map"].values()) and len(names) > 1
    stored = {name: value for file in names for name, value in load_file(out / file).items()}
    assert {value.dtype for value in stored.values()} == {torch.bfloat16}
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"
    own = runs.load_run_model(runs.open_run(run), torch.bfloat16).state_dict()
    again = load_model(str(out), torch.bfloat16).state_dict()
    assert own.keys() == again.keys() and all(torch.equal(value, again[name]) for name, value in own.items())
    adapter = load_file(exporting.export(run, tmp_path / "adapter", dtype="float16") / "adapter_model.safetensors")
    assert {value.dtype for value in adapter.values()} == {torch.float16}


def test_weights_too_large_for_a_precision_are_refused_and_nothing_is_left(tiny_model_folder, tmp_path):
    folder = make_run(tmp_path / "run", tiny_model_folder, "full")
    weights = load_file(folder / "model" / "model.safetensors")
    next(value for name, value in weights.items() if name.endswith("up_proj.weight"))[0, 0] = 1e30
    save_file(weights, folder / "model" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="--dtype float16: .*up_proj.* infinite"):
        exporting.export(folder, tmp_path / "out", dtype="float16")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_what_a_killed_export_leaves_is_no_folder_of_that_name_and_does_not_hinder_the_next_one(run, tmp_path, monkeypatch):
    def killed(*given):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(exporting, "write_card", killed)
        patch.setattr(exporting.shutil, "rmtree", lambda folder: None)      # SIGKILL leaves no time to tidy up
        with pytest.raises(KeyboardInterrupt):
            exporting.export(run, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == [".out.partial"]
    (tmp_path / ".out.partial" / "model" / "leftover").write_text("of the first one")
    (tmp_path / "out").mkdir()      # an empty folder may be there
    exporting.export(run, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "README.md").is_file() and not (tmp_path / "out" / "leftover").exists()


def refused(capsys, *arguments):
    assert cli.main(["export", *map(str, arguments)]) == 2
    answer = capsys.readouterr()
    assert answer.err.startswith("error: ") and answer.err.count("\n") == 1
    return answer.err


def test_refusals_write_nothing(run, tiny_model_folder, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    assert "is no run folder" in refused(capsys, "--run", tmp_path / "none", "--out", out)
    unfinished = tmp_path / "unfinished"
    shutil.copytree(run, unfinished)
    shutil.rmtree(unfinished / "model")
    assert "its training has not ended" in refused(capsys, "--run", unfinished, "--out", out)
    used = tmp_path / "used"
    used.mkdir()
    (used / "thesis.txt").write_text("keep me")
    assert "is not empty: give a new folder" in refused(capsys, "--run", run, "--out", used)
    assert "is a file" in refused(capsys, "--run", run, "--out", used / "thesis.txt")
    assert "no such file" in refused(capsys, "--run", run, "--out", out, "--scores", tmp_path / "none.json")
    assert "none of its models is that of" in refused(capsys, "--run", run, "--out", out, "--scores",
                                                      scores_file(tmp_path / "scores.json", run, model="run@0123"))
    with monkeypatch.context() as patch:
        patch.setattr(exporting, "free_disk", lambda path: 10)
        assert "are needed there and 0.0 MiB are free" in refused(capsys, "--run", run, "--out", out)
    base, changed = tmp_path / "base", tmp_path / "changed"
    for mode in ("lora", "full"):
        shutil.rmtree(base, ignore_errors=True)
        shutil.copytree(tiny_model_folder, base)
        folder = make_run(changed / mode, base, mode)
        (base / "config.json").write_text((base / "config.json").read_text() + " ")
        assert "which has changed since the training" in refused(capsys, "--run", folder, "--out", out)
        shutil.rmtree(base)
        assert "is no folder" in refused(capsys, "--run", folder, "--out", out)
    assert not out.exists() and not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_full_disk_a_missing_file_and_a_damaged_one_are_one_sentence_each(run, tmp_path, capsys, monkeypatch):
    def full(*given):
        raise OSError(28, "No space left on device")
    with monkeypatch.context() as patch:
        patch.setattr(exporting, "write_card", full)
        assert "No space left on device; correct this" in refused(capsys, "--run", run, "--out", tmp_path / "out")
    broken = tmp_path / "broken"
    shutil.copytree(run, broken)
    adapter = broken / "model" / exporting.ADAPTER
    adapter.write_bytes(adapter.read_bytes()[:100])
    assert "damaged" in refused(capsys, "--run", broken, "--out", tmp_path / "out")
    adapter.unlink()
    assert "No such file" in refused(capsys, "--run", broken, "--out", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]


def test_a_base_in_a_folder_is_told_before_an_adapter_is_published(run, tiny_model_folder, tmp_path, capsys):
    for flags, told in (([], True), (["--merge"], False)):
        assert cli.main(["export", "--run", str(run), "--out", str(tmp_path / f"out{told}"), *flags]) == 0
        assert (f"before you publish it: adapter_config.json names the base by its folder here ({tiny_model_folder})"
                in capsys.readouterr().out) == told


def front_and_body(folder):
    head, body = (folder / "README.md").read_text().removeprefix("---\n").split("\n---\n", 1)
    return yaml.safe_load(head), body


def test_the_card_names_data_split_metrics_and_base(run, tmp_path):
    shutil.copytree(run, tmp_path / "runs" / "mine")
    run = tmp_path / "runs" / "mine"
    head, body = front_and_body(exporting.export(run, tmp_path / "plain"))
    assert head["base_model"].startswith("tiny_model") and head["base_model_relation"] == "adapter" and head["library_name"] == "peft"
    assert head["pipeline_tag"] == "video-text-to-text" and "license" not in head
    assert "Not scored." in body and "no image tower" in body and "fan, hinge" in body and "fingerprint `d1`" in body
    assert "protocol weak, sha256 `5a`" in body and "| `lora_r` | 2 |" in body
    (run / "best.json").write_text('{"step": 4, "auroc": 0.8765}')
    _, body = front_and_body(exporting.export(run, tmp_path / "validated"))
    assert "validation clips was 0.876" in body or "validation clips was 0.877" in body
    scores_file(tmp_path / "runs" / "scores" / "scores.json", run)      # where quickstart.sh puts it
    _, body = front_and_body(exporting.export(run, tmp_path / "scored"))
    assert "| fan | 4 | 0.750 | 0.500 to 1.000 | - | 0.500 | 0.250 |" in body and "| mean of 2 | 4 | 0.750 |" in body
    assert "validation" not in body


def test_the_card_says_how_the_clips_were_asked(run, tiny_model_folder, tmp_path):
    text = (exporting.export(run, tmp_path / "new") / "README.md").read_text()
    assert "asks as the val and test clips were asked: of each question the first wording (training used them all). A category" in text
    make_run(tmp_path / "run", tiny_model_folder, wordings=None)
    text = (exporting.export(tmp_path / "run", tmp_path / "old") / "README.md").read_text()
    assert "as the val and test clips were asked" not in text and "packed by an earlier version, were asked in any of them. A category" in text


def test_texts_from_files_cannot_break_the_card(run, tiny_model_folder, tmp_path):
    """The hostile name stands in the base's folder, in a category, in a warning; none of it starts a row, a heading, a tag or a key."""
    base = tmp_path / HOSTILE.replace("/", "_")
    shutil.copytree(tiny_model_folder, base)
    folder = make_run(tmp_path / "run", base, categories=[HOSTILE], protocol=HOSTILE)
    record = {"n": 4, "auroc": 0.75}
    scores = scores_file(tmp_path / "s.json", folder, per_category={HOSTILE: record}, average={**record, "n_categories": 1}, warnings=[HOSTILE], protocol=HOSTILE)
    out = exporting.export(folder, tmp_path / "out", scores=scores)
    head, body = front_and_body(out)
    assert head["base_model"] == base.name and "license" not in head
    prose = re.sub(r"```python\n.*?\n```", "", body, flags=re.DOTALL)
    assert prose.count("license\\: mit") >= 4
    assert not re.search(r"^(license|---|# <)", body, re.MULTILINE)
    assert not re.search(r"(?<!\\)[<\[`*](?=b>|x\]|/b)", prose) and "http://" not in prose
    cells = {len(re.findall(r"(?<!\\)\|", line)) for line in prose.splitlines() if line.startswith("| fan")}
    assert cells == {8}


def test_a_control_run_says_so(run, tiny_model_folder, tmp_path):
    folder = make_run(tmp_path / "run", tiny_model_folder, controls={"shuffle_labels": 1})
    assert "trained on shuffled labels" in (exporting.export(folder, tmp_path / "out") / "README.md").read_text()
