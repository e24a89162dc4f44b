"""`vlmphys plan`: what a run will take, before anything is loaded, from the model's config alone; and what to change where it does not fit.

The formulas are in `memory` and `duration`; here are the facts that go into them, the search for what fits, and `check_fits` for training
itself.
"""

from __future__ import annotations

import math
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

from vlmphys import memory
from vlmphys.cases import GIB, Case, Data, Machine, ModelSize, Sharding, gib, sharding_of
from vlmphys.config import FIELDS, TrainConfig, read_deepspeed_json
from vlmphys.doctor import free_disk, gpus_here, host_memory, same_disk
from vlmphys.duration import assumed_time, time_of

REPOSITORY = Path(__file__).parents[1]
# Tokens of a clip beside its video, and how many of them are supervised, where nothing is packed: a long four-turn dialogue.
ASSUMED_TEXT, ASSUMED_SUPERVISED = 850, 300
# Ranks of LoRA that are tried where a run does not fit.
SMALLER_RANKS = (32, 8)
PLACES = ("device", "host", "disk")


@dataclass(frozen=True)
class Estimate:
    """A case with all its bytes: by phase and part on one card (empty without a GPU) and in one machine's host memory, by part on the disk
    of the run folder, and by folder and part on other disks (an `nvme_path`)."""

    case: Case
    device: dict[str, dict[str, int]]
    host: dict[str, dict[str, int]]
    disk: dict[str, int]
    elsewhere: dict[str, dict[str, int]]

    def shortages(self, machine: Machine, sure: bool = False) -> list[str]:
        """What there is too little of, with the numbers; with `sure`, only what is short even without the parts that are mere guesses."""
        guesses = (memory.SLACK, memory.CONTEXT) if sure else ()
        found = []
        phase, need = memory.peak(memory.without(self.device, guesses))
        if machine.gpu is not None and need > machine.gpu:
            found.append(f"each card has {gib(machine.gpu)}, the {phase} needs {gib(need)}")
        phase, need = memory.peak(memory.without(self.host, guesses))
        if need > machine.host:
            found.append(f"there are {gib(machine.host)} of host memory, {gib(need)} are needed ({phase})")
        if machine.disk is not None:
            free = {self.case.config.out: machine.disk,
                    **{folder: free_disk(folder) if machine.disk_here else machine.disk for folder in self.elsewhere}}
            for folder, parts in {self.case.config.out: self.disk, **self.elsewhere}.items():
                need = sum(parts.values())
                if need > free[folder]:
                    found.append(f"{gib(free[folder])} are free on the disk of {folder}, {', '.join(parts)} need {gib(need)}")
        if self.case.config.tune == "qlora" and machine.gpu is None:
            found.append("tune is 'qlora', whose 4-bit weights need a CUDA GPU")
        elif self.case.config.tune == "qlora" and self.case.sharding.stage not in (1, 2):
            found.append("tune is 'qlora', which works with ZeRO-1 and ZeRO-2 alone")
        return found


def model_size(config: TrainConfig, hf=None) -> ModelSize:
    """Count a model from its config: the real modules are built on torch's meta device, where they take no memory.

    `hf`: its `VideoLlavaConfig`, else that of `config.model` is read. Raises ValueError where the model is no Video-LLaVA or its language
    model is not Llama-like.
    """
    import torch
    from transformers import VideoLlavaForConditionalGeneration

    from vlmphys.model import drop_image_tower, load_config, tokens_per_frame
    from vlmphys.tuning import count_groups, expected_counts, linear_shapes
    hf = hf or load_config(config.model)
    text, vision = hf.text_config, hf.vision_config
    if text.model_type != "llama":
        raise ValueError(f"model {config.model!r}: only Llama-like language models can be tuned, not {text.model_type!r}")
    with torch.device("meta"):
        network = VideoLlavaForConditionalGeneration(hf)
    both = sum(parameter.numel() for parameter in network.parameters())
    groups = {group: total for group, (total, _) in count_groups(drop_image_tower(network)).items()}
    for group, count in expected_counts(text, "full", True, 0).items():
        assert groups[group] == count, f"{group}: {groups[group]:,} parameters in the modules, {count:,} by the config"
    shapes = linear_shapes(text)
    size = ModelSize(
        parameters=groups, image_tower=both - sum(groups.values()), text_config=text, trained=0, largest_trained=0,
        layers=text.num_hidden_layers, hidden=text.hidden_size, ffn=text.intermediate_size, vocab=text.vocab_size,
        heads=text.num_attention_heads, queries=shapes["q_proj"][1], keys=shapes["k_proj"][1],
        vision_hidden=vision.hidden_size, vision_ffn=vision.intermediate_size, vision_layers=vision.num_hidden_layers,
        image_size=vision.image_size, tokens_per_frame=tokens_per_frame(vision))
    return tuned_size(size, config)


