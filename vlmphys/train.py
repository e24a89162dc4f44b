"""Training, top to bottom: `train` sets a run up, `train_step` is one optimizer step."""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from vlmphys import checkpoint, engine as engines, runs
from vlmphys.batches import ClipOrder, load_step
from vlmphys.config import TrainConfig, config_sha256
from vlmphys.files import only_writer
from vlmphys.loss import STATISTICS, DialogueLoss, statistics_of, supervised_by_turn, turn_weights
from vlmphys.model import ModelFacts, load_model, read_facts
from vlmphys.records import MAX_TURNS, Split, Variant, stable_int
from vlmphys.shards import Packed, open_packed
from vlmphys.tracking import Tracker, say
from vlmphys.tuning import as_table, tune


@dataclass(frozen=True)
class Job:
    """All that stays the same from the first optimizer step to the last."""

    config: TrainConfig
    world: engines.World
    engine: engines.PlainEngine
    packed: Packed
    facts: ModelFacts
    order: ClipOrder
    total_steps: int


def train(config: TrainConfig, resume: str = "auto") -> Path:
    """Train as `config` says and return the run folder. `resume`: `auto` goes on from the newest complete checkpoint, `never` refuses a
    used folder.

    Raises ValueError for settings, data or folders that do not fit, before anything is written, and FloatingPointError where a loss
    is not finite, before the update.
    """
    facts = read_facts(config.model)
    packed = open_packed(config.data)
    ranks, is_first = engines.place()
    console = Console(quiet=not is_first)
    global_batch = config.per_device_train_batch_size * config.gradient_accumulation_steps * ranks
    order = ClipOrder(check_data(config, packed, facts), global_batch, config.seed)
    total_steps = order.total_steps(config.num_train_epochs, config.max_steps)
    data_facts = describe_data(config, packed, order, total_steps)
    runs.check_claim(config, data_facts, resume)
    if runs.is_finished(config.out):
        say(console, f"{config.out} is finished: its model is {config.out}/model")
        return Path(config.out)

    world = engines.connect(config)
    with ExitStack() as held:
        held.callback(world.leave)
        world.agree(claim(held, config, packed, data_facts, resume) if world.is_first else [])
        network = load_model(config.model)
        tuned = tune(network, config.tune, config.tune_o_proj, config.lora_r, config.lora_alpha, config.lora_dropout, config.seed,
                     facts.source)
        console.print(as_table(tuned.groups))
        prepare_modes(network, config.gradient_checkpointing)
        engine = engines.start(world, DialogueLoss(network, facts.image_mean, facts.image_std), tuned.trained(), config)
        job = Job(config, world, engine, packed, facts, order, total_steps)

        world.barrier()     # every rank has its model before the first one writes to the folder
        if world.is_first:
            runs.write_identity(config, data_facts, world.size)
            checkpoint.remove_incomplete(config.out)
        world.barrier()
        run_steps(job, console)
        weights = engine.model_weights()
        if world.is_first:
            folder = runs.write_model(config, tuned, weights)
            say(console, f"model: {folder}")
        world.barrier()
        return Path(config.out)


def claim(held: ExitStack, config: TrainConfig, packed: Packed, data_facts: dict[str, Any], resume: str) -> list[str]:
    """Check the data's bytes and hold the run folder, until `held` closes, against a second training. Returns what forbids the run.

    For the first rank; the others must learn of a problem, or they would wait for it forever.
    """
    try:
        packed.check_bytes()
        held.enter_context(only_writer(Path(config.out), "training"))
        runs.check_claim(config, data_facts, resume)    # again: another process may have used the folder until it could be held
    except ValueError as error:
        return [str(error)]
    return [f"{config.out} was finished by another process just now"] if runs.is_finished(config.out) else []


def run_steps(job: Job, console: Console) -> None:
    """Every optimizer step that is not done yet, with its checkpoints."""
    config, found = job.config, runs.newest_checkpoint(job.config.out)
    first_step, window = 0, []
    if found:
        folder, marker = found
        checkpoint.load(job.engine, folder, marker)
        first_step, window = marker.step, marker.window
        say(console, f"resumed from {folder}")
    say(console, f"{len(job.order.clip_ids)} clips, {job.order.global_batch} a step, steps {first_step + 1} to {job.total_steps}, "
                  f"engine {config.engine} on {job.world.size} rank(s), {job.world.device}, {'bf16' if config.bf16 else 'fp32'}")
    tracker = None
    if job.world.is_first:
        tracker = Tracker(Path(config.out), console, first_step, job.total_steps, job.order.steps_per_epoch, config.logging_steps, window)
    try:
        for step in range(first_step, job.total_steps):
            sums, learning_rate, grad_norm = train_step(job, step)
            done = step + 1
            if tracker:
                tracker.add(done, sums, learning_rate, grad_norm)
            if config.save_steps and done % config.save_steps == 0 and done < job.total_steps:
                marker = checkpoint.Marker(done, job.world.size, config.engine, job.packed.fingerprint, config_sha256(config),
                                           tracker.window.tolist() if tracker else [])
                checkpoint.save(job.engine, Path(config.out), marker, config.save_total_limit)
    finally:
        if tracker:
            tracker.close()


