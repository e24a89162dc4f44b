"""Predicting a side of a packed data set: checks first, then batches, each clip's row written as soon as it is known."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from vlmphys.asking import Asker, Asking, askings_of, files_of
from vlmphys.calibration import read_calibration
from vlmphys.dialogue import verdict_continuations
from vlmphys.features import take_features
from vlmphys.heap import keep_freed_memory
from vlmphys.inference import Decoding, Judged, features_of, judge_askings
from vlmphys.model import ModelFacts, load_model, load_tokenizer, read_facts, resolve_source
from vlmphys.out_of_memory import halving
from vlmphys.prediction_files import RowRules, SharedFile, share
from vlmphys.predictions import UNCALIBRATED, Calibration, Explain, Grounding, Identity, Prediction
from vlmphys.prompts import reason_of
from vlmphys.records import Split, Variant, counted
from vlmphys.runs import Run, folder_fingerprint, load_run_model, open_run, tower_of
from vlmphys.shards import ClipRow, DialogueRow, Packed, open_packed

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "4bit": torch.bfloat16}
FOUR_BIT = "4bit"
DEVICES = ("auto", "cpu", "cuda")
CACHE_BYTES = 4 << 30
MOST_CLIPS_A_BATCH = 32


@dataclass(frozen=True)
class PredictOptions:
    """What to predict. Either `run`, or `model` with a `variant` or several, is given; sizes count clips and tokens."""

    data: Path
    out: Path
    run: Path | None = None
    model: str | None = None
    variant: tuple[Variant, ...] = ()
    ground: tuple[Grounding, ...] = (Grounding.PRIOR,)
    split: Split = Split.TEST
    explain: Explain = Explain.ALL
    describe: bool = False
    batch_size: int | None = None
    max_clips: int | None = None
    max_new_tokens: int = 128
    dtype: str = "auto"
    device: str = "auto"
    calibrated: bool = True         # with the run's calibration.json, where it has one
    features: str = "auto"          # in place of pixels, see features.take_features
    rank: int = 0                   # of how many processes that share the clips, and on which GPU of its machine
    ranks: int = 1
    local_rank: int = 0


@dataclass(frozen=True)
class Source:
    """The model behind a prediction: where its facts and tokenizer are read, and how rows name it."""

    facts_from: str
    label: str
    variants: tuple[Variant, ...]
    run: Run | None
    calibration: Calibration = UNCALIBRATED

    @property
    def variant(self) -> Variant:
        """The run's, or the first of those asked for."""
        return self.variants[0]


@dataclass(frozen=True)
class Batch:
    """Clips as they were read, and their dialogues in each way that they are asked: `dialogues[way][clip]`."""

    clips: list[ClipRow]
    dialogues: list[list[DialogueRow]]
    video: np.ndarray               # as `Packed.video` gives it

    def part(self, start: int, stop: int) -> Batch:
        """Some of the clips."""
        return Batch(self.clips[start:stop], [rows[start:stop] for rows in self.dialogues], self.video[start:stop])


@dataclass(frozen=True)
class Predictor:
    """All that a batch of clips needs to become rows."""

    network: torch.nn.Module
    facts: ModelFacts
    tokenizer: object
    packed: Packed
    asker: Asker
    decoding: Decoding
    calibration: Calibration

    def read(self, clip_ids: Sequence[str], askings: Sequence[Asking]) -> Batch:
        """Clips and dialogues from the shards; pixels or features are copied, so that they are in memory when the model wants them."""
        clips = [self.packed.frames.row(clip_id) for clip_id in clip_ids]
        dialogues = [[self.packed.dialogues.row(clip_id, asking.dialogue) for clip_id in clip_ids] for asking in askings]
        return Batch(clips, dialogues, self.packed.video(clip_ids))

    def rows(self, batch: Batch, askings: Sequence[Asking], identities: Sequence[Identity]) -> list[list[Prediction]]:
        """The rows of a batch, for each way of asking."""
        asked = [[self.asker.asked(row, asking.grounding, clip.category) for row, clip in zip(dialogues, batch.clips)]
                 for asking, dialogues in zip(askings, batch.dialogues)]
        with torch.inference_mode():
            features = features_of(self.network, self.facts, batch.video)
        judged = judge_askings(self.network, self.facts, features, asked, self.decoding)
        return [[prediction_of(clip, dialogue, result, self.decoding.continuations[result.verdict], self.tokenizer, identity, self.calibration)
                 for clip, dialogue, result in zip(batch.clips, dialogues, results)]
                for dialogues, results, identity in zip(batch.dialogues, judged, identities)]