def trained_by_group(size: ModelSize, config: TrainConfig) -> dict[str, int]:
    """Trained parameters of each group."""
    from vlmphys.tuning import expected_counts
    return expected_counts(size.text_config, config.tune, config.tune_o_proj, config.lora_r)


def tuned_size(size: ModelSize, config: TrainConfig) -> ModelSize:
    """The same model, tuned as `config` says."""
    rows = size.hidden if config.tune == "full" else config.lora_r
    return replace(size, trained=sum(trained_by_group(size, config).values()), largest_trained=rows * max(size.ffn, size.queries))


def read_data(folder: str | Path, config: TrainConfig, size: ModelSize, features: bool | None = None) -> Data:
    """Lengths of the train clips' dialogues, and whether their video comes as `features` (None: found out here).

    Raises ValueError where the folder is not packed data for this model, or has no train clip.
    """
    import numpy as np

    from vlmphys.shards import open_packed
    packed = open_packed(folder)
    packed.frames.check(size.image_size)
    packed.dialogues.check(tokens_per_frame=size.tokens_per_frame)
    clips = packed.train_clips()
    rows = [packed.dialogues.row(clip_id, config.variant) for clip_id in clips]
    lengths, supervised = [len(row.input_ids) for row in rows], [int(np.count_nonzero(row.turn)) for row in rows]
    features = has_features(packed, config) if features is None else features
    frames = packed.frames.meta["frames"]
    stored = 2 * frames * size.tokens_per_frame * size.vision_hidden * len(packed.frames)
    video = f"video as features ({gib(stored)})" if features else f"video as pixels; as features (data_prep/pack.py --features): {gib(stored)}"
    return Data(clips, max(lengths), max(supervised), frames,
                f"{folder}: {len(clips)} train clips of at most {max(lengths)} tokens, {max(supervised)} of them supervised; {video}",
                (mean(lengths), mean(length ** 2 for length in lengths), mean(supervised)), features)


def has_features(packed, config: TrainConfig) -> bool:
    """Whether a run would take features. A plan needs no weights: where there are none to compare with, `auto` counts on the tower."""
    from vlmphys.features import take_features
    from vlmphys.model import read_facts
    if config.features != "auto":
        return config.features == "true"
    try:
        facts = read_facts(config.model)
        return take_features(packed, "auto", config.model, facts.image_mean, facts.image_std, all_sets=True)[0].features is not None
    except ValueError:
        return False


def assumed_data(config: TrainConfig, size: ModelSize, hf) -> Data:
    """Lengths where nothing is packed yet: the model's own video span and a long dialogue."""
    video = getattr(hf, "video_seq_length", None) or 8 * size.tokens_per_frame
    tokens = min(video + ASSUMED_TEXT, hf.text_config.max_position_embeddings)
    return Data(None, tokens, ASSUMED_SUPERVISED, math.ceil(video / size.tokens_per_frame),
                f"none at {config.data!r}; assumed: clips of {tokens} tokens, {video} of them video, {ASSUMED_SUPERVISED} supervised")


