"""Who trains and who is tested: the split file, written once and carried by hash into every result.

Phys-AD's train folders hold no anomaly, so that fine-tuning takes anomalous clips out of its test folders; three published rules
disagree on how many. A split file says which rule was followed. The protocols that need several files (folds, classes left out) stand in
`held_out`.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from vlmphys.files import json_bytes, read_json, write_atomic
from vlmphys.layout import NORMAL_STATE, TEST_FOLDER, TRAIN_FOLDER, Clip
from vlmphys.records import Split, counted, nearest, shortened, stable_int

SPLIT_VERSION = 1
PROTOCOLS = ("weak", "ratio", "unsupervised", "given")
# Phys-AD's benchmark code, weak supervision: anomalous clips of each anomaly folder that move from test to train.
PUBLISHED_CLIPS_PER_ANOMALY = {
    "ball": 4, "button": 3, "car": 4, "caster_wheel": 2, "clip": 2, "clock": 4, "fan": 4, "gear": 4, "hinge": 4, "liquid": 4,
    "lock": 4, "magnet": 4, "rolling_bearing": 4, "rubber_band": 4, "screw": 4, "servo": 4, "slide": 4, "spherical_bearing": 4,
    "sticky_roller": 4, "toothpaste": 4, "usb": 4, "zipper": 4}
CLIPS_PER_ANOMALY_ELSEWHERE = 4
PUBLISHED_RATIO = 0.1
REMAKE = "write it with data_prep/split.py"
OTHER_FILE = "a file without a split is not written over: give another --out, or move it away"
# What others call the folder of normal test clips, in small letters without blanks, dashes and underscores.
NORMAL_WORDS = ("good", "normal", "ok", "okay", "pass", "anomalyfree", "nonanomalous", "defectfree", "faultfree", "healthy", "nominal")


@dataclass(frozen=True)
class SplitFile:
    """A split as it stands in a file: side by clip id, and the hash of the file's bytes."""

    protocol: str
    seed: int
    options: dict
    clips: dict[str, Split]
    sha256: str

    def clip_ids(self, side: Split | str) -> list[str]:
        """Sorted clip ids of one side."""
        return sorted(clip_id for clip_id, own in self.clips.items() if own == Split(side))


def load_split(path: str | Path) -> SplitFile:
    """Read and check a split file. Raises ValueError, naming the file, for a missing, broken or newer one."""
    path = Path(path)
    stored = read_json(path, REMAKE)
    if stored.get("version") != SPLIT_VERSION:
        raise ValueError(f"{path}: split version {stored.get('version')!r} is not known here, only {SPLIT_VERSION}; {REMAKE}")
    missing = [key for key in ("protocol", "seed", "options", "clips") if key not in stored]
    if missing:
        raise ValueError(f"{path}: lacks {', '.join(missing)}; {REMAKE}")
    sides = {side.value for side in Split}
    clips = stored["clips"] if isinstance(stored["clips"], dict) else {}
    wrong = [clip_id for clip_id, side in clips.items() if side not in sides]
    if wrong or not clips:
        problem = f"clip {wrong[0]!r} stands on side {clips[wrong[0]]!r}, allowed: {', '.join(sorted(sides))}" if wrong else "names no clip"
        raise ValueError(f"{path}: {problem}; {REMAKE}")
    return SplitFile(stored["protocol"], stored["seed"], stored["options"], {clip_id: Split(side) for clip_id, side in clips.items()},
                     hashlib.sha256(path.read_bytes()).hexdigest())


def make_split(clips: list[Clip], protocol: str, seed: int = 0, val_share: float = 0.1, per_anomaly: int | None = None,
               ratio: float = PUBLISHED_RATIO) -> dict:
    """The content of a split file for these clips, whatever their order.

    `weak`: of each anomaly folder, `per_anomaly` clips (None: the published number of its category) train, the rest is tested.
    `ratio`: the same with that share of each folder, at least one clip. `unsupervised`: normal clips alone train. In all of them the
    train folders' clips train and the other normal clips are tested. `given`: each clip on the side that its list names. `val_share` of what
    trains is held out for validation, by category and by normal or anomalous (`given`: only where the list names no clip for it). Raises
    ValueError for wrong values, and, naming each class, where none would be left to test.
    """
    _check_options(protocol, val_share, per_anomaly, ratio)
    if protocol == "given":
        return _given_split(clips, seed, val_share)
    folders = anomaly_folders(clips)
    counts = supervised_counts(folders, protocol, per_anomaly, ratio)
    train = [clip for clip in sorted(clips, key=by_id) if clip.in_train_folder] + supervised_clips(folders, counts, seed)
    options: dict = {}
    if protocol == "weak":
        options["clips_per_anomaly"] = {category: count for (category, _), count in sorted(counts.items())}
    elif protocol == "ratio":
        options["ratio"] = ratio
    return split_content(protocol, seed, clips, train, val_share, options)


