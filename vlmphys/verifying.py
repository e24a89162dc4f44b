"""Reads every row of packed data again and says what it found: what verify.py prints."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from vlmphys.features import DTYPE, FeaturesTable, clip_shape, open_features
from vlmphys.priors import few_texts, lint, load_priors, priors_sha256
from vlmphys.records import Variant, counted, label_of
from vlmphys.shard_files import REPACK
from vlmphys.shards import DialogueRow, DialogueTable, FramesTable, Packed, open_packed

ANSWERS = {Variant.MULTI_TURN.value: 4, Variant.SINGLE_TURN.value: 1, Variant.NO_PHYSICS.value: 1}


@dataclass
class Check:
    """One thing that was checked: how many of what, the problems found, and hints: what is worth knowing and no fault."""

    name: str
    checked: str = ""
    problems: list[str] = field(default_factory=list)
    hints: list[str] = field(default_factory=list)


def verify(folder: str | Path, priors_dir: str | None = None, model: str | None = None) -> list[Check]:
    """Check packed data against its manifests, its split, its priors and, where `model` is given, that model's tokenizer and size.

    Raises ValueError for a folder or model that is not there; what is wrong with the data stands in the checks.
    """
    if not Path(folder).is_dir():
        raise ValueError(f"packed data {folder}: no such folder; {REPACK}")
    try:
        packed = open_packed(folder)
    except ValueError as error:
        return [Check("manifests, shards and split can be opened", str(folder), [str(error)])]
    try:
        features = open_features(packed)
    except ValueError as error:
        return [Check("feature shards can be opened", str(folder), [str(error)])]
    hashes = _check_hashes(packed, features)
    if hashes.problems:
        return [hashes]     # what stands in a shard that was changed says nothing, and may be anything
    return [hashes, _check_clips(packed.frames), _check_quarantine(packed), _check_split(packed), _check_dialogues(packed),
            *([_check_features(packed, features, model)] if features is not None else []),
            _check_priors(packed, priors_dir), *([_check_model(packed, model)] if model else [])]


def _check_hashes(packed: Packed, features: FeaturesTable | None) -> Check:
    """Every shard's bytes against its manifest's sha256; versions, sizes, row counts and columns were checked when opening."""
    check, nbytes = Check("shards: sha256, bytes, rows, columns"), 0
    tables = (packed.frames, packed.dialogues, *([features] if features is not None else []))
    for table in tables:
        nbytes += sum(line["bytes"] for line in table.manifest["shards"])
        check.problems += table.changed_shards()
        if table.manifest["rows"] != len(table):
            check.problems.append(f"{table.folder}: holds {len(table)} rows, its manifest says {table.manifest['rows']}; {REPACK}")
    check.checked = f"{sum(len(table.manifest['shards']) for table in tables)} shards, {nbytes / 2**20:.1f} MiB"
    return check


def _check_clips(frames: FramesTable) -> Check:
    check = Check("frames: labels, frame numbers, pixels", f"{len(frames)} rows" + (f" of {frames.sets} frame sets" if frames.sets > 1 else ""))
    for clip_id in frames.clip_ids:
        row = frames.row(clip_id)
        if row.label != label_of(row.state):
            check.problems.append(f"{clip_id}: state {row.state!r} and label {row.label} do not go together")
        for number in range(frames.sets):
            row = frames.row(clip_id, number)
            index, place = row.frame_index, clip_id if frames.sets == 1 else f"{clip_id}, frame set {number}"
            if len(index) != frames.meta["frames"] or (np.diff(index) <= 0).any() or index[0] < 0 or index[-1] >= row.source_frames:
                check.problems.append(f"{place}: frame numbers {index.tolist()} of {row.source_frames} frames")
            # Each pixel is read; a clip of one colour is a video that was never filmed, or a decoder that failed in silence.
            if row.frames_THWC.min() == row.frames_THWC.max():
                check.problems.append(f"{place}: every pixel of its {len(index)} frames is {row.frames_THWC.min()}")
    return check


def _check_quarantine(packed: Packed) -> Check:
    check = Check("quarantine: listed, and packed nowhere")
    try:
        listed = packed.quarantined()
    except ValueError as error:
        check.problems.append(str(error))
        return check
    check.checked = counted(len(listed), 'clip')
    both = {bad["clip_id"] for bad in listed} & set(packed.frames.clip_ids)
    check.problems += [f"{clip_id}: is packed and in quarantine at once" for clip_id in sorted(both)]
    neither = set(packed.split.clips) - set(packed.frames.clip_ids) - {bad["clip_id"] for bad in listed}
    check.problems += [f"{clip_id}: the split names it, but it is neither packed nor in quarantine" for clip_id in sorted(neither)]
    return check


def _check_split(packed: Packed) -> Check:
    sides = Counter(packed.split.clips[clip_id].value for clip_id in packed.frames.clip_ids if clip_id in packed.split.clips)
    check = Check("split: every packed clip on one side", ", ".join(f"{side} {count}" for side, count in sorted(sides.items())))
    check.problems += [f"{clip_id}: is packed, but the split does not name it" for clip_id in packed.frames.clip_ids
                       if clip_id not in packed.split.clips]
    check.problems += [f"no packed clip stands on the side {side}" for side in ("train", "test") if not sides[side]]
    return check


def _check_dialogues(packed: Packed) -> Check:
    """Masks: each answer there and in order, the verdict within the last one, video tokens whole and never supervised."""
    table = packed.dialogues
    check = Check("dialogues: turns, verdict, video tokens")
    known = set(packed.frames.clip_ids)
    lengths, supervised = [], 0
    for clip_id, variant in table.keys:
        row = table.row(clip_id, variant)
        check.problems += [f"{clip_id} ({variant}): {problem}" for problem in _dialogue_problems(row, table)]
        if clip_id not in known:
            check.problems.append(f"{clip_id} ({variant}): has a dialogue, but no frames")
        lengths.append(len(row.input_ids))
        supervised += int((row.turn > 0).sum())
    if "wordings" not in table.meta:
        check.problems.append(f"{table.folder}: was packed by an earlier version, whose val and test clips are asked in several wordings and not "
                              "in the first alone ('wordings' is missing); pack again with data_prep/pack.py --only dialogues, which decodes nothing")
    span = f"{min(lengths)} to {max(lengths)} tokens, {supervised / sum(lengths):.1%} supervised" if lengths else "nothing"
    check.checked = f"{len(lengths)} rows, {span}"
    return check


def _dialogue_problems(row: DialogueRow, table: DialogueTable) -> list[str]:
    problems = []
    if len(row.input_ids) != len(row.turn):
        return [f"{len(row.input_ids)} ids, but {len(row.turn)} turn numbers"]
    answers = row.turn[row.turn > 0]
    expected = ANSWERS[row.variant]
    if sorted(set(answers.tolist())) != list(range(1, expected + 1)) or (np.diff(answers) < 0).any():
        problems.append(f"answers {sorted(set(answers.tolist()))} are supervised, 1 to {expected} are expected, in order")
    start, end = row.verdict_span
    if not 0 < start < end <= len(row.turn) or (row.turn[start:end] != expected).any():
        problems.append(f"the verdict's span {start} to {end} is not within answer {expected}")
    video = row.input_ids == table.meta["video_token_id"]
    count = table.meta["frames"] * table.meta["tokens_per_frame"]
    if video.sum() != count:
        problems.append(f"{int(video.sum())} video tokens, {count} are expected")
    if (row.turn[video] != 0).any() or row.turn[0] != 0:
        problems.append("a video token or the beginning is supervised")
    return problems


def _check_features(packed: Packed, features: FeaturesTable, model: str | None) -> Check:
    """Features: of these frames, each row of fp16 numbers that are finite and not all alike, and of the model's tower where one is given."""
    check = Check("features: of these frames, finite", f"{len(features)} rows of {' x '.join(map(str, clip_shape(features.meta)))} "
                  f"{features.meta['dtype']}, tower {features.meta['tower_sha256'][:12]}")
    cure = f"make them anew with data_prep/pack.py --out {packed.folder} --features --model MODEL, or delete {features.folder}"
    if features.meta["dtype"] != DTYPE.name:
        check.problems.append(f"{features.folder}: is of {features.meta['dtype']!r}, {DTYPE.name} is expected; {cure}")
        return check
    if problem := features.stale(packed.frames):
        check.problems.append(f"{problem}; {cure}")
    for clip_id in features.clip_ids:
        values = features.row(clip_id)
        if not np.isfinite(values).all():
            check.problems.append(f"{clip_id}: {int((~np.isfinite(values)).sum())} of its {values.size} features are infinite or no number; {cure}")
        elif values.min() == values.max():
            check.problems.append(f"{clip_id}: each of its {values.size} features is {values.flat[0]}; {cure}")
    if model:
        from vlmphys.model import read_facts
        from vlmphys.tower import tower_sha256

        facts = read_facts(model)
        problem = features.of_other_tower(tower_sha256(model), facts.image_mean, facts.image_std, model)
        check.problems += [f"{problem}; {cure}"] if problem else []
        check.checked += f", compared with {model}"
    return check