def predict(options: PredictOptions, console: Console, open_data: Callable[[Path], Packed] = open_packed) -> int:
    """Predict every clip of this rank's share that has no row yet; the number of clips predicted now. `open_data` gives the clips of
    `options.data`, for a bench as it wants them seen.

    Raises ValueError, before anything is written, where run, model, data and what stands in `out` do not fit together.
    """
    packed = open_data(options.data)
    source = find_source(options)
    tokenizer = load_tokenizer(source.facts_from)
    facts = read_facts(source.facts_from, tokenizer)
    if options.describe and options.explain is Explain.NONE:
        raise ValueError("--describe asks after the whole answer to the verdict's question: it needs --explain all, or anomalous for those clips")
    askings = askings_of(source.variants, options.ground)
    for asking in askings:
        check_data(packed, facts, asking, options.data)
    side = packed.clip_ids(options.split)
    clip_ids = spread(side, options.max_clips)
    if not clip_ids:
        raise ValueError(f"{options.data} holds no packed clip on the side {options.split.value!r}: "
                         "choose another --split, or pack those clips")
    device, dtype = device_and_dtype(options)
    packed, video_note = take_features(packed, options.features, tower_of(source.run) if source.run else source.facts_from,
                                       facts.image_mean, facts.image_std)
    packed.check_bytes()
    identities = [Identity(source.label, asking.variant.value, asking.grounding.value, packed.fingerprint) for asking in askings]
    rules = [RowRules(identity, options.explain, frozenset(side), source.calibration, options.describe) for identity in identities]
    own = share(clip_ids, options.rank, options.ranks)
    paths = files_of(options.out, askings)
    with ExitStack() as stack:
        files = [stack.enter_context(SharedFile(path, rule, options.rank, options.ranks)) for path, rule in zip(paths, rules)]
        todo = {clip_id: missing for clip_id in own
                if (missing := tuple(way for way, file in enumerate(files) if clip_id not in file.done))}
        _announce(console, options, source, packed, askings, len(own), len(todo))
        if video_note:
            console.print(video_note, highlight=False, markup=False, soft_wrap=True)
        if todo:
            network = load_network(source, options, device, dtype, tower=packed.features is None)
            predictor = Predictor(network, facts, tokenizer, packed, Asker(tokenizer, options.describe), Decoding(
                verdict_continuations(tokenizer), tokenizer.eos_token_id, options.explain, options.max_new_tokens,
                source.calibration.threshold), source.calibration)
            size = options.batch_size or fitting_batch_size(network.config.text_config, facts.max_positions, dtype, len(askings))
            with _progress(console) as progress:
                task = progress.add_task("predicting", total=len(own), completed=len(own) - len(todo))
                for ways, rows in predicted(predictor, todo, askings, identities, size, console):
                    for way, row in zip(ways, rows):
                        files[way].append(row)
                    progress.advance(task)
    _say_where(console, files, len(clip_ids))
    return len(todo)


