"""The run folder: who may write into it, what it says of itself, and the model that it ends with."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from vlmphys import checkpoint
from vlmphys.cases import GIB
from vlmphys.config import TrainConfig, differences, read_back, read_deepspeed_json, to_yaml
from vlmphys.doctor import version_of
from vlmphys.files import fsync_file, fsync_folder, json_bytes, read_json, write_atomic
from vlmphys.finished import check_run
from vlmphys.model import PREPROCESSOR, load_model, load_tokenizer, quiet_transformers, resolve_source
from vlmphys.records import Variant, sha256_text
from vlmphys.tower import with_tower
from vlmphys.tuning import Tuned

PACKAGES = ("vlmphys", "torch", "transformers", "deepspeed", "peft", "safetensors", "pyarrow", "numpy")
DIGEST_CHUNKS, DIGEST_CHUNK_BYTES = 64, 1 << 18
# What of data.json must agree when a run is resumed; the paths may differ.
DATA_IDENTITY = ("fingerprint", "features", "model_fingerprint", "global_batch", "train_clips")


@dataclass(frozen=True)
class Run:
    """A finished run."""

    folder: Path
    config: TrainConfig
    model_folder: Path          # Hugging Face folder (tune: full) or PEFT adapter (tune: lora, qlora)
    variant: Variant
    data_fingerprint: str


def open_run(folder: str | Path) -> Run:
    """A finished run. Raises ValueError where the folder is none, or its training has not ended."""
    folder = Path(folder)
    check_run(folder)
    config = read_back(folder / "config.yaml")
    facts = read_json(folder / "data.json", "the run folder is incomplete")
    return Run(folder, config, folder / "model", Variant(config.variant), facts["fingerprint"])


def load_run_model(run: Run, dtype: torch.dtype = torch.float32, four_bit_on: torch.device | None = None, tower: bool = True):
    """The tuned model on the CPU, in `dtype`, LoRA merged into its base, without image tower, in evaluation mode; without `tower` it takes
    features in place of pixels. With `four_bit_on` as `load_model`; there LoRA stays beside its base, whose packed weights merging would
    round anew.

    Raises ValueError where an adapter's base is not the one that it was trained on, or weights cannot be read.
    """
    if run.config.tune == "full":
        return load_model(str(run.model_folder), dtype, four_bit_on, tower).eval()
    # The base by the name that the run was given: an adapter's own path to it does not outlive a move to another machine.
    check_base(run)
    tuned = PeftModel.from_pretrained(load_model(run.config.model, dtype, four_bit_on, tower), run.model_folder)
    return (tuned.get_base_model() if four_bit_on else tuned.merge_and_unload()).eval()


def check_base(run: Run) -> None:
    """Raise ValueError where the base model is not the one that the run was trained on, or is not there."""
    trained_on = read_json(run.folder / "data.json", "the run folder is incomplete").get("model_fingerprint")
    if model_fingerprint(run.config.model) != trained_on:
        kind = "a tuned model from" if run.config.tune == "full" else "an adapter for"
        raise ValueError(f"{run.folder} is {kind} the base model {run.config.model}, which has changed since the training: "
                         "put the base back that it was trained on, or train again")


def tower_of(run: Run) -> str:
    """The model whose video tower is the run's own, which stays frozen: the base, where it is still the one that was trained on, else what
    the run wrote, whose weights are those of the base in the run's precision."""
    try:
        check_base(run)
    except ValueError:
        return str(run.model_folder) if run.config.tune == "full" else run.config.model
    return run.config.model


def check_claim(config: TrainConfig, data_facts: dict[str, Any], resume: str) -> None:
    """Refuse a run folder that is something else or belongs to another run: ValueError that names each difference. Writes nothing."""
    out = Path(config.out)
    if out.exists() and not out.is_dir():
        raise ValueError(f"out: {out} is a file; give a folder")
    present = {path.name for path in out.iterdir() if not path.name.startswith(".")} if out.exists() else set()
    if "config.yaml" not in present:
        if present <= {"checkpoints", "data.json", "env.json"} and not checkpoint.complete(out):
            return      # nothing, or what a run leaves that was killed while it made its folder
        raise ValueError(f"out: {out} is not empty and no run folder; give a new folder with --out")
    if resume == "never":
        raise ValueError(f"out: {out} holds a run already, and --resume is 'never'; give a new folder with --out, or --resume auto")
    stored = read_json(out / "data.json", "give a new folder with --out")
    other = differences(read_back(out / "config.yaml"), config)
    # The parts of the packed data that are others than they were, where the run says of what it was made: another prior is other dialogues.
    parts = {"frames": "frames/manifest.json", "dialogues": "dialogues/manifest.json", "split": "split.json"}
    other = [f"{Path(config.data) / file} is another than it was when the run was begun" for part, file in parts.items()
             if part in stored and part in data_facts and stored[part] != data_facts[part]] + other
    there, here = ({"fingerprint": f" of {facts.get('data')}"} for facts in (stored, data_facts))
    other += [f"{key} ({stored.get(key)!r}{there.get(key, '')} there, {data_facts.get(key)!r}{here.get(key, '')} here)"
              for key in DATA_IDENTITY if stored.get(key) != data_facts.get(key)]
    if other:
        raise ValueError(f"run folder {out} belongs to another run: {'; '.join(other)}; give the same settings, or a new folder "
                         f"with --out, or remove {out} if what it holds is no longer wanted")


