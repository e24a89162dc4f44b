"""A finished run as a folder that Hugging Face's own classes load: merged weights or an adapter, tokenizer, preprocessor, model card."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from transformers import VideoLlavaForConditionalGeneration
from transformers.utils import cached_file

from vlmphys import runs
from vlmphys.card import Exported, find_scores, write_card
from vlmphys.cases import gib
from vlmphys.doctor import free_disk
from vlmphys.files import fsync_file, fsync_folder, json_bytes, only_writer, read_json, write_atomic
from vlmphys.model import (PREPROCESSOR, PROCESSOR_FILES, load_config, load_tokenizer, quiet_transformers, read_facts,
                           resolve_source)
from vlmphys.tiny import preprocessor_settings
from vlmphys.tower import IMAGE, load_tower

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MAX_SHARD = "2GB"
# What is written anew here rather than copied out of the run folder.
WRITTEN_HERE = ("config.json", "generation_config.json", "adapter_config.json", "README.md")
ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"


def export(run_folder: str | Path, out: str | Path, merge: bool = False, scores: str | Path | None = None, dtype: str | None = None,
           console: Console | None = None) -> Path:
    """Write the model of a finished run as a new folder `out` and return it: all of it, or nothing.

    A run that trained LoRA gives an adapter, or with `merge` whole weights; one that trained the weights themselves always gives those.
    `dtype` is one of `DTYPES`, by default the run's own precision; `scores` is a scores.json of this run's predictions. The same run and
    the same arguments give the same bytes.

    Host memory: one copy of the model in `dtype` (the base's image tower included), the adapter in fp32, and one weight in fp32.
    Raises ValueError for a run that is not finished, a base that has changed, scores of another model, an `out` that is not empty, a
    disk without room, and weights that `dtype` cannot hold.
    """
    console, out = console or Console(quiet=True), Path(out)
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"--dtype {dtype!r}: {', '.join(DTYPES)} are allowed")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"--out {out} {'is not empty' if out.is_dir() else 'is a file'}: give a new folder")
    run = runs.open_run(run_folder)
    whole = merge or run.config.tune == "full"
    dtype = dtype or ("bfloat16" if run.config.bf16 else "float32")
    runs.check_base(run)
    found = find_scores(run, scores)
    needed = whole_bytes(run.config.model, DTYPES[dtype]) if whole else (run.model_folder / ADAPTER).stat().st_size * 2
    check_disk(out, needed)
    if whole:
        console.print(f"the whole model in {dtype}: about {gib(needed)} of host memory and as much of disk", highlight=False)

    target = out.absolute()
    aside = target.with_name(f".{target.name}.partial")
    with only_writer(aside, "exporting", passing=True):
        # One level below the folder that is held, so that taking its name leaves nothing behind.
        folder = aside / "model"
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir()
        try:
            has_image_tower = write_whole(run, folder, dtype) if whole else write_adapter(run, folder, dtype)
            copy_processors(run, folder)
            write_card(folder / "README.md", run, Exported(whole, dtype, has_image_tower), found, load_tokenizer(run.config.model))
            for path in sorted(folder.iterdir()):
                fsync_file(path)
            fsync_folder(folder)
            os.replace(folder, target)      # over an empty folder of that name, where there is one
        finally:
            if folder.exists():
                shutil.rmtree(folder)
        fsync_folder(target.parent)
    console.print(f"exported: {out}", highlight=False, soft_wrap=True)
    if not whole and Path(base := resolve_source(run.config.model)).is_dir():
        console.print(f"before you publish it: {ADAPTER_CONFIG} names the base by its folder here ({Path(base).absolute()}), so that it "
                      "loads on this machine; write the base's hub id there", highlight=False, markup=False, soft_wrap=True)
    return out


def whole_bytes(model: str, dtype: torch.dtype) -> int:
    """Bytes of all weights in `dtype`, both towers, from the config alone."""
    with torch.device("meta"):
        network = VideoLlavaForConditionalGeneration(load_config(model))
    return sum(parameter.numel() for parameter in network.parameters()) * dtype.itemsize


def check_disk(out: Path, needed: int) -> None:
    """Raise ValueError where the disk that `out` will lie on has no room for `needed` bytes."""
    free = free_disk(out)
    if free < needed:
        raise ValueError(f"--out {out}: {gib(needed)} are needed there and {gib(free)} are free; "
                         "make room, or give a folder on another disk")


def write_whole(run: runs.Run, folder: Path, dtype: str) -> bool:
    """Config and weights, merged where the run trained an adapter, in files of at most `MAX_SHARD`. Whether they hold an image tower."""
    tower = load_tower(run.config.model, DTYPES[dtype], IMAGE)
    network = runs.load_run_model(run, DTYPES[dtype])
    network.model.image_tower = tower
    for name, weight in network.named_parameters():
        if not torch.isfinite(weight).all():
            raise ValueError(f"--dtype {dtype}: {name} holds values that are infinite or no number in it; give float32 or bfloat16")
    with quiet_transformers():
        network.save_pretrained(folder, max_shard_size=MAX_SHARD)
    return tower is not None


def write_adapter(run: runs.Run, folder: Path, dtype: str) -> bool:
    """The adapter in `dtype`, and its config, which names the base by where it stands now. Whether the base has an image tower."""
    weights = load_file(run.model_folder / ADAPTER)
    save_file({name: value.to(DTYPES[dtype]).contiguous() for name, value in weights.items()}, folder / ADAPTER, metadata={"format": "pt"})
    settings = read_json(run.model_folder / ADAPTER_CONFIG, "the run folder is incomplete")
    source = resolve_source(run.config.model)
    settings["base_model_name_or_path"] = str(Path(source).absolute()) if Path(source).is_dir() else source
    write_atomic(folder / ADAPTER_CONFIG, json_bytes(settings))
    return load_tower(run.config.model, torch.bfloat16, IMAGE) is not None


def copy_processors(run: runs.Run, folder: Path) -> None:
    """Tokenizer and preprocessor, byte for byte: those that the run folder holds, and what else the base has of them."""
    for path in sorted(run.model_folder.iterdir()):
        if path.name not in WRITTEN_HERE and ".safetensors" not in path.name:
            shutil.copyfile(path, folder / path.name)
    source = resolve_source(run.config.model)
    for name in PROCESSOR_FILES:
        if not (folder / name).exists():
            found = cached_file(source, name, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False)
            if found:
                shutil.copyfile(found, folder / name)
    if not (folder / PREPROCESSOR).exists():
        facts = read_facts(run.config.model)
        write_atomic(folder / PREPROCESSOR, json_bytes(preprocessor_settings(facts.image_size, facts.image_mean, facts.image_std)))