def predicted(predictor: Predictor, todo: dict[str, tuple[int, ...]], askings: Sequence[Asking], identities: Sequence[Identity], size: int,
              console: Console) -> Iterator[tuple[tuple[int, ...], list[Prediction]]]:
    """For each clip of `todo` the ways in which it is asked, as that says, and their rows. Batches hold `size` clips, or fewer from where
    the memory did not do; the next one is read while the model is busy."""
    batches = []
    for ways in dict.fromkeys(todo.values()):
        clip_ids = [clip_id for clip_id, missing in todo.items() if missing == ways]
        batches += [(ways, clip_ids[start:start + size]) for start in range(0, len(clip_ids), size)]
    pieces = halving(size, lambda smaller: console.print(f"the GPU's memory did not do: going on with --batch-size {smaller}", highlight=False))
    with ThreadPoolExecutor(1) as reader:
        def read(number: int):
            ways, clip_ids = batches[number]
            return reader.submit(predictor.read, clip_ids, [askings[way] for way in ways])
        coming = read(0)
        for number, (ways, clip_ids) in enumerate(batches):
            batch = coming.result()
            if number + 1 < len(batches):
                coming = read(number + 1)
            chosen, named = [askings[way] for way in ways], [identities[way] for way in ways]
            for rows_of_ways in pieces(len(clip_ids), lambda start, stop: predictor.rows(batch.part(start, stop), chosen, named)):
                for rows in zip(*rows_of_ways):
                    yield ways, list(rows)


def load_network(source: Source, options: PredictOptions, device: torch.device, dtype: torch.dtype, tower: bool = True):
    """The network on the device, in evaluation mode; without `tower` it takes features in place of pixels."""
    keep_freed_memory()
    four_bit_on = device if options.dtype == FOUR_BIT else None
    network = (load_run_model(source.run, dtype, four_bit_on, tower) if source.run
               else load_model(source.facts_from, dtype, four_bit_on, tower=tower))
    return (network if four_bit_on else network.to(device)).eval()


def find_source(options: PredictOptions) -> Source:
    """The run, or the model as it is. Raises ValueError where both or neither are given, or a run is asked for another variant."""
    if (options.run is None) == (options.model is None):
        raise ValueError("give --run FOLDER for a tuned model, or --model MODEL --variant VARIANT for a model as it is, and not both")
    if options.run is None:
        if not options.variant:
            raise ValueError(f"--model needs --variant: {', '.join(variant.value for variant in Variant)} are allowed")
        folder = Path(resolve_source(options.model))
        label = f"{Path(options.model).name}@{folder_fingerprint(folder)[:12]}" if folder.is_dir() else options.model
        return Source(options.model, label, options.variant, None)
    run = open_run(options.run)
    if set(options.variant) - {run.variant}:
        raise ValueError(f"{options.run} was trained on {run.variant.value}: leave --variant out, or give another run")
    # An adapter folder has neither config nor tokenizer of its own that can be trusted to be whole: those of its base are used.
    whole = (run.model_folder / "config.json").is_file()
    fingerprint = folder_fingerprint(run.model_folder)
    calibration = read_calibration(run.folder, fingerprint) if options.calibrated else UNCALIBRATED
    label = f"{run.folder.absolute().name}@{fingerprint[:12]}"
    return Source(str(run.model_folder) if whole else run.config.model, label, (run.variant,), run, calibration)


