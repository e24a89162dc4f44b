"""The protocols of several split files: each clip tested once in folds, each category or each kind of anomaly left out of training once.

Every file is an ordinary split file with a hash of its own, so that packing, training and scoring need not know of its brothers. Packing
another one of them into the same folder decodes nothing again: the clips are the same.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from vlmphys.layout import Clip
from vlmphys.records import nearest
from vlmphys.splits import anomaly_folders, by_id, seeded_order, share_problems, split_content, supervised_clips, supervised_counts

KFOLD, LEAVE_CATEGORY_OUT, LEAVE_ANOMALY_OUT = "kfold", "leave_category_out", "leave_anomaly_out"
SEVERAL = (KFOLD, LEAVE_CATEGORY_OUT, LEAVE_ANOMALY_OUT)
FOLDS = 5


def make_splits(clips: list[Clip], protocol: str, seed: int = 0, val_share: float = 0.1, folds: int = FOLDS, leave_out: str | None = None,
                per_anomaly: int | None = None) -> dict[str, dict]:
    """The contents of a protocol's split files, by what tells their names apart (`fold1of5`, `without_fan`, `without_anomaly1of4`).

    `kfold`: every clip, those of the train folders too, is tested in one of the `folds` files and trains in all others; each (category,
    state) is dealt out evenly. `leave_category_out`: all clips of one category are tested, all others train; a file a category.
    `leave_anomaly_out`: as protocol weak, but one anomaly of each category gives no clip to train; as many files as the category with the
    most anomalies has, so that each anomaly is left out in one of them. `leave_out` names what one single file leaves out instead:
    categories (`fan,gear`) or anomalies (`fan/stuck,gear/single`). Raises ValueError for wrong values and for classes that are too small.
    """
    problems = share_problems(val_share)
    if protocol not in SEVERAL:
        problems.append(f"protocol {protocol!r}: must be one of {', '.join(SEVERAL)}")
    if leave_out is not None and protocol == KFOLD:
        problems.append("what is left out: belongs to the protocols leave_category_out and leave_anomaly_out, not to kfold")
    if per_anomaly is not None and protocol != LEAVE_ANOMALY_OUT:
        problems.append(f"clips per anomaly: belongs to the protocols weak and leave_anomaly_out, not to {protocol!r}")
    if per_anomaly is not None and per_anomaly < 1:
        problems.append(f"clips per anomaly {per_anomaly}: must be at least 1")
    if folds < 2:
        problems.append(f"folds {folds}: at least 2 are needed")
    if problems:
        raise ValueError("; ".join(problems))
    if protocol == KFOLD:
        return _folds(clips, folds, seed, val_share)
    if protocol == LEAVE_CATEGORY_OUT:
        return _without_categories(clips, leave_out, seed, val_share)
    return _without_anomalies(clips, leave_out, per_anomaly, seed, val_share)


def file_of(out: str | Path, name: str) -> Path:
    """Where one of several split files goes: `split.json` and `fold1of5` make `split_fold1of5.json`."""
    out = Path(out)
    return out.with_name(f"{out.stem}_{name}{out.suffix or '.json'}")


def _folds(clips: list[Clip], folds: int, seed: int, val_share: float) -> dict[str, dict]:
    """Clips dealt out like cards, state after state: in total, in each category and in each state, folds differ by one clip at most."""
    classes: dict[tuple[str, str], list[Clip]] = defaultdict(list)
    kinds: dict[tuple[str, int], int] = defaultdict(int)
    for clip in clips:
        classes[clip.category, clip.state].append(clip)
        kinds[clip.category, clip.label] += 1
    words = ("normal", "anomalous")
    small = [f"{category} has {count} {words[label]} clip(s)" for (category, label), count in sorted(kinds.items()) if count < folds]
    if small:
        raise ValueError(f"{folds} folds need {folds} normal and {folds} anomalous clips of each category, so that each fold tests both: "
                         f"{'; '.join(small)}. Give fewer --folds, or add clips")
    dealt = [clip for _, found in sorted(classes.items()) for clip in seeded_order(found, seed, KFOLD)]
    tested = {clip.clip_id: number % folds for number, clip in enumerate(dealt)}
    return {f"fold{fold + 1}of{folds}": split_content(KFOLD, seed, clips, [clip for clip in sorted(clips, key=by_id) if tested[clip.clip_id] != fold],
                                                      val_share, {"folds": folds, "fold": fold + 1}) for fold in range(folds)}


def _without_categories(clips: list[Clip], leave_out: str | None, seed: int, val_share: float) -> dict[str, dict]:
    present = sorted({clip.category for clip in clips})
    if len(present) < 2:
        raise ValueError(f"leave_category_out: there is but one category, {present[0]!r}; nothing would be left to train on")
    groups = {f"without_{category}": [category] for category in present} if leave_out is None else {
        "without_" + "_".join(names): names for names in [_named(leave_out, present, "category")]}
    if any(len(names) == len(present) for names in groups.values()):
        raise ValueError(f"--leave-out {leave_out!r} names every category: nothing would be left to train on")
    return {name: split_content(LEAVE_CATEGORY_OUT, seed, clips, [clip for clip in sorted(clips, key=by_id) if clip.category not in left], val_share,
                                {"left_out": left}) for name, left in groups.items()}


def _without_anomalies(clips: list[Clip], leave_out: str | None, per_anomaly: int | None, seed: int, val_share: float) -> dict[str, dict]:
    folders = anomaly_folders(clips)
    if not folders:
        raise ValueError("leave_anomaly_out: there is no anomalous clip")
    if leave_out is None:
        states: dict[str, list[str]] = defaultdict(list)
        for category, state in sorted(folders):
            states[category].append(state)
        rounds = max(len(found) for found in states.values())
        groups = {f"without_anomaly{turn + 1}of{rounds}": [f"{category}/{found[turn]}" for category, found in states.items() if turn < len(found)]
                  for turn in range(rounds)}
    else:
        names = _named(leave_out, ["/".join(place) for place in sorted(folders)], "anomaly")
        groups = {"without_" + "_".join(name.replace("/", "-") for name in names): names}
    content = {}
    train = [clip for clip in sorted(clips, key=by_id) if clip.in_train_folder]
    for name, left in groups.items():
        kept = {place: found for place, found in folders.items() if "/".join(place) not in left}
        counts = supervised_counts(kept, "weak", per_anomaly, ratio=0.0, named=LEAVE_ANOMALY_OUT)
        options = {"left_out": left, "clips_per_anomaly": {category: count for (category, _), count in sorted(counts.items())}}
        content[name] = split_content(LEAVE_ANOMALY_OUT, seed, clips, train + supervised_clips(kept, counts, seed), val_share, options)
    return content


def _named(text: str, present: list[str], kind: str) -> list[str]:
    """The comma-separated names, sorted; ValueError, with the nearest names, for those that are not there."""
    names = sorted({name.strip() for name in text.split(",") if name.strip()})
    unknown = [f"{name!r}{nearest(name, present)}" for name in names if name not in present]
    if unknown or not names:
        missed = f"no {kind} {'; '.join(unknown)}" if unknown else f"names no {kind}"
        raise ValueError(f"--leave-out {text!r}: {missed}: there are {', '.join(present)}")
    return names