def _check_priors(packed: Packed, priors_dir: str | None) -> Check:
    categories = {category for category, _ in packed.frames.states().values()}
    check = Check("priors: the ones packed, linted", f"{len(categories)} {'category' if len(categories) == 1 else 'categories'}")
    try:
        priors = load_priors(categories, priors_dir)
    except ValueError as error:
        check.problems.append(str(error))
        return check
    try:
        packed.dialogues.check(priors_sha256=priors_sha256(priors))
    except ValueError as error:
        given = f"--priors {priors_dir} is not the folder" if priors_dir else "give --priors DIR"
        check.problems.append(f"{error}; if data_prep/pack.py was given --priors: {given} that it was given")
        return check
    for prior in priors.values():
        check.problems += lint(prior)
        check.hints += few_texts(prior)
    return check


def _check_model(packed: Packed, model: str) -> Check:
    """Sizes and tokenizer of a model, and each verdict's text, read back through that tokenizer."""
    from vlmphys.model import load_tokenizer, read_facts

    tokenizer = load_tokenizer(model)
    facts = read_facts(model, tokenizer)
    check = Check("model: tokenizer, sizes, verdicts read back", model)
    try:
        packed.check(facts.tokenizer_sha256, facts.image_size, facts.tokens_per_frame)
    except ValueError as error:
        check.problems.append(str(error))
        return check
    if packed.dialogues.meta["controls"]["shuffle_labels"] is not None:
        check.checked += ", labels shuffled on purpose: verdicts not compared"
        return check
    states = packed.frames.states()
    for clip_id, variant in packed.dialogues.keys:
        row = packed.dialogues.row(clip_id, variant)
        said = tokenizer.decode(row.input_ids[slice(*row.verdict_span)].tolist()).strip().lower()
        true = ("normal", "anomalous")[label_of(states[clip_id][1])]
        if said != true:
            check.problems.append(f"{clip_id} ({variant}): its verdict reads {said!r}, its state means {true!r}")
    return check