def check_data(packed: Packed, facts: ModelFacts, asking: Asking, folder: Path) -> None:
    """Refuse data that was packed for another tokenizer, frame size or number of video tokens, or without the dialogues of this asking."""
    packed.check(facts.tokenizer_sha256, facts.image_size, facts.tokens_per_frame)
    if asking.dialogue.value not in packed.dialogues.meta["variants"]:
        needed = ", which --ground none asks in" if asking.dialogue is not asking.variant else ""
        raise ValueError(f"{folder} holds no {asking.dialogue.value} dialogues{needed}, only {', '.join(packed.dialogues.meta['variants'])}: "
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
    for option, value, allowed in (("--device", options.device, DEVICES), ("--dtype", options.dtype, ("auto", *DTYPES))):
        if value not in allowed:
            raise ValueError(f"{option} {value}: {', '.join(allowed)} are allowed")
    name = ("cuda" if torch.cuda.is_available() else "cpu") if options.device == "auto" else options.device
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: this machine has no usable GPU; leave --device out")
    if options.dtype == FOUR_BIT and (name != "cuda" or find_spec("bitsandbytes") is None):
        raise ValueError("--dtype 4bit needs a CUDA GPU: use bf16 or fp32 here" if name != "cuda" else
                         "--dtype 4bit needs bitsandbytes: python -m pip install --editable '.[qlora]', or use bf16")
    dtype = ("bf16" if name == "cuda" else "fp32") if options.dtype == "auto" else options.dtype
    return torch.device(name, options.local_rank) if name == "cuda" and options.ranks > 1 else torch.device(name), DTYPES[dtype]


def fitting_batch_size(text_config, positions: int, dtype: torch.dtype, ways: int = 1) -> int:
    """Clips a batch whose key-value cache takes at most 4 GiB when every position is used, between 1 and 32. Where clips are asked in several
    `ways`, what these share is kept beside the cache of the one at work."""
    heads = text_config.num_key_value_heads or text_config.num_attention_heads
    width = heads * (text_config.hidden_size // text_config.num_attention_heads)
    bytes_per_clip = min(ways, 2) * 2 * text_config.num_hidden_layers * width * positions * dtype.itemsize
    return max(1, min(MOST_CLIPS_A_BATCH, CACHE_BYTES // bytes_per_clip))


def prediction_of(clip: ClipRow, dialogue: DialogueRow, judged: Judged, verdict_tokens: Sequence[int], tokenizer,
                  identity: Identity, calibration: Calibration = UNCALIBRATED) -> Prediction:
    """One row. The last answer is put together from what was given of it, the verdict, and what was generated."""
    if judged.written is None:
        start = dialogue.verdict_span[0]
        turn, ids = np.asarray(dialogue.turn[:start]), np.asarray(dialogue.input_ids[:start])
        before = [ids[turn == number].tolist() for number in range(1, int(np.asarray(dialogue.turn).max()) + 1)]
    else:
        before = judged.written
    answers = [tokenizer.decode(tokens, skip_special_tokens=True).strip() for tokens in before[:-1]]
    text, explanation = last_answer(before[-1], verdict_tokens, judged.generated, tokenizer)
    described = None if judged.description is None else tokenizer.decode(judged.description, skip_special_tokens=True).strip()
    return Prediction(
        clip_id=clip.clip_id, category=clip.category, state=clip.state, label=int(clip.label), score=judged.score,
        probability=calibration.probability(judged.score), verdict=judged.verdict.value,
        explanation=explanation, answers=[*answers, text], **asdict(identity), description=described)


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


def _announce(console: Console, options: PredictOptions, source: Source, packed: Packed, askings: Sequence[Asking], own: int, todo: int) -> None:
    """What is about to be predicted."""
    grounded = [f"{asking.variant.value}{'' if options.ground == (Grounding.PRIOR,) else f' ({asking.grounding.value})'}" for asking in askings]
    which = f" are rank {options.rank}'s of {options.ranks}" if options.ranks > 1 else ""
    console.print(f"{source.label}, {', '.join(grounded)}: {counted(own, 'clip')} of {options.split.value}{which}, "
                  f"{own - todo} predicted before", highlight=False, soft_wrap=True)
    if source.calibration != UNCALIBRATED:
        console.print(f"calibrated: temperature {source.calibration.temperature:.3g}, anomalous from score {source.calibration.threshold:.3g}",
                      highlight=False)
    if source.run is not None and source.run.data_fingerprint != packed.fingerprint:
        console.print("note: the run was trained on other packed data than this: clips of this side may have been in its training",
                      highlight=False)


def _say_where(console: Console, files: Sequence[SharedFile], clips: int) -> None:
    """Where the rows are; said by the last of several processes alone, which has put their parts together."""
    for file in files:
        if file.rows is not None:
            console.print(f"predictions: {file.path}", highlight=False, soft_wrap=True)
            if file.rows < clips:
                console.print(f"{clips - file.rows} of {clips} clips have no row yet: another process ended early; run the same command again",
                              highlight=False)
