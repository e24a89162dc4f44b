"""Training, top to bottom: `train` sets a run up, `train_step` is one optimizer step."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors import SafetensorError

from vlmphys import checkpoint, engine as engines, runs
from vlmphys.batches import Batch, ClipOrder, StepReader, load_step
from vlmphys.config import TrainConfig, config_sha256
from vlmphys.deepspeed_parts import offload_folder
from vlmphys.features import take_features
from vlmphys.files import only_writer, read_json
from vlmphys.finished import is_finished
from vlmphys.flops import gpu_peak_flops, model_flops
from vlmphys.loss import DialogueLoss, statistics_of, supervised_by_turn, turn_weights
from vlmphys.model import ModelFacts, load_model, read_facts
from vlmphys.out_of_memory import OTHER_SHARDING, enough_memory, smaller_batch, smaller_validation
from vlmphys.plan import check_fits
from vlmphys.records import MAX_TURNS, Split, Variant, stable_int
from vlmphys.shards import QUARANTINE, Packed, open_packed
from vlmphys.signals import StopRequests, Stopped
from vlmphys.timing import Gauges, StepClock
from vlmphys.tracking import StepFigures, Tracker, say
from vlmphys.tuning import Tuned, as_table, check_qlora, tune
from vlmphys.turn_gradients import turn_gradient_norms
from vlmphys.validation import Validator, check_val
from vlmphys.world import Agreed, World, connect, place

# Raised by all ranks at the same point, so that none of them waits for another.
ALIKE = (Agreed, Stopped, FloatingPointError)


@dataclass(frozen=True)
class Job:
    """All that stays the same from the first optimizer step to the last."""

    config: TrainConfig
    world: World
    engine: engines.PlainEngine
    packed: Packed
    facts: ModelFacts
    identity: dict[str, str]    # what a checkpoint must agree with, as fields of checkpoint.Marker
    order: ClipOrder
    total_steps: int
    reader: StepReader
    clock: StepClock


def train(config: TrainConfig, resume: str = "auto") -> Path:
    """Train as `config` says and return the run folder. `resume`: `auto` goes on from the newest complete checkpoint, `never` refuses a
    used folder.

    Raises ValueError for settings, data or folders that do not fit, before anything is written; FloatingPointError where a loss is not
    finite, before the update; Stopped after the checkpoint that SIGTERM or SIGINT asked for.
    """
    check_qlora(config)
    facts = read_facts(config.model)
    packed, video_note = choose_video(config, open_packed(config.data), facts)
    ranks, is_first = place()
    console = Console(quiet=not is_first)
    global_batch = config.per_device_train_batch_size * config.gradient_accumulation_steps * ranks
    order = ClipOrder(check_data(config, packed, facts), global_batch, config.seed)
    check_val(config, packed)
    total_steps = order.total_steps(config.num_train_epochs, config.max_steps)
    data_facts = describe_data(config, packed, order, total_steps)
    runs.check_claim(config, data_facts, resume)
    if is_finished(config.out):
        say(console, f"{config.out} is finished: its model is {config.out}/model")
        return Path(config.out)
    # Now, since all ranks find the same memory free before they connect; told below.
    misfits = problems_of(check_fits, config, packed.features is not None)

    world = connect(config)
    with ExitStack() as held:
        # After an error on one rank alone it might wait for the others, who wait in a collective call, instead of letting this one end.
        held.push(lambda error, *_: world.leave() if error is None or issubclass(error, ALIKE) else None)
        world.agree(misfits)
        world.agree(claim(held, config, packed, data_facts, resume) if world.is_first else [])
        with enough_memory("loading the model", OTHER_SHARDING):
            tuned, engine = load_and_start(config, facts, world, console, tower=packed.features is None)
        held.callback(engine.close)
        reader = StepReader(lambda step: load_step(packed, order, step, world.rank, world.size, config.per_device_train_batch_size,
                                                   Variant(config.variant), facts.pad_token_id),
                            total_steps, config.dataloader_num_workers, world.device)
        held.callback(reader.close)
        identity = {"data_fingerprint": packed.fingerprint, "config_sha256": config_sha256(config),
                    "model_fingerprint": data_facts["model_fingerprint"]}
        job = Job(config, world, engine, packed, facts, identity, order, total_steps, reader, StepClock(world.device))

        # This also waits until every rank has its model: only then does the first one write to the folder.
        pids = [int(text) for text in world.gather_texts([str(os.getpid())])]
        world.agree(problems_of(runs.write_identity, config, data_facts, world.size, pids) if world.is_first else [])
        if world.is_first:
            held.callback(runs.forget_pids, config.out)
        for name in checkpoint.remove_incomplete(config.out) if world.is_first else ():
            say(console, f"removed checkpoints/{name}, which an interruption had left half-written")
        if video_note:
            say(console, video_note)
        done = run_steps(job, console)
        write_model(job, tuned, done, console)
        return Path(config.out)


def choose_video(config: TrainConfig, packed: Packed, facts: ModelFacts) -> tuple[Packed, str]:
    """The data as the model gets them, with features or pixels, and what is to be told of it, or "".

    A run that began with pixels goes on with pixels, whatever was made since: `auto` is decided once. ValueError as `take_features`.
    """
    out = Path(config.out)
    begun = (out / "config.yaml").is_file() and (out / "data.json").is_file()
    if config.features == "auto" and begun and read_json(out / "data.json", "give a new folder with --out").get("features") is None:
        return packed, ""
    return take_features(packed, config.features, config.model, facts.image_mean, facts.image_std, all_sets=True)


def problems_of(check: Callable[..., None], *arguments: Any) -> list[str]:
    """What a check complains of on this rank alone, for `World.agree` to tell to the others; none where it passes."""
    try:
        check(*arguments)
    except (ValueError, OSError) as error:
        return [str(error)]
    return []


def claim(held: ExitStack, config: TrainConfig, packed: Packed, data_facts: dict[str, Any], resume: str) -> list[str]:
    """Check the data's bytes and hold the run folder, until `held` closes, against a second training. Returns what forbids the run. What a
    killed engine left on the disk is removed.

    For the first rank; the others must learn of a problem, or they would wait for it forever.
    """
    try:
        packed.check_bytes()
        held.enter_context(only_writer(Path(config.out), "training"))
        runs.check_claim(config, data_facts, resume)    # again: another process may have used the folder until it could be held
    except (ValueError, OSError) as error:
        return [str(error)]
    shutil.rmtree(offload_folder(config), ignore_errors=True)
    return [f"{config.out} was finished by another process just now"] if is_finished(config.out) else []


def load_and_start(config: TrainConfig, facts: ModelFacts, world: World, console: Console,
                   tower: bool) -> tuple[Tuned, engines.PlainEngine]:
    """The network with what is trained of it, and the engine around it."""
    network = load_model(config.model, engines.loading_dtype(config), world.device if config.tune == "qlora" else None, tower)
    tuned = tune(network, config.tune, config.tune_o_proj, config.lora_r, config.lora_alpha, config.lora_dropout, config.seed, facts.source)
    trained = tuned.trained()   # as counted just now: what changes it later is noticed by check_gradients
    console.print(as_table(tuned.groups))
    prepare_modes(network, config.gradient_checkpointing)
    return tuned, engines.start(world, DialogueLoss(network, facts.image_mean, facts.image_std), trained, config)


def run_steps(job: Job, console: Console) -> int:
    """Every optimizer step that is not done yet, with validations and checkpoints. Returns the number of steps that are done at the end,
    which has a checkpoint: until the model stands, nothing else holds them. Raises Stopped where a signal asked to leave."""
    config, world = job.config, job.world
    first_step, window = resume_from_newest(job, console)
    done = first_step
    unread = job.packed.unread(Split.TRAIN)
    lost = f" ({len(unread)} more could not be read: {job.packed.frames.folder}/{QUARANTINE})" if unread else ""
    say(console, f"{len(job.order.clip_ids)} clips{lost}, {job.order.global_batch} a step, {done} of {job.total_steps} steps done, "
                 f"into {config.out}, engine {config.engine} on {world.size} rank(s), {world.device}, {'bf16' if config.bf16 else 'fp32'}")
    validator = Validator(config, job.packed, job.facts, world, first_step, job.total_steps, job.order.steps_per_epoch)
    with ExitStack() as held:
        tracker = None
        if world.is_first:
            tracker = Tracker(config, console, gauges_of(job), first_step, job.total_steps, job.order.steps_per_epoch, window)
            held.callback(tracker.close)
        stop = held.enter_context(StopRequests())
        while done < job.total_steps and not validator.stopped:
            with enough_memory(f"optimizer step {done + 1}", smaller_batch(config)):
                figures = train_step(job, done, is_first=done == first_step)
            done += 1
            if tracker:
                tracker.add(done, figures)
            if validator.due(done):
                with enough_memory(f"the validation after step {done}", smaller_validation(config)):
                    validator.run(job.engine, done, tracker)
            if validator.stopped and done < job.total_steps:
                say(console, validator.why_stopped(done))
                if tracker:
                    tracker.finish(done, figures)
            is_last = validator.stopped or done == job.total_steps
            stopping = world.any(stop.requested)
            due = config.save_steps and done % config.save_steps == 0 or validator.keeps(done)
            if due or stopping or is_last:
                save_checkpoint(job, done, tracker, validator.spare, is_last, is_last and not stopping, console)
            if stopping:
                raise Stopped(f"after step {done} of {job.total_steps}, which is saved in {config.out}; the same command goes on from "
                              "there", stop.number)
    if validator.restore_best(job.engine, done, job.identity) != done:
        say(console, f"the model is that of step {validator.best_step}, the best validation (load_best_model_at_end)")
    return done


def write_model(job: Job, tuned: Tuned, done: int, console: Console) -> None:
    """Write the run's model, which ends the run. The checkpoint of its last step, `done`, has served its purpose then and goes."""
    config, world = job.config, job.world
    weights = job.engine.model_weights(set(tuned.trained()) if tuned.adapter else None)     # of an adapter that alone
    problems = []
    if world.is_first:
        try:
            say(console, f"model: {runs.write_model(config, tuned, weights)}")
        except ValueError as error:
            problems = [str(error)]
        except (OSError, SafetensorError) as error:
            problems = [f"the model could not be written to {config.out} ({error}): free some disk space there and start the same command "
                        "again, which goes on from the newest checkpoint"]
    world.agree(problems)
    if world.is_first:
        checkpoint.remove(config.out, done)


