"""Predicting a side of a packed data set: checks first, then batches, each clip's row written as soon as it is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from vlmphys.calibration import read_calibration
from vlmphys.dialogue import verdict_continuations
from vlmphys.features import take_features
from vlmphys.inference import Judged, judge_batch
from vlmphys.model import ModelFacts, load_model, load_tokenizer, read_facts, resolve_source
from vlmphys.predictions import UNCALIBRATED, Calibration, Explain, Grounding, Identity, Prediction, PredictionWriter
from vlmphys.prompts import reason_of
from vlmphys.records import Split, Variant
from vlmphys.runs import Run, folder_fingerprint, load_run_model, open_run, tower_of
from vlmphys.shards import ClipRow, DialogueRow, Packed, open_packed

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
CACHE_BYTES = 4 << 30
MOST_CLIPS_A_BATCH = 32


@dataclass(frozen=True)
class PredictOptions:
    """What to predict. Either `run`, or `model` with `variant`, is given; sizes count clips and tokens."""

    data: Path
    out: Path
    run: Path | None = None
    model: str | None = None
    variant: Variant | None = None
    split: Split = Split.TEST
    explain: Explain = Explain.ALL
    batch_size: int | None = None
    max_clips: int | None = None
    max_new_tokens: int = 128
    dtype: str = "auto"
    device: str = "auto"
    calibrated: bool = True         # with the run's calibration.json, where it has one
    features: str = "auto"          # in place of pixels, see features.take_features


@dataclass(frozen=True)
class Source:
    """The model behind a prediction: where its facts and tokenizer are read, and how rows name it."""

    facts_from: str
    label: str
    variant: Variant
    run: Run | None
    calibration: Calibration = UNCALIBRATED


def predict(options: PredictOptions, console: Console) -> int:
    """Predict every clip of the side that has no row yet; the number of clips predicted now.

    Raises ValueError, before anything is written, where run, model, data and what stands in `out` do not fit together.
    """
    packed = open_packed(options.data)
    source = find_source(options)
    tokenizer = load_tokenizer(source.facts_from)
    facts = read_facts(source.facts_from, tokenizer)
    check_data(packed, facts, source.variant, options.data)
    side = packed.clip_ids(options.split)
    clip_ids = spread(side, options.max_clips)
    if not clip_ids:
        raise ValueError(f"{options.data} holds no packed clip on the side {options.split.value!r}: "
                         "choose another --split, or pack those clips")
    device, dtype = device_and_dtype(options)
    packed, video_note = take_features(packed, options.features, tower_of(source.run) if source.run else source.facts_from,
                                       facts.image_mean, facts.image_std)
    packed.check_bytes()
    grounding = Grounding.NONE if source.variant is Variant.NO_PHYSICS else Grounding.PRIOR
    identity = Identity(source.label, source.variant.value, grounding.value, packed.fingerprint)
    with PredictionWriter(options.out, identity, options.explain, side, source.calibration) as writer:
        todo = [clip_id for clip_id in clip_ids if clip_id not in writer.done]
        console.print(f"{source.label}, {source.variant.value}: {len(clip_ids)} clips of {options.split.value}, "
                      f"{len(clip_ids) - len(todo)} predicted before", highlight=False)
        if source.calibration != UNCALIBRATED:
            console.print(f"calibrated: temperature {source.calibration.temperature:.3g}, anomalous from score {source.calibration.threshold:.3g}",
                          highlight=False)
        if source.run is not None and source.run.data_fingerprint != packed.fingerprint:
            console.print("note: the run was trained on other packed data than this: clips of this side may have been in its training",
                          highlight=False)
        if video_note:
            console.print(video_note, highlight=False, markup=False, soft_wrap=True)
        if todo:
            tower = packed.features is None
            network = load_run_model(source.run, dtype, tower) if source.run else load_model(source.facts_from, dtype, tower=tower)
            network = network.to(device).eval()
            size = options.batch_size or fitting_batch_size(network.config.text_config, facts.max_positions, dtype)
            with _progress(console) as progress:
                task = progress.add_task("predicting", total=len(clip_ids), completed=len(clip_ids) - len(todo))
                for start in range(0, len(todo), size):
                    for row in predict_batch(network, facts, tokenizer, packed, todo[start:start + size], identity, options,
                                             source.calibration):
                        writer.append(row)
                        progress.advance(task)
    console.print(f"predictions: {options.out}", highlight=False, soft_wrap=True)
    return len(todo)


def predict_batch(network, facts: ModelFacts, tokenizer, packed: Packed, clip_ids: Sequence[str], identity: Identity,
                  options: PredictOptions, calibration: Calibration = UNCALIBRATED) -> list[Prediction]:
    """The rows of one batch of clips."""
    continuations = verdict_continuations(tokenizer)
    clips = [packed.frames.row(clip_id) for clip_id in clip_ids]
    dialogues = [packed.dialogues.row(clip_id, identity.variant) for clip_id in clip_ids]
    judged = judge_batch(network, facts, [row.input_ids[:row.verdict_span[0]] for row in dialogues],
                         packed.video(clip_ids), continuations, tokenizer.eos_token_id,
                         options.explain, options.max_new_tokens, calibration.threshold)
    return [prediction_of(clip, dialogue, result, continuations[result.verdict], tokenizer, identity, calibration)
            for clip, dialogue, result in zip(clips, dialogues, judged)]


def find_source(options: PredictOptions) -> Source:
    """The run, or the model as it is. Raises ValueError where both or neither are given, or a run is asked for another variant."""
    if (options.run is None) == (options.model is None):
        raise ValueError("give --run FOLDER for a tuned model, or --model MODEL --variant VARIANT for a model as it is, and not both")
    if options.run is None:
        if options.variant is None:
            raise ValueError(f"--model needs --variant: {', '.join(variant.value for variant in Variant)} are allowed")
        folder = Path(resolve_source(options.model))
        label = f"{Path(options.model).name}@{folder_fingerprint(folder)[:12]}" if folder.is_dir() else options.model
        return Source(options.model, label, options.variant, None)
    run = open_run(options.run)
    if options.variant not in (None, run.variant):
        raise ValueError(f"{options.run} was trained on {run.variant.value}: leave --variant out, or give another run")
    # An adapter folder has neither config nor tokenizer of its own that can be trusted to be whole: those of its base are used.
    whole = (run.model_folder / "config.json").is_file()
    fingerprint = folder_fingerprint(run.model_folder)
    calibration = read_calibration(run.folder, fingerprint) if options.calibrated else UNCALIBRATED
    label = f"{run.folder.absolute().name}@{fingerprint[:12]}"
    return Source(str(run.model_folder) if whole else run.config.model, label, run.variant, run, calibration)


def check_data(packed: Packed, facts: ModelFacts, variant: Variant, folder: Path) -> None:
    """Refuse data that was packed for another tokenizer, frame size or number of video tokens, or without this variant."""
    packed.check(facts.tokenizer_sha256, facts.image_size, facts.tokens_per_frame)
    if variant.value not in packed.dialogues.meta["variants"]:
        raise ValueError(f"{folder} holds no {variant.value} dialogues, only {', '.join(packed.dialogues.meta['variants'])}: "
                         "add them with data_prep/pack.py --only dialogues --variants")


def spread(clip_ids: Sequence[str], most: int | None) -> list[str]:
    """At most `most` clips, evenly spread over the sorted ids, so that all categories and states have their share."""
    clip_ids = sorted(clip_ids)
    if most is None or most >= len(clip_ids):
        return clip_ids
    if most < 1:
        raise ValueError(f"--max-clips {most}: at least 1 is needed")
    return [clip_ids[place * len(clip_ids) // most] for place in range(most)]


def device_and_dtype(options: PredictOptions) -> tuple[torch.device, torch.dtype]:
    """`auto`: the GPU in bf16 where there is one, else the CPU in fp32."""
    if (options.batch_size is not None and options.batch_size < 1) or options.max_new_tokens < 1:
        raise ValueError(f"--batch-size {options.batch_size} and --max-new-tokens {options.max_new_tokens} must be at least 1")
    name = ("cuda" if torch.cuda.is_available() else "cpu") if options.device == "auto" else options.device
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: this machine has no usable GPU; leave --device out")
    dtype = ("bf16" if name == "cuda" else "fp32") if options.dtype == "auto" else options.dtype
    return torch.device(name), DTYPES[dtype]


def fitting_batch_size(text_config, positions: int, dtype: torch.dtype) -> int:
    """Clips a batch whose key-value cache takes at most 4 GiB when every position is used, between 1 and 32."""
    heads = text_config.num_key_value_heads or text_config.num_attention_heads
    width = heads * (text_config.hidden_size // text_config.num_attention_heads)
    bytes_per_clip = 2 * text_config.num_hidden_layers * width * positions * dtype.itemsize
    return max(1, min(MOST_CLIPS_A_BATCH, CACHE_BYTES // bytes_per_clip))


def prediction_of(clip: ClipRow, dialogue: DialogueRow, judged: Judged, verdict_tokens: Sequence[int], tokenizer,
                  identity: Identity, calibration: Calibration = UNCALIBRATED) -> Prediction:
    """One row. The last answer is put together from what was given of it, the verdict, and what was generated."""
    start = dialogue.verdict_span[0]
    turn, ids = np.asarray(dialogue.turn[:start]), np.asarray(dialogue.input_ids[:start])
    last = int(np.asarray(dialogue.turn).max())
    answers = [tokenizer.decode(ids[turn == number].tolist(), skip_special_tokens=True).strip() for number in range(1, last)]
    text, explanation = last_answer(ids[turn == last].tolist(), verdict_tokens, judged.generated, tokenizer)
    return Prediction(
        clip_id=clip.clip_id, category=clip.category, state=clip.state, label=int(clip.label), score=judged.score,
        probability=calibration.probability(judged.score), verdict=judged.verdict.value,
        explanation=explanation, answers=[*answers, text], **asdict(identity))


def last_answer(given: Sequence[int], verdict_tokens: Sequence[int], generated: Sequence[int] | None, tokenizer) -> tuple[str, str | None]:
    """The text of the last answer, and the explanation in it: None where none was generated."""
    text = tokenizer.decode([*given, *verdict_tokens, *(generated or [])], skip_special_tokens=True).strip()
    if generated is None:
        return text, None
    # A model that does not keep to the form has no "Reason:"; what it wrote instead is shown as it is.
    return text, reason_of(text) or tokenizer.decode(generated, skip_special_tokens=True).strip()


def _progress(console: Console) -> Progress:
    return Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"),
                    TimeRemainingColumn(), console=console, disable=not console.is_terminal)
