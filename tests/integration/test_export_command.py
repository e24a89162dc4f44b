"""Export through the real command: what transformers and PEFT make of the folder, against the run's own model."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, VideoLlavaForConditionalGeneration
from transformers.utils import logging as hub_logging

from vlmphys import cli
from vlmphys.dialogue import verdict_continuations
from vlmphys.inference import judge_batch
from vlmphys.model import load_tokenizer, read_facts
from vlmphys.runs import load_run_model, open_run
from vlmphys.shards import open_packed

pytestmark = pytest.mark.integration
SETTINGS = {"full": ["tune=full"], "lora": ["tune=lora", "lora_r=4", "lora_alpha=8"]}


@pytest.fixture(scope="module")
def base(tiny_model_folder, tmp_path_factory):
    """The tiny model of all tests, with an image tower, as the published one has."""
    folder = tmp_path_factory.mktemp("models") / "base"
    shutil.copytree(tiny_model_folder, folder)
    torch.manual_seed(3)
    config = VideoLlavaForConditionalGeneration.config_class.from_pretrained(folder)
    VideoLlavaForConditionalGeneration(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=list(SETTINGS))
def run(request, repository, base, packed_folder, tmp_path_factory):
    """A finished run of either kind, far enough from its base that the difference shows."""
    out = tmp_path_factory.mktemp("runs") / request.param
    done = subprocess.run(
        [sys.executable, "launch/train.py", "--data", str(packed_folder), "--model", str(base), "--out", str(out), "--set", "engine=plain",
         "per_device_train_batch_size=10", "max_steps=3", "learning_rate=2e-2", "warmup_ratio=0", "save_steps=0", *SETTINGS[request.param]],
        cwd=repository, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def exported(*arguments):
    assert cli.main(["export", *map(str, arguments)]) == 0


def scores_of(network, base, packed, clip_ids):
    """Log-odds of some clips as launch/predict.py computes them."""
    tokenizer, facts = load_tokenizer(str(base)), read_facts(str(base))
    rows = [packed.dialogues.row(clip_id, "multi_turn") for clip_id in clip_ids]
    judged = judge_batch(network, facts, [row.input_ids[:row.verdict_span[0]] for row in rows],
                         np.stack([packed.frames.row(clip_id).frames_THWC for clip_id in clip_ids]), verdict_continuations(tokenizer),
                         tokenizer.eos_token_id)
    return np.array([one.score for one in judged])


def image_weight(network):
    return next(weight for name, weight in network.named_parameters() if "image_tower" in name and weight.ndim > 1)


def digests(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def loaded_without_complaint(folder, capfd):
    """`from_pretrained` as any user calls it; nothing may be missing, newly initialised or left over."""
    capfd.readouterr()
    hub_logging.set_verbosity_warning()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        network, info = VideoLlavaForConditionalGeneration.from_pretrained(folder, output_loading_info=True, dtype=torch.float32)
    said = capfd.readouterr()
    assert "initialized" not in said.err + said.out and "MISSING" not in said.err + said.out
    assert not info["missing_keys"] and not info["mismatched_keys"]
    return network.eval()


def test_exports_load_plainly_and_score_as_the_run_does(run, base, packed_folder, tmp_path, capfd):
    packed, opened = open_packed(packed_folder), open_run(run)
    clip_ids = packed.clip_ids("test")[:5]
    own = load_run_model(opened)
    wanted = scores_of(own, base, packed, clip_ids)
    assert np.abs(wanted - scores_of(VideoLlavaForConditionalGeneration.from_pretrained(base).eval(), base, packed, clip_ids)).max() > 0.01

    for form, flags in {"merged": ["--merge"], "plain": []}.items():
        out = tmp_path / form
        exported("--run", run, "--out", out, *flags)
        exported("--run", run, "--out", tmp_path / f"{form}_again", *flags)
        assert digests(out) == digests(tmp_path / f"{form}_again")
        network = loaded_without_complaint(out, capfd)
        assert np.abs(scores_of(network, base, packed, clip_ids) - wanted).max() < 1e-5
        assert torch.equal(image_weight(network), image_weight(VideoLlavaForConditionalGeneration.from_pretrained(base)))
        assert AutoTokenizer.from_pretrained(out).get_vocab() == load_tokenizer(str(base)).get_vocab()
        assert json.loads((out / "preprocessor_config.json").read_text())["crop_size"] == {"height": 32, "width": 32}
        assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
