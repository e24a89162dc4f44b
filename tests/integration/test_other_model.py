"""A Hugging Face folder as strangers have them: other sizes, several shards, an image tower, a Llama-like tokenizer of more than 32,000 entries."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from llama_tokenizers import llama_trained
from transformers import CLIPVisionConfig, LlamaConfig, VideoLlavaConfig, VideoLlavaForConditionalGeneration

from vlmphys.priors import load_priors
from vlmphys.prompts import all_texts
from vlmphys.tiny import save_model_folder

pytestmark = pytest.mark.integration
CATEGORIES = "hinge,rubber_band"


def command(repository: Path, *words: object) -> str:
    done = subprocess.run([sys.executable, *map(str, words)], cwd=repository, capture_output=True, text=True, env={**os.environ, "COLUMNS": "200"})
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory) -> Path:
    """Hidden sizes unlike each other, 3 frames' worth of position room to spare, both towers, the vocabulary padded to 32,064."""
    tokenizer = llama_trained(all_texts(load_priors(CATEGORIES.split(","))))
    vision = CLIPVisionConfig(hidden_size=48, intermediate_size=96, num_hidden_layers=3, num_attention_heads=3, image_size=56, patch_size=14, projection_dim=48)
    text = LlamaConfig(vocab_size=32064, hidden_size=80, intermediate_size=112, num_hidden_layers=3, num_attention_heads=5, num_key_value_heads=5,
                       max_position_embeddings=768, bos_token_id=1, eos_token_id=2, pad_token_id=32002)
    torch.manual_seed(0)
    network = VideoLlavaForConditionalGeneration(VideoLlavaConfig(vision_config=vision, text_config=text, image_token_index=32000, video_token_index=32001,
                                                                  video_seq_length=8 * 17))
    folder = tmp_path_factory.mktemp("other_model")
    save_model_folder(network, tokenizer, folder, max_shard_size="14MB")
    return folder


def test_pack_train_predict_and_score(model_folder, repository, tmp_path):
    assert len(list(model_folder.glob("*.safetensors"))) == 2
    videos, packed, run = tmp_path / "videos", tmp_path / "packed", tmp_path / "run"
    command(repository, "data_prep/simulate.py", "--out", videos, "--categories", CATEGORIES, "--clips-per-state", 2, "--size", 64)
    command(repository, "data_prep/split.py", "--videos", videos, "--out", tmp_path / "split.json", "--protocol", "weak", "--per-anomaly", 1)
    command(repository, "data_prep/pack.py", "--videos", videos, "--split", tmp_path / "split.json", "--model", model_folder, "--out", packed,
            "--variants", "multi_turn")
    assert "all is as it should be" in command(repository, "data_prep/verify.py", "--data", packed, "--model", model_folder)
    said = command(repository, "launch/train.py", "--config", "launch/recipes/single_4090.yaml", "--data", packed, "--model", model_folder, "--out", run,
                   "--set", "max_steps=2", "gradient_accumulation_steps=2", "lora_r=4", "logging_steps=1")
    assert "LoRA" in said
    assert (run / "model" / "adapter_model.safetensors").is_file()
    losses = [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 2 and all(5 < loss < 15 for loss in losses)  # ln 32064 = 10.4: an untrained head over this vocabulary
    command(repository, "launch/predict.py", "--run", run, "--data", packed, "--split", "test", "--max-new-tokens", 4, "--out", tmp_path / "p.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert {row["category"] for row in rows} == set(CATEGORIES.split(",")) and all(abs(row["score"]) < 50 for row in rows)
    command(repository, "launch/score.py", "--predictions", tmp_path / "p.jsonl", "--data", packed, "--out", tmp_path / "scores")
    assert json.loads((tmp_path / "scores" / "scores.json").read_text())["per_category"]["hinge"]["n"] == 4