def train_step(job: Job, step: int) -> tuple[torch.Tensor, float, float]:
    """Optimizer step `step`, counted from 0. Returns its sums over all ranks (`STATISTICS`), its learning rate, its gradient norm."""
    config, world, engine = job.config, job.world, job.engine
    batches = load_step(job.packed, job.order, step, world.rank, world.size, config.per_device_train_batch_size, Variant(config.variant),
                        job.facts.pad_token_id)
    # The whole step's supervised tokens, over all ranks and micro-batches, before the first forward pass: what makes the loss exact.
    weights_K = turn_weights(world.sum(supervised_by_turn(batches))).float().to(world.device)
    sums = torch.zeros(len(STATISTICS), dtype=torch.float64)
    not_finite = []
    for index, batch in enumerate(batches):
        seed_dropout(config, step, world.rank, index)
        loss_K, verdict = engine.forward(batch.to(world.device), last=index == len(batches) - 1)
        engine.backward((loss_K * weights_K).sum())
        of_batch = statistics_of(batch, loss_K, verdict).cpu()
        if not torch.isfinite(of_batch).all():
            not_finite += batch.clip_ids
        sums += of_batch
    sums = world.sum(sums)
    if not torch.isfinite(sums[:MAX_TURNS]).all():
        raise FloatingPointError(f"the loss of step {step + 1} is not finite; the weights were not updated. Clips of the "
                                 f"micro-batches concerned: {', '.join(world.gather_texts(not_finite))}")
    learning_rate = learning_rate_at(step, job.total_steps, config)
    grad_norm = engine.step(learning_rate)
    if not math.isfinite(grad_norm):
        raise FloatingPointError(f"the gradient norm of step {step + 1} is not finite; nothing was saved since the last checkpoint. Clips: "
                                 f"{', '.join(job.order.clips_of_step(step))}")
    return sums, learning_rate, grad_norm


def learning_rate_at(step: int, total_steps: int, config: TrainConfig) -> float:
    """The rate of optimizer step `step` (from 0): linear warm-up to the peak, then cosine or linear to 0, or constant."""
    warmup = math.ceil(config.warmup_ratio * total_steps)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    done = (step - warmup) / max(1, total_steps - warmup)
    shape = {"cosine": 0.5 * (1 + math.cos(math.pi * done)), "linear": 1 - done, "constant": 1.0}
    return config.learning_rate * shape[config.lr_scheduler_type]


def seed_dropout(config: TrainConfig, step: int, rank: int, micro_batch: int) -> None:
    """LoRA's dropout masks as a function of the step, so that a resumed run draws those of an uninterrupted one."""
    if config.tune == "lora" and config.lora_dropout > 0:
        torch.manual_seed(stable_int("dropout", config.seed, step, rank, micro_batch) >> 1)


def prepare_modes(network, gradient_checkpointing: bool) -> None:
    """Training mode for the language model, evaluation mode for the frozen tower."""
    network.train()
    network.model.video_tower.eval()
    if gradient_checkpointing:
        network.model.language_model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def check_data(config: TrainConfig, packed: Packed, facts: ModelFacts) -> list[str]:
    """The train clips. Raises ValueError where the packed data were made for another model, lack the variant, or hold no train clip."""
    packed.check(facts.tokenizer_sha256, facts.image_size, facts.tokens_per_frame)
    clip_ids = packed.clip_ids(Split.TRAIN)
    if not clip_ids:
        raise ValueError(f"{config.data} holds no clip of the train split: check its split.json and frames/quarantine.jsonl")
    packed.dialogues.row(clip_ids[0], config.variant)
    return clip_ids


def describe_data(config: TrainConfig, packed: Packed, order: ClipOrder, total_steps: int) -> dict[str, Any]:
    """The content of data.json: what the run reads, by fingerprint, and how it goes through it."""
    return {"data": config.data, "fingerprint": packed.fingerprint, "frames": packed.frames.fingerprint,
            "dialogues": packed.dialogues.fingerprint,
            "split": packed.split.sha256, "protocol": packed.split.protocol, "model_fingerprint": runs.model_fingerprint(config.model),
            "train_clips": len(order.clip_ids), "global_batch": order.global_batch, "steps_per_epoch": order.steps_per_epoch,
            "total_steps": total_steps}