def resume_from_newest(job: Job, console: Console) -> tuple[int, list[float]]:
    """Put the newest complete checkpoint into the engine. Returns the steps that are done and the sums since the last logged one.

    The first rank chooses: on a shared disk another may not see yet what a run that ended just now has written.
    """
    run, world = Path(job.config.out), job.world
    newest = world.gather_texts([str(step) for step in checkpoint.complete(run)[-1:]] if world.is_first else [])
    if not newest:
        return 0, []
    marker = checkpoint.restore(job.engine, run, int(newest[0]), job.identity)
    say(console, f"resumed from {checkpoint.folder_of(run, marker.step)}{checkpoint.saved_elsewhere(marker, job.config, world.size)}")
    return marker.step, marker.window


def save_checkpoint(job: Job, done: int, tracker: Tracker | None, spare: set[int], is_last: bool, may_fail: bool, console: Console) -> None:
    """Write the checkpoint of `done` optimizer steps; every rank must call it. The last one takes no older one's place, since it goes when
    the model stands. With `may_fail` a disk that is too full for it is told and no more: the model, which is smaller, comes next."""
    marker = checkpoint.Marker(done, job.world.size, job.config.engine, window=tracker.window.tolist() if tracker else [], **job.identity)
    try:
        checkpoint.save(job.engine, Path(job.config.out), marker, job.config.save_total_limit + is_last, spare)
    except Agreed as problem:
        if not may_fail:
            raise
        say(console, f"{problem}. The model is written all the same")