def machine_of(config: TrainConfig, gpu_gib: float | None = None, host_gib: float | None = None, gpus: int | None = None,
               of_rank: int | None = None, disk_gib: float | None = None, machines: int | None = None) -> Machine:
    """This machine, or the one that is described; `machines` of them, each with `gpus` cards. `of_rank`: look at this card alone.

    Raises ValueError for sizes that are not above 0, and for a number of cards where there is no card.
    """
    for flag, value in (("--gpu-gib", gpu_gib), ("--host-gib", host_gib), ("--gpus", gpus), ("--disk-gib", disk_gib),
                        ("--machines", machines)):
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"{flag} is {value}: it must be above 0")
    host = int(host_gib * GIB) if host_gib else host_memory().available
    disk = int(disk_gib * GIB) if disk_gib else None if gpu_gib else free_disk(config.out)      # of another machine it is not known
    several = f"{machines} machines with each " if (machines or 1) > 1 else ""
    of_host = f"{gib(host)} of host memory{'' if host_gib else ' (free here now)'}" + (
        f", {disk_gib:g} GiB of disk" if disk_gib else ", disk: not checked, give --disk-gib" if disk is None else "")
    described, card, size, count = f"no GPU, {of_host}", None, None, 0
    if gpu_gib:
        count, size = gpus or 1, int(gpu_gib * GIB)
        described = f"{count} x {gpu_gib:g} GiB, {of_host}"
    elif here := gpus_here(None if of_rank is None else [of_rank]):
        count, size, card = gpus or len(here), min(gpu.free for gpu in here), here[0].name
        described = f"{count} x {card} with {gib(size)} free, {of_host}"
    elif gpus:
        raise ValueError(f"--gpus is {gpus}, but there is no GPU here: add --gpu-gib, the memory of one card")
    return Machine(count, size, host, disk, several + described, card, disk_here=not (gpu_gib or disk_gib), machines=machines or 1)


def shipped_shardings(config: TrainConfig) -> tuple[list[Sharding], list[str]]:
    """What the JSONs beside the config's own, or in ds_configs/, say of sharding; and those that are refused, with the reason."""
    folders = [Path(config.deepspeed).parent] if config.deepspeed else [Path("ds_configs"), REPOSITORY / "ds_configs"]
    found, refused = [], []
    for path in next((paths for folder in folders if (paths := sorted(folder.glob("*.json")))), []):
        try:
            found.append(sharding_of(str(path), read_deepspeed_json(str(path))))
        except ValueError as error:
            refused.append(str(error))
    return found, refused


def case_of(config: TrainConfig, size: ModelSize, data: Data, machine: Machine, ranks: int | None = None,
            on_node: int | None = None) -> Case:
    """The config on the machine, one rank a card where `ranks` does not say otherwise; `on_node` of them on each machine."""
    if ranks is None:
        on_node = max(1, machine.gpus)
        ranks = on_node * machine.machines
    sharding = Sharding(config.engine, fsdp=config.engine == "fsdp")
    if config.deepspeed:
        sharding = sharding_of(config.deepspeed, read_deepspeed_json(config.deepspeed))
    clips = len(data.clips) if data.clips else None
    case = Case(size=size, config=config, sharding=sharding, ranks=ranks, ranks_on_node=on_node or ranks, on_gpu=machine.gpu is not None,
                tokens=data.tokens, supervised=data.supervised, frames=data.frames, steps=None, clips=clips, features=data.features)
    return replace(case, steps=steps_of(case, data))


def steps_of(case: Case, data: Data) -> int | None:
    """Optimizer steps of the run; None without data, unless `max_steps` says."""
    from vlmphys.batches import ClipOrder
    config = case.config
    if data.clips is None:
        return config.max_steps if config.max_steps > 0 else None
    return ClipOrder(data.clips, case.global_batch, config.seed).total_steps(config.num_train_epochs, config.max_steps)


def describe_steps(config: TrainConfig, ranks: int) -> str:
    """The global batch of a run on `ranks` ranks, and its steps where its data are packed: what is known without the model.

    Raises ValueError for fewer ranks than 1, and where the data folder is there and cannot be read, or holds no train clip.
    """
    from vlmphys.batches import ClipOrder
    from vlmphys.shards import open_packed
    if ranks < 1:
        raise ValueError(f"--dry-run is {ranks}: at least 1 rank is needed")
    micro_batch, accumulation = config.per_device_train_batch_size, config.gradient_accumulation_steps
    clips = micro_batch * accumulation * ranks
    batch = (f"global batch: {clips} clips = {micro_batch} (per_device_train_batch_size) x {accumulation} (gradient_accumulation_steps) x "
             f"{ranks} rank(s)")
    if not Path(config.data).is_dir():
        known = f"{config.max_steps} (max_steps)" if config.max_steps > 0 else f"not known, there is no folder {config.data!r}"
        return f"{batch}\nsteps: {known}"
    order = ClipOrder(open_packed(config.data).train_clips(), clips, config.seed)
    steps = order.total_steps(config.num_train_epochs, config.max_steps)
    return f"{batch}\nsteps: {steps}, {order.steps_per_epoch} an epoch of {len(order.clip_ids)} train clips"