def by_id(clip: Clip) -> str:
    """What clips are sorted by: their ids, which no two share."""
    return clip.clip_id


def anomaly_folders(clips: list[Clip]) -> dict[tuple[str, str], list[Clip]]:
    """The anomalous clips by (category, state)."""
    folders: dict[tuple[str, str], list[Clip]] = defaultdict(list)
    for clip in sorted(clips, key=by_id):
        if clip.label:
            folders[clip.category, clip.state].append(clip)
    return folders


def supervised_clips(folders: dict[tuple[str, str], list[Clip]], counts: dict[tuple[str, str], int], seed: int) -> list[Clip]:
    """The anomalous clips that train: so many of each (category, state), drawn by seed."""
    return [clip for place, found in folders.items() for clip in seeded_order(found, seed, "supervised")[:counts[place]]]


def split_content(protocol: str, seed: int, clips: list[Clip], train: list[Clip], val_share: float, options: dict) -> dict:
    """A split file's content: `val_share` of `train` validates, the rest of it trains, all other clips are tested.

    Raises ValueError where no normal clip would train: a model that has seen anomalies alone calls everything anomalous.
    """
    if not any(clip.label == 0 for clip in train):
        raise ValueError(f"protocol {protocol!r} leaves no normal clip to train on: put some into <category>/{TRAIN_FOLDER}, or, in a list of "
                         "clips, give them the split 'train'; kfold and leave_category_out need no train folder")
    val = _validation_ids(train, val_share, seed)
    trained = {clip.clip_id for clip in train}
    sides = {clip.clip_id: (Split.VAL if clip.clip_id in val else Split.TRAIN if clip.clip_id in trained else Split.TEST).value
             for clip in sorted(clips, key=by_id)}
    return {"version": SPLIT_VERSION, "protocol": protocol, "seed": seed, "options": {"val_share": val_share, **options}, "clips": sides}


def _given_split(clips: list[Clip], seed: int, val_share: float) -> dict:
    """Each clip on the side that a list of clips names for it; ValueError for one without."""
    without = [clip.clip_id for clip in sorted(clips, key=by_id) if clip.side is None]
    if without:
        raise ValueError(f"protocol 'given' takes the sides of a list of clips: {len(without)} clip(s) have none, first {without[0]!r}; "
                         "give each its 'split' there, or choose another protocol")
    val = [clip.clip_id for clip in clips if clip.side == Split.VAL.value]
    train = [clip for clip in clips if clip.side != Split.TEST.value]
    content = split_content("given", seed, clips, train, 0.0 if val else val_share, {})
    content["clips"].update(dict.fromkeys(val, Split.VAL.value))
    return content


def of_categories(clips: list[Clip], categories: str | None) -> list[Clip]:
    """The clips of some categories, comma-separated names; all where None. Raises ValueError, with the nearest names, for those without a clip."""
    if categories is None:
        return clips
    names, present = [name.strip() for name in categories.split(",") if name.strip()], sorted({clip.category for clip in clips})
    unknown = [name for name in names if name not in present]
    if unknown or not names:
        missed = f"no clip of category {'; '.join(f'{name!r}{nearest(name, present)}' for name in unknown)}" if unknown else "names no category"
        raise ValueError(f"--categories {categories!r}: {missed}: there are {shortened(present)}")
    return [clip for clip in clips if clip.category in names]


def check_split_target(path: str | Path) -> None:
    """Raise ValueError for a folder, and for a file with something else than a split: a list of clips, say, that was named by mistake."""
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"--out {path}: is a folder; give the name of a file, for instance {path / 'split.json'}")
    if path.is_file() and path.stat().st_size and not {"protocol", "clips"} <= read_json(path, OTHER_FILE).keys():
        raise ValueError(f"--out {path}: holds no split; {OTHER_FILE}")