def write_identity(config: TrainConfig, data_facts: dict[str, Any], world_size: int, pids: Sequence[int] = ()) -> None:
    """Create the run folder, or refresh it: config.yaml, data.json, env.json. `pids`: of the ranks, in their order, for those who want to
    signal one. ValueError where it cannot be created."""
    out = Path(config.out)
    try:
        (out / "checkpoints").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"out: {out} cannot be created ({error.strerror}): give a folder that can be written to") from error
    write_atomic(out / "data.json", json_bytes(data_facts))
    write_atomic(out / "env.json", json_bytes({**environment(config, world_size), "pids": list(pids)}))
    write_atomic(out / "config.yaml", to_yaml(config).encode())


def forget_pids(out: str | Path) -> None:
    """Empty the `pids` of env.json: the processes end now, and others may get their numbers.

    Where the file cannot be read or written (a full disk) they stay, as they do after `kill -9`: it is no reason to fail.
    """
    path = Path(out) / "env.json"
    with suppress(OSError, ValueError):
        write_atomic(path, json_bytes({**read_json(path, "the run folder is incomplete"), "pids": []}))


def environment(config: TrainConfig, world_size: int) -> dict[str, Any]:
    """Versions, git revision and hardware of this process; no host name, no environment variables."""
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "python": platform.python_version(), "packages": {name: version_of(name) for name in PACKAGES}, "git": _git_revision(),
        "platform": platform.platform(), "cpus": len(os.sched_getaffinity(0)), "threads": torch.get_num_threads(),
        "host_memory_gib": round(memory / GIB, 1), "gpus": gpus, "cuda": torch.version.cuda, "ranks": world_size,
        "deepspeed_settings": read_deepspeed_json(config.deepspeed) if config.deepspeed else None, "command": sys.argv}


def _git_revision() -> str | None:
    """Revision of the source tree, with `-dirty` where it is changed; None for an installed package or without git."""
    try:
        answer = subprocess.run(["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"],
                                capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None


def model_fingerprint(model: str) -> str:
    """The fingerprint of the folder behind `model`. A hub id is taken by its name: the hub's own cache keeps its revision."""
    source = resolve_source(model)
    return folder_fingerprint(Path(source)) if Path(source).is_dir() else sha256_text(source)


def folder_fingerprint(folder: Path) -> str:
    """A sha256 that tells two models or adapters apart and is cheap for large files: config, and of each safetensors file name, size and
    evenly spread parts. Both ends alone would not do: those of a tuned model are its head and its tower, which stay frozen.
    """
    digest = hashlib.sha256()
    for path in (folder / name for name in ("config.json", "adapter_config.json")):
        if path.is_file():
            digest.update(path.read_bytes())
    for path in sorted(folder.glob("*.safetensors")):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        last = max(0, size - DIGEST_CHUNK_BYTES)
        with open(path, "rb") as stream:
            for offset in sorted({last * part // (DIGEST_CHUNKS - 1) for part in range(DIGEST_CHUNKS)}):
                stream.seek(offset)
                digest.update(stream.read(DIGEST_CHUNK_BYTES))
    return digest.hexdigest()


def write_model(config: TrainConfig, tuned: Tuned, weights: dict[str, torch.Tensor]) -> Path:
    """Write the run's model aside and give it its name when it is whole: this ends the run.

    `weights` are those of `VideoLlavaForConditionalGeneration`, as it was loaded. Full tuning writes a Hugging Face folder, which holds the
    video tower whether it was loaded or not; LoRA a PEFT adapter.
    """
    target = Path(config.out) / "model"
    aside = target.with_name("model.partial")
    if aside.exists():
        shutil.rmtree(aside)
    aside.mkdir()
    if tuned.adapter is None:
        weights = with_tower(tuned.network, config.model, weights)
        with quiet_transformers():
            tuned.network.save_pretrained(aside, state_dict=weights)
        dtype = next(iter(weights.values())).dtype
        stored = json.loads((aside / "config.json").read_text())
        write_atomic(aside / "config.json", json_bytes({**stored, "dtype": str(dtype).removeprefix("torch.")}))
    else:
        prefixed = {f"base_model.model.{name}": value for name, value in weights.items()}
        tuned.adapter.save_pretrained(aside, state_dict=prefixed, save_embedding_layers=False)
        # PEFT's empty card; a true one comes with `vlmphys export`.
        (aside / "README.md").unlink(missing_ok=True)
    load_tokenizer(config.model).save_pretrained(aside)
    preprocessor = Path(resolve_source(config.model)) / PREPROCESSOR
    if preprocessor.is_file():
        shutil.copy(preprocessor, aside)
    for path in aside.iterdir():
        fsync_file(path)
    fsync_folder(aside)
    os.replace(aside, target)
    fsync_folder(target.parent)
    return target
