"""What many tests need: a tiny random model in a Hugging Face folder, and packed clips that no video stands behind. Made once a session."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

# The tests share a small machine with each other; set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

REPOSITORY = Path(__file__).parents[1]
FRAMES, SIZE = 8, 32
STATES = {"fan": ("stuck", "uneven", "vibrate"), "hinge": ("angle_limited", "falloff")}


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the repository, where the commands are run."""
    return REPOSITORY


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory) -> Path:
    """A random Video-LLaVA of about 0.2 M parameters with a tokenizer that knows the priors' words: 32 pixels, 5 tokens a frame."""
    from vlmphys.priors import load_priors
    from vlmphys.prompts import all_texts
    from vlmphys.tiny import build_random, save_model_folder, tiny_config, train_tokenizer
    folder = tmp_path_factory.mktemp("tiny_model")
    tokenizer = train_tokenizer(all_texts(load_priors(STATES)), 600)
    config = tiny_config(len(tokenizer), image_size=SIZE, vision_hidden=32, vision_layers=2, text_hidden=64, text_layers=2)
    save_model_folder(build_random(config), tokenizer, folder)
    return folder


@pytest.fixture(scope="session")
def packed_folder(tmp_path_factory, tiny_model_folder) -> Path:
    """Two categories, 20 train, 4 val and 14 test clips with their real dialogues in all variants; normal clips show a moving square."""
    from vlmphys.model import load_tokenizer, read_facts
    from vlmphys.packing import DialogueMaker, DialogueSettings, pack_dialogues
    from vlmphys.priors import load_priors
    from vlmphys.records import Variant
    from vlmphys.splits import load_split, write_split
    folder = tmp_path_factory.mktemp("packed")
    clips = _clips()
    write_split(folder / "split.json", {"version": 1, "protocol": "weak", "seed": 0, "options": {},
                                        "clips": {clip_id: side for clip_id, _, _, side in clips}})
    _write_frames(folder / "frames", clips)
    tokenizer = load_tokenizer(str(tiny_model_folder))
    maker = DialogueMaker(read_facts(str(tiny_model_folder), tokenizer), tokenizer, load_priors(STATES), FRAMES,
                          DialogueSettings(tuple(variant.value for variant in Variant)))
    states = {clip_id: (category, state) for clip_id, category, state, _ in clips}
    pack_dialogues(states, load_split(folder / "split.json"), folder, maker)
    return folder


def _clips() -> list[tuple[str, str, str, str]]:
    """(clip id, category, state, side), sorted by clip id."""
    found = []
    for category, anomalies in STATES.items():
        found += [(f"{category}/train/{number:04d}", category, "train", "train" if number < 5 else "val") for number in range(6)]
        found += [(f"{category}/test/anomaly_free/{number:04d}", category, "anomaly_free", "test") for number in range(2)]
        for index, state in enumerate(anomalies):
            sides = ("train", "train", "test", "test", *(("val",) if index == 0 else ()))
            found += [(f"{category}/test/{state}/{number:04d}", category, state, side) for number, side in enumerate(sides)]
    return sorted(found)


def _write_frames(folder: Path, clips: list[tuple[str, str, str, str]]) -> None:
    from vlmphys.files import json_bytes
    from vlmphys.records import label_of
    from vlmphys.shards import VERSION, ShardWriter, frames_schema, manifest_of
    folder.mkdir()
    meta = {"version": VERSION, "frames": FRAMES, "height": SIZE, "width": SIZE, "rule": "official", "fit": "crop"}
    writer = ShardWriter(folder / "frames-00000.arrow", frames_schema(meta), 16)
    generator = np.random.default_rng(0)
    for clip_id, category, state, _ in clips:
        frames_THWC = generator.integers(0, 60, (FRAMES, SIZE, SIZE, 3), dtype=np.uint8)
        for number in range(FRAMES):
            left = 3 * number if label_of(state) == 0 else 8
            frames_THWC[number, 12:20, left:left + 8] = 230
        writer.add({"clip_id": clip_id, "category": category, "state": state, "label": label_of(state), "frames": frames_THWC,
                    "frame_index": list(range(FRAMES)), "source_sha256": "", "source_fps": 60.0, "source_frames": FRAMES})
    (folder / "manifest.json").write_bytes(json_bytes(manifest_of("frames", meta, [writer.close()])))
    (folder / "quarantine.jsonl").write_text("")