def check_same_settings(path: str | Path, content: dict) -> None:
    """Raise ValueError, saying what differs, where a file holds a split that was made with other settings than this content; of the same settings
    it may be written anew, as clips come and go."""
    path = Path(path)
    if not path.is_file() or not path.stat().st_size:
        return
    there, here = read_json(path, OTHER_FILE), content
    settings = [(name, there.get(name), here.get(name)) for name in ("protocol", "seed")]
    there, here = (one["options"] if isinstance(one.get("options"), dict) else {} for one in (there, here))
    settings += [(name, there.get(name), here.get(name)) for name in sorted({*there, *here} - {"duplicates_allowed", "clips_per_anomaly"})]
    # Categories come and go, as clips do: the numbers of those in both count.
    before, after = (number if isinstance(number := one.get("clips_per_anomaly"), dict) else {} for one in (there, here))
    settings += [(f"clips of each anomaly in {category}", before[category], after[category]) for category in sorted(before.keys() & after.keys())]
    changed = [f"{name} {'not given' if old is None else old} -> {'not given' if new is None else new}" for name, old, new in settings if old != new]
    if changed:
        raise ValueError(f"--out {path}: holds a split with other settings ({', '.join(changed[:5])}): give another --out, or --overwrite; "
                         "nothing was written")


def replaced(path: str | Path, content: dict) -> str:
    """What writing this content changes of the split that stands there, in a sentence; empty where there is none, or the same."""
    path = Path(path)
    if not path.is_file() or not path.stat().st_size:
        return ""
    there, here = read_json(path, OTHER_FILE).get("clips"), content["clips"]
    if not isinstance(there, dict) or there == here:
        return ""
    moved = sum(here[clip_id] != side for clip_id, side in there.items() if clip_id in here)
    return (f"replaces an earlier split: {counted(len(here.keys() - there.keys()), 'clip')} more, {len(there.keys() - here.keys())} gone, "
            f"{moved} on another side")


def write_split(path: str | Path, content: dict) -> None:
    """Write a split file, whole or not at all; the same content always gives the same bytes. Raises ValueError as `check_split_target`."""
    path = Path(path)
    check_split_target(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json_bytes(content))
    except OSError as error:
        raise ValueError(f"--out {path}: cannot be written ({error.strerror}); give a file in a folder you may write to") from error


def untested_normals(clips: list[Clip], content: dict) -> list[str]:
    """A sentence for each category without a normal clip to test, which leaves its AUROC undefined, and for each state named like normal clips.

    All folders of test/ but `anomaly_free` count as anomalies, whether there is an `anomaly_free` beside them or not.
    """
    tested = {clip.category for clip in clips if not clip.label and content["clips"][clip.clip_id] == Split.TEST.value}
    states: dict[str, set[str]] = defaultdict(set)
    for clip in clips:
        states[clip.category].add(clip.state)
    found = []
    for category, names in sorted(states.items()):
        taken = [name for name in sorted(names) if name != NORMAL_STATE and re.sub(r"[\W_]+", "", name.lower()) in NORMAL_WORDS]
        folder = f"{category}/{TEST_FOLDER}"
        cures = [f"{folder}/{name} counts as an anomaly: if its clips are normal, rename it to {folder}/{NORMAL_STATE}" for name in taken]
        if category in tested:
            found += cures
        else:
            cure = "; ".join(cures) or f"put normal clips into {folder}/{NORMAL_STATE}"
            found.append(f"{category} has no normal test clip, so that its AUROC will be undefined; {cure}")
    return found


def losses(places: dict[str, tuple[str, str]], split: SplitFile, lost: Iterable[str]) -> tuple[list[str], list[str]]:
    """What clips that cannot be used take from a split: a line for each class that they stand in, and one for each side that is left without it.

    `places`: (category, state) of all clips that were to be packed, by clip id; `lost`: ids of those that were not.
    """
    before, after, lost = Counter(), Counter(), set(lost)
    for clip_id, place in places.items():
        before[place, split.clips[clip_id]] += 1
        after[place, split.clips[clip_id]] += clip_id not in lost
    lines, empty = [], []
    for place in sorted({places[clip_id] for clip_id in lost}):
        sides = [side for side in Split if after[place, side] < before[place, side]]
        lines.append(f"{'/'.join(place)}: " + ", ".join(f"{side.value} {before[place, side]} -> {after[place, side]}" for side in sides))
        empty += [f"no clip of {'/'.join(place)} is left on the {side.value} side" for side in sides if not after[place, side]]
    return lines, empty