def estimate(case: Case) -> Estimate:
    """All bytes of a case."""
    disk, elsewhere = memory.disk_parts(case), {}
    for folder, parts in memory.swapped_parts(case).items():
        if folder is None or same_disk(folder, case.config.out):
            disk |= parts
        else:
            elsewhere[folder] = parts
    return Estimate(case, memory.device_phases(case) if case.on_gpu else {}, memory.host_phases(case), disk, elsewhere)


def options(case: Case, machine: Machine, shardings: list[Sharding]) -> list[Estimate]:
    """For each JSON, and for FSDP where there are several ranks, the largest micro-batch that fits with the same global batch, or
    micro-batch 1 where none does; best first.

    Best is what moves least to host memory and disk, then the larger micro-batch, then the lower ZeRO stage, FSDP last.
    """
    found = []
    for sharding in (*shardings, *([Sharding("fsdp", fsdp=True)] if case.ranks > 1 else [])):
        engine = {"engine": "fsdp", "deepspeed": None} if sharding.fsdp else {"engine": "deepspeed", "deepspeed": sharding.name}
        found.append(largest_micro_batch(replace(case, sharding=sharding, config=replace(case.config, **engine)), machine))

    def rank(one: Estimate) -> tuple[int, ...]:
        sharding = one.case.sharding
        return (len(one.shortages(machine)), PLACES.index(sharding.optimizer_on), PLACES.index(sharding.parameters_on),
                -one.case.config.per_device_train_batch_size, sharding.fsdp, sharding.stage)
    return sorted(found, key=rank)