def train_step(job: Job, step: int, is_first: bool) -> StepFigures:
    """Optimizer step `step`, counted from 0; `is_first`: this process has made none before."""
    config, world, engine, clock = job.config, job.world, job.engine, job.clock
    clock.start()
    batches = job.reader.batches_of(step)
    clock.lap("data")
    # The whole step's supervised tokens, over all ranks and micro-batches, before the first forward pass: what makes the loss exact.
    weights_K = turn_weights(world.sum(supervised_by_turn(batches)), config.loss_mode, config.turn_weights).float().to(world.device)
    clock.lap("step")       # several ranks wait here for the one that reads its clips last
    turn_norms = measure_turns(job, step, batches, weights_K)
    clock.lap("measure")
    sums = []
    for index, batch in enumerate(batches):
        here = batch.to(world.device)
        clock.lap("data")
        seed_dropout(config, step, world.rank, index)
        loss_K, verdict, _ = engine.forward(here, last=index == len(batches) - 1)
        clock.lap("forward")
        engine.backward((loss_K * weights_K).sum())
        sums.append(statistics_of(batch, loss_K, verdict))
        clock.lap("backward")
    if is_first:
        check_gradients(engine, config)
    # The only time in a step, beside the gradient norm and what ranks tell each other, that the host waits for the device.
    total = world.sum(torch.stack(sums).sum(0))
    if not torch.isfinite(total[:MAX_TURNS]).all():
        own = [clip_id for batch, part in zip(batches, sums) if not torch.isfinite(part).all() for clip_id in batch.clip_ids]
        raise FloatingPointError(f"the loss of step {step + 1} is not finite; the weights were not updated. Clips of the "
                                 f"micro-batches concerned: {', '.join(world.gather_texts(own))}")
    learning_rate = learning_rate_at(step, job.total_steps, config)
    grad_norm = engine.step(learning_rate)
    if not math.isfinite(grad_norm):
        raise FloatingPointError(f"the gradient norm of step {step + 1} is not finite; nothing was saved since the last checkpoint. Clips: "
                                 f"{', '.join(job.order.clips_of_step(step))}")
    clock.lap("step")
    return StepFigures(total, learning_rate, grad_norm, turn_norms)