def count_sides(clips: list[Clip], content: dict) -> dict[str, Counter]:
    """By category, how many clips of each (side, label): what split.py prints."""
    table: dict[str, Counter] = defaultdict(Counter)
    for clip in clips:
        table[clip.category][content["clips"][clip.clip_id], clip.label] += 1
    return dict(sorted(table.items()))


def share_problems(val_share: float) -> list[str]:
    """What is wrong with the share of training clips that validate; nothing where it is right."""
    return [] if 0 <= val_share < 1 else [f"val share {val_share}: must be at least 0 and below 1"]


def _check_options(protocol: str, val_share: float, per_anomaly: int | None, ratio: float) -> None:
    problems = share_problems(val_share)
    if protocol not in PROTOCOLS:
        problems.append(f"protocol {protocol!r}: must be one of {', '.join(PROTOCOLS)}")
    if per_anomaly is not None and protocol != "weak":
        problems.append(f"clips per anomaly: belongs to protocol weak, not to {protocol!r}")
    if per_anomaly is not None and per_anomaly < 1:
        problems.append(f"clips per anomaly {per_anomaly}: must be at least 1; without anomalies the protocol is 'unsupervised'")
    if not 0 < ratio < 1:
        problems.append(f"ratio {ratio}: must be above 0 and below 1")
    if problems:
        raise ValueError("; ".join(problems))


def supervised_counts(folders: dict[tuple[str, str], list[Clip]], protocol: str, per_anomaly: int | None,
                       ratio: float, named: str | None = None) -> dict[tuple[str, str], int]:
    """How many clips of each anomaly folder train; ValueError, naming every folder of which none would be left to test. `named`: the protocol that
    the user gave, where it counts as this one does."""
    counts = {}
    for (category, state), found in folders.items():
        if protocol == "weak":
            counts[category, state] = per_anomaly or PUBLISHED_CLIPS_PER_ANOMALY.get(category, CLIPS_PER_ANOMALY_ELSEWHERE)
        else:
            counts[category, state] = max(1, int(ratio * len(found) + 0.5)) if protocol == "ratio" else 0
    short = {place: len(folders[place]) for place, count in counts.items() if count >= len(folders[place])}
    if short:
        cures = [f"lower {'--ratio' if protocol == 'ratio' else '--per-anomaly'}, or add clips"] if max(short.values()) > 1 else []
        cures += ["a single clip cannot both train and be tested: add clips of that anomaly, or take it away"] if min(short.values()) == 1 else []
        listed = shortened((f"{'/'.join(place)} has {count} and would give {counts[place]}" for place, count in short.items()), "; ", 5)
        raise ValueError(f"protocol {(named or protocol)!r} takes its clips from each anomaly and at least one must remain for the test: "
                         f"{listed}. To mend it: {'; '.join(cures)}")
    return counts


def seeded_order(clips: list[Clip], seed: int, purpose: str) -> list[Clip]:
    """A shuffle that hangs on seed and clip id alone: another clip in the folder does not reshuffle the rest."""
    return sorted(clips, key=lambda clip: stable_int(seed, purpose, clip.clip_id))


def _validation_ids(train: list[Clip], share: float, seed: int) -> set[str]:
    """The clips held out for validation: `share` of each (category, label), at least one clip of each left to train.

    What rounding leaves over is carried on to the next category, so that many small classes do not all round to nothing.
    """
    held: set[str] = set()
    for label in (0, 1):
        classes: dict[str, list[Clip]] = defaultdict(list)
        for clip in train:
            if clip.label == label:
                classes[clip.category].append(clip)
        owed = 0.0
        for _, found in sorted(classes.items()):
            owed += share * len(found)
            count = min(int(owed + 0.5), len(found) - 1)
            owed -= count
            held.update(clip.clip_id for clip in seeded_order(found, seed, "val")[:count])
    return held