def largest_micro_batch(case: Case, machine: Machine) -> Estimate:
    """The estimate with the largest micro-batch that fits; clips of a rank and step stay what they are. Micro-batch 1 where none fits."""
    of_rank = case.config.per_device_train_batch_size * case.config.gradient_accumulation_steps
    for micro_batch in (n for n in range(of_rank, 0, -1) if of_rank % n == 0):
        config = replace(case.config, per_device_train_batch_size=micro_batch, gradient_accumulation_steps=of_rank // micro_batch)
        tried = estimate(replace(case, config=config))
        if not tried.shortages(machine):
            break
    return tried


def changes_of(case: Case) -> list[dict[str, Any]]:
    """What is tried where a run does not fit, each with all before it: what costs time first, then what trains less, then 4 bits."""
    own = case.config
    ranks = [{"lora_r": rank} for rank in SMALLER_RANKS if rank < own.lora_r]
    changes = [{}, {"gradient_checkpointing": True}, {"bf16": True}, *([{"tune": "lora"}] if own.tune == "full" else []), *ranks]
    if case.on_gpu and own.tune != "qlora":
        changes += [{"tune": "qlora", "lora_r": own.lora_r}, *ranks]
    return changes


def changed_until_it_fits(case: Case, machine: Machine, shardings: list[Sharding]) -> tuple[Estimate, bool]:
    """The first of `changes_of` with which some micro-batch fits, with the run's own engine and JSON or else with another, and True; else
    the least demanding one, and False."""
    changes = changes_of(case)
    if any("on the disk" in text for text in estimate(case).shortages(machine)):
        changes.insert(0, {"save_total_limit": 1})
    tried = []
    for change in changes:
        config = replace(case.config, **change)
        case = replace(case, config=config, size=tuned_size(case.size, config))
        tried += [largest_micro_batch(case, machine)]
        if tried[-1].shortages(machine):
            tried += options(case, machine, shardings)
        fitting = [one for one in tried if not one.shortages(machine)]
        if fitting:
            return fitting[0], True
    return min(tried, key=lambda one: (len(one.shortages(machine)), memory.peak(one.device)[1], memory.peak(one.host)[1])), False


def as_settings(old: TrainConfig, new: TrainConfig) -> str:
    """What differs, as `--set` takes it."""
    def text(value: Any) -> str:
        return str(value).lower() if isinstance(value, bool) else "" if value is None else str(value)
    changed = [name for name in FIELDS if getattr(old, name) != getattr(new, name)]
    return " ".join(f"{name}={text(getattr(new, name))}" for name in changed)


def make_plan(config: TrainConfig, machine: Machine, data_folder: str | None = None, run: str | None = None,
              only_batch: bool = False) -> dict[str, Any]:
    """Everything that `vlmphys plan` says, as plain values: sizes in bytes, undefined figures null with a reason.

    `data_folder`: packed data, else that of the config where it exists. `run`: an earlier run, for the time. `only_batch`: where the run
    does not fit, only another micro-batch of the same global batch is looked for. ValueError for bad input.
    """
    from vlmphys.model import load_config
    hf = load_config(config.model)
    size = model_size(config, hf)
    folder = data_folder or (config.data if Path(config.data).is_dir() else None)
    data = read_data(folder, config, size) if folder else assumed_data(config, size, hf)
    case = case_of(config, size, data, machine)
    shardings, refused = shipped_shardings(config)
    given = estimate(case)
    plan = {
        "model": config.model, "machine": asdict(machine), "data": data.described,
        "parameters": {"groups": size.parameters, "trained": trained_by_group(size, config), "trained_total": size.trained,
                       "total": case.total, "image_tower": size.image_tower, "published_total": size.published},
        "steps": case.steps, "steps_reason": None if case.steps else "nothing is packed: give --data, or max_steps in the config",
        "global_batch": case.global_batch, "time": {**time_of(case, data, run), "assumed": assumed_time(case, data, machine, hf)},
        "as_given": as_values(given, machine, config), "fits": not given.shortages(machine),
        "options": [as_values(one, machine, config) for one in options(case, machine, shardings)], "refused_files": refused}
    if plan["fits"]:
        best, fits = given, True
    elif only_batch:
        best = largest_micro_batch(case, machine)
        fits = not best.shortages(machine)
    else:
        best, fits = changed_until_it_fits(case, machine, shardings)
    return {**plan, "fitting" if fits else "least": as_values(best, machine, config), "least" if fits else "fitting": None}


def as_values(one: Estimate, machine: Machine, given: TrainConfig) -> dict[str, Any]:
    """An estimate as plain values; `set`: what it changes of the given config."""
    config = one.case.config
    return {"sharding": one.case.sharding.name, "per_device_train_batch_size": config.per_device_train_batch_size,
            "gradient_accumulation_steps": config.gradient_accumulation_steps, "ranks": one.case.ranks, "set": as_settings(given, config),
            "gpu": one.device, "gpu_peak": memory.peak(one.device)[1] if one.device else None,
            "gpu_phase": memory.peak(one.device)[0] or None, "host": one.host, "host_peak": memory.peak(one.host)[1],
            "host_phase": memory.peak(one.host)[0], "disk": one.disk, "disk_total": sum(one.disk.values()),
            "disk_elsewhere": one.elsewhere,
            "shortages": one.shortages(machine)}


def check_fits(config: TrainConfig, features: bool | None = None) -> None:
    """Refuse a run that cannot fit this machine: ValueError with the numbers and the cure. `force: true` in the config overrides.
    `features`: whether it takes features, where that is known.

    Every rank is to call it before it connects: until then no rank has loaded anything, so all of them find the same memory free. How many
    ranks there are is what the launcher's environment says.
    """
    if config.force:
        return
    ranks, local = int(os.environ.get("WORLD_SIZE", 1)), os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE")
    on_node = int(local or ranks)
    size = model_size(config)
    data = read_data(config.data, config, size, features)
    machine = machine_of(config, of_rank=int(os.environ.get("LOCAL_RANK", 0)))
    # What the ranks' libraries take already, and what an earlier part of this run left on disk, are part of the estimate.
    held = on_node * resident_bytes()
    machine = replace(machine, host=machine.host + held, disk=machine.disk + folder_bytes(Path(config.out)))
    case = case_of(config, size, data, machine, ranks, on_node)
    shortages = estimate(case).shortages(machine, sure=True)
    if not shortages:
        return
    best, fits = changed_until_it_fits(case, machine, shipped_shardings(config)[0])
    cure = f"this fits: --set {as_settings(config, best.case.config)}" if fits else (
        f"no change of its settings helps; the least is --set {as_settings(config, best.case.config)}, and even then "
        f"{'; '.join(best.shortages(machine))}")
    raise ValueError(f"this run does not fit this machine: {'; '.join(shortages)}; {cure}; to start it all the same: --set force=true")


def resident_bytes() -> int:
    """Host memory that this process holds now."""
    import psutil
    return psutil.Process().memory_info().rss


def folder_bytes(folder: Path) -> int:
    """Bytes of the files below a folder; 0 where there is none."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