def measure_turns(job: Job, step: int, batches: list[Batch], weights_K: torch.Tensor) -> list[float | None] | None:
    """The gradient norm that each turn causes alone, at every `turn_grad_norm_steps`-th step; else None. It changes nothing of the step."""
    config, world = job.config, job.world
    if not config.turn_grad_norm_steps or (step + 1) % config.turn_grad_norm_steps:
        return None
    return turn_gradient_norms(job.engine.module, list(job.engine.trained.values()), batches, weights_K, world,
                               config.bf16 and config.engine == "plain",
                               lambda micro_batch: seed_dropout(config, step, world.rank, micro_batch))


def check_gradients(engine: engines.PlainEngine, config: TrainConfig) -> None:
    """Refuse a run whose first backward pass reached a frozen weight, or missed a trained one: ValueError with the weight's name.

    With `plain` the gradients themselves are looked at. The other engines keep them elsewhere and empty `.grad` at once; there it is
    `requires_grad`, which autograd goes by, that must be that of the trained set.
    """
    for name, parameter in engine.module.network.named_parameters():
        reached = parameter.requires_grad or parameter.grad is not None
        missed = not parameter.requires_grad or (config.engine == "plain" and parameter.grad is None)
        if name not in engine.trained and reached:
            raise ValueError(f"tune: {name} is frozen, but the first backward pass reached it: refused, nothing was updated")
        if name in engine.trained and missed:
            raise ValueError(f"tune: {name} is to be trained, but the first backward pass gave it no gradient: refused, nothing was "
                             "updated")


def gauges_of(job: Job) -> Gauges:
    """Time, memory and utilisation for the rows of metrics.jsonl."""
    peak = gpu_peak_flops(job.config, job.world.device)
    flops = model_flops(job.engine.module.network.config, job.config, job.packed.frames.meta["frames"], job.packed.features is None)
    return Gauges(job.clock, job.world.device, flops, peak * job.world.size if peak else None)


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
    if config.tune != "full" and config.lora_dropout > 0:
        torch.manual_seed(stable_int("dropout", config.seed, step, rank, micro_batch) >> 1)


def prepare_modes(network, gradient_checkpointing: bool) -> None:
    """Training mode for the language model, evaluation mode for the frozen tower."""
    network.train()
    if network.model.video_tower is not None:
        network.model.video_tower.eval()
    if gradient_checkpointing:
        network.model.language_model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def check_data(config: TrainConfig, packed: Packed, facts: ModelFacts) -> list[str]:
    """The train clips. Raises ValueError where the packed data were made for another model, lack the variant, or hold no train clip, and
    where the config's `turn_weights` leave nothing of such a dialogue to train."""
    packed.check(facts.tokenizer_sha256, facts.image_size, facts.tokens_per_frame)
    clip_ids = packed.train_clips()
    first = packed.dialogues.row(clip_ids[0], config.variant)
    turn_weights(torch.tensor([float((first.turn == k + 1).sum()) for k in range(MAX_TURNS)]), config.loss_mode, config.turn_weights)
    return clip_ids


def describe_data(config: TrainConfig, packed: Packed, order: ClipOrder, total_steps: int) -> dict[str, Any]:
    """The content of data.json: what the run reads, by fingerprint, and how it goes through it."""
    return {"data": config.data, "fingerprint": packed.fingerprint, "frames": packed.frames.fingerprint,
            "dialogues": packed.dialogues.fingerprint, "features": packed.features.fingerprint if packed.features is not None else None,
            "split": packed.split.sha256, "protocol": packed.split.protocol, "model_fingerprint": runs.model_fingerprint(config.model),
            "categories": sorted({clip_id.split("/")[0] for clip_id in order.clip_ids}), "frame_settings": packed.frames.meta,
            "system": packed.dialogues.meta["system"], "wordings": packed.dialogues.meta.get("wordings"),
            "controls": packed.dialogues.meta["controls"],
            "train_clips": len(order.clip_ids), "global_batch": order.global_batch, "steps_per_epoch": order.steps_per_epoch,
            "total_steps": total_steps}
