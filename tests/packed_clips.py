"""Packed clips that no video stands behind: real dialogues, and frames in which normal clips show a moving square."""

from __future__ import annotations

from pathlib import Path

import numpy as np

FRAMES = 8


def write_packed(folder: Path, model_folder: Path, clips: list[tuple[str, str, str, str]], size: int) -> Path:
    """What pack.py would leave for these (clip id, category, state, side), sorted by clip id, in all variants; `size` x `size` pixels."""
    from vlmphys.dialogue_packing import DialogueMaker, DialogueSettings, pack_dialogues
    from vlmphys.model import load_tokenizer, read_facts
    from vlmphys.priors import load_priors
    from vlmphys.records import Variant
    from vlmphys.splits import load_split, write_split
    write_split(folder / "split.json", {"version": 1, "protocol": "weak", "seed": 0, "options": {},
                                        "clips": {clip_id: side for clip_id, _, _, side in clips}})
    _write_frames(folder / "frames", clips, size)
    tokenizer = load_tokenizer(str(model_folder))
    maker = DialogueMaker(read_facts(str(model_folder), tokenizer), tokenizer, load_priors({category for _, category, _, _ in clips}), FRAMES,
                          DialogueSettings(tuple(variant.value for variant in Variant)))
    states = {clip_id: (category, state) for clip_id, category, state, _ in clips}
    pack_dialogues(states, load_split(folder / "split.json"), folder, maker)
    return folder


def _write_frames(folder: Path, clips: list[tuple[str, str, str, str]], size: int) -> None:
    from vlmphys.files import json_bytes
    from vlmphys.records import label_of
    from vlmphys.shard_files import VERSION, ShardWriter, manifest_of
    from vlmphys.shards import frames_schema
    folder.mkdir()
    meta = {"version": VERSION, "frames": FRAMES, "height": size, "width": size, "rule": "official", "fit": "crop"}
    writer = ShardWriter(folder / "frames-00000.arrow", frames_schema(meta), 16)
    generator = np.random.default_rng(0)
    for clip_id, category, state, _ in clips:
        frames_THWC = generator.integers(0, 60, (FRAMES, size, size, 3), dtype=np.uint8)
        for number in range(FRAMES):
            left = 3 * number if label_of(state) == 0 else 8
            frames_THWC[number, 12:20, left:left + 8] = 230
        writer.add({"clip_id": clip_id, "category": category, "state": state, "label": label_of(state), "frames": frames_THWC,
                    "frame_index": list(range(FRAMES)), "source_sha256": "", "source_fps": 60.0, "source_frames": FRAMES})
    (folder / "manifest.json").write_bytes(json_bytes(manifest_of("frames", meta, [writer.close()])))
    (folder / "quarantine.jsonl").write_text("")


def random_model(folder: Path, categories, size: int) -> Path:
    """A random Video-LLaVA of about 0.2 M parameters with a tokenizer that knows these priors' words."""
    from vlmphys.priors import load_priors
    from vlmphys.prompts import all_texts
    from vlmphys.tiny import build_random, save_model_folder, tiny_config, train_tokenizer
    tokenizer = train_tokenizer(all_texts(load_priors(categories)), 600)
    config = tiny_config(len(tokenizer), image_size=size, vision_hidden=32, vision_layers=2, text_hidden=64, text_layers=2)
    save_model_folder(build_random(config), tokenizer, folder)
    return folder
