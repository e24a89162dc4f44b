"""Every way to say which clips there are: a folder, or a list in CSV, JSONL, or the JSON of two other toolkits. All give the same `Clip`s.

A list is a table with `path`, `category`, and `state` or `label` (0, 1, normal, anomalous); `split` (train, val, test) and `clip_id` are
optional. LLaMA-Factory's sharegpt JSON and Video-LLaVA's JSON (`bridges`) name the video alone: category and state are read from the keys
that `data_prep/export.py` writes beside theirs, or from a path in the Phys-AD layout.
"""

from __future__ import annotations

import csv
import difflib
import io
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from vlmphys.bridges import listed_videos
from vlmphys.layout import NORMAL_STATE, TEST_FOLDER, TRAIN_FOLDER, Clip, Place, place_of, scan_videos
from vlmphys.records import NORMAL_STATES, Split, counted, label_of, nearest
from vlmphys.splits import NORMAL_WORDS

TABLES, JSON_SUFFIXES = (".csv", ".jsonl"), (".json",)
COLUMNS = ("path", "category", "state", "label", "split", "clip_id")
UNNAMED_STATE = "anomalous"
# How alike two names must be for the one to be a slip for the other: `spilt` and `split` are, `status` and `state` are not.
MISSPELT = 0.8
SHOWN = 80      # characters of a value in a message
SHOWN_LINES = 5
# What programs put between the columns of a CSV: semicolons where a comma is the decimal point.
DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab"}
LABELS = {"0": 0, "1": 1, "normal": 0, "anomalous": 1}


def find_clips(videos: str | Path) -> list[Clip]:
    """All clips of a folder or a list, sorted by clip id; no video is opened.

    Relative paths in a list are taken from the list's folder. Where a list names no clip id, a clip has the one that it would have in the
    layout: `fan/test/stuck/0003` for a path that ends so, else category, folder and the path as it is listed, its slashes written `__`. It
    hangs on the clip's own line alone. Raises ValueError, naming the line, for lists that cannot be read, lines that lack
    something or contradict themselves, and two clips with one id.
    """
    videos = Path(os.path.expanduser(videos))
    if videos.is_dir() or not videos.exists():
        return scan_videos(videos)
    clips = {clip_id: clip for clip_id, (clip, _) in _listed(videos).items()}
    if not any(os.path.exists(clip.path) for clip in clips.values()):
        first = next(iter(clips.values()))
        raise ValueError(f"{videos}: none of the {len(clips)} listed files is there, first {first.path}; relative paths are taken from the "
                         f"list's folder: put the list where they start, or write whole paths{_backslash_hint([first.path])}")
    return [clips[clip_id] for clip_id in sorted(clips)]


def check_listed(videos: str | Path, clips: list[Clip]) -> None:
    """Raise ValueError, naming lines, where a list names files for these clips that are not there: a mistake of the list, of which packing could
    only say, clip by clip, that a file cannot be opened. What a folder holds, links that lead nowhere, too, is left to packing."""
    videos = Path(os.path.expanduser(videos))
    if videos.is_dir():
        return
    wanted = {clip.clip_id for clip in clips}
    absent = [(clip.path, place) for clip_id, (clip, place) in _listed(videos).items() if clip_id in wanted and not _has_name(clip.path)]
    if absent:
        lines = [f"{place.removeprefix(f'{videos}, ')}: {path if str(path).isprintable() else ascii(str(path))}" for path, place in absent]
        more = f"; and {len(absent) - SHOWN_LINES} more" if len(absent) > SHOWN_LINES else ""
        raise ValueError(f"{videos}: {len(absent)} of {counted(len(wanted), 'listed file')} {'is' if len(absent) == 1 else 'are'} not there: "
                         f"{'; '.join(lines[:SHOWN_LINES])}{more}; mend these lines or take them away"
                         f"{_backslash_hint([path for path, _ in absent])}")


def _has_name(path: Path) -> bool:
    """Whether a folder has an entry of this name, a link that leads nowhere and a file that may not be read included."""
    try:
        os.lstat(path)
    except PermissionError:
        return True
    except OSError:
        return False
    return True


def _backslash_hint(absent: list[Path]) -> str:
    return "; write forward slashes between the folders of a path, not backslashes" if any("\\" in str(path) for path in absent) else ""


def _listed(videos: Path) -> dict[str, tuple[Clip, str]]:
    """(clip, its file and line) by clip id, as a list names them."""
    suffix = videos.suffix.lower()
    if suffix not in TABLES + JSON_SUFFIXES:
        raise ValueError(f"--videos {videos}: is neither a folder nor a list of clips; a list is named {', '.join((*TABLES, *JSON_SUFFIXES))}")
    rows = listed_videos(videos) if suffix in JSON_SUFFIXES else _table_rows(videos)
    clips: dict[str, tuple[Clip, str]] = {}
    for place, row in rows:
        clip = _clip_of(row, videos.parent, place)
        known, _ = clips.setdefault(clip.clip_id, (clip, place))
        # A dialogue file names a video once for each dialogue about it.
        if known != clip or (known is not clip and suffix in TABLES):
            raise ValueError(f"{place}: {row['path'][:SHOWN]!r} would be clip {clip.clip_id!r}, as {known.path} is: list each clip once, or give "
                             "each a 'clip_id' of its own")
    if not clips:
        raise ValueError(f"{videos}: lists no clip")
    return clips


def _table_rows(path: Path) -> Iterator[tuple[str, dict]]:
    """(file and line, values as texts) of a CSV with a header, or of a JSONL; unknown columns are passed over, misspelt ones refused."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read as UTF-8 text ({error})") from error
    for place, row in _csv_rows(path, text) if path.suffix.lower() == ".csv" else _jsonl_rows(path, text):
        values = {key: str(value) if key in ("path", "clip_id") else str(value).strip() for key, value in row.items() if key in COLUMNS}
        yield place, {key: value for key, value in values.items() if value}


def _csv_rows(path: Path, text: str) -> Iterator[tuple[str, dict]]:
    header = text.partition("\n")[0]
    between = next((mark for mark in DELIMITERS if "path" in [name.strip(' "\r') for name in header.split(mark)]), ",")
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=between)
    try:
        names = [name.strip() for name in reader.fieldnames or ()]
        if "path" not in names:
            near = next((name for name in names if nearest(name, ["path"])), None)
            raise ValueError(f"{path}: its first line must name the columns path, category, state or label, and perhaps split and clip_id, with "
                             f"commas (or semicolons, or tabs) between them; it names {', '.join(names) or 'nothing'}"
                             + (f" (is {near!r} the path?)" if near else ""))
        twice = [name for name in COLUMNS if names.count(name) > 1]
        if twice:
            raise ValueError(f"{path}: its first line names the column {twice[0]} twice: take one of them away")
        _check_names(names, str(path))
        reader.fieldnames = names
        for row in reader:
            place = f"{path}, line {reader.line_num}"
            if any(row.pop(None, [])):
                raise ValueError(f"{place}: has more values than the {len(names)} columns of its first line: put a value that holds a "
                                 f"{DELIMITERS[between]} into double quotes")
            yield place, {key: value for key, value in row.items() if value is not None}
    except csv.Error as error:
        raise ValueError(f"{path}, after line {reader.line_num}: no CSV ({error})") from error


def _jsonl_rows(path: Path, text: str) -> Iterator[tuple[str, dict]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"{place}: no JSON ({getattr(error, 'msg', error)})") from error
        if not isinstance(row, dict):
            raise ValueError(f"{place}: a JSON object is expected, not {line[:60]!r}")
        _check_names(list(row), place)
        wrong = [key for key in COLUMNS if isinstance(row.get(key), (list, dict))]
        if wrong:
            raise ValueError(f"{place}: {wrong[0]!r} must be a text or a number, not {json.dumps(row[wrong[0]])[:SHOWN]}")
        yield place, {key: value for key, value in row.items() if value is not None}


def _check_names(names: list[str], place: str) -> None:
    """Raise ValueError for a name that is all but one of the columns, where that one is missing: what stands in it would be lost in silence."""
    for name in names:
        absent = [column for column in COLUMNS if column not in names]
        close = difflib.get_close_matches(name.strip().lower(), absent, n=1, cutoff=MISSPELT)
        if close:
            raise ValueError(f"{place}: the column {name!r} is not known (did you mean {close[0]!r}?): write it so, or take it away")


def _clip_of(row: dict, folder: Path, place: str) -> Clip:
    """One line of a list as a clip; what it lacks is taken from a path in the layout."""
    if not row.get("path"):
        raise ValueError(f"{place}: has no 'path'")
    _check_path(row["path"], place)
    listed = Path(os.path.expanduser(row["path"]))
    by_layout = place_of(listed.parts[-4:]) or place_of(listed.parts[-3:])
    if by_layout and row.get("category", by_layout.category) != by_layout.category:
        by_layout = None    # a folder of some other meaning happens to be called train or test
    category = row.get("category") or (by_layout.category if by_layout else None)
    if not category:
        raise ValueError(f"{place}: {row['path'][:SHOWN]!r} has no 'category', and its path is not of the form <category>/{TRAIN_FOLDER}/<clip> or "
                         f"<category>/{TEST_FOLDER}/<state>/<clip>; name its category")
    if category in (".", "..") or "/" in category:
        raise ValueError(f"{place}: category {category!r} cannot be a folder's name; give it another one")
    state = _state_of(row, by_layout.state if by_layout else None, place)
    side, sides = row.get("split"), [known.value for known in Split]
    if side is not None and side not in sides:
        raise ValueError(f"{place}: split {side!r}: must be one of {', '.join(sides)}{nearest(side, sides)}")
    clip_id = row.get("clip_id") or _id_of(listed, by_layout, category, state, side)
    if not re.match(rf"{re.escape(category)}/.", clip_id):
        raise ValueError(f"{place}: clip_id {clip_id!r} must begin with its category and a slash, {category + '/'!r}")
    return Clip(clip_id, folder / listed, category, state, label_of(state), side)


def _check_path(path: str, place: str) -> None:
    """Raise ValueError for a text that can be no file's name."""
    try:
        possible = b"\0" not in path.encode()
    except UnicodeEncodeError:
        possible = False
    if not possible:
        raise ValueError(f"{place}: {ascii(path[:SHOWN])} can be no file's name: it holds what no UTF-8 name may hold; mend it")


def _state_of(row: dict, by_layout: str | None, place: str) -> str:
    """The state that a line names, by state or label; `anomalous` where it only says that something is wrong."""
    state, label = row.get("state"), row.get("label")
    # Programs that keep tables in memory write a column of whole numbers with gaps as 0.0 and 1.0.
    word = None if label is None else label.lower().removesuffix(".0")
    if word is not None and word not in LABELS:
        raise ValueError(f"{place}: label {label!r}: must be one of {', '.join(LABELS)}")
    number = None if word is None else LABELS[word]
    if state is None and number is None:
        if by_layout is None:
            raise ValueError(f"{place}: {row['path'][:SHOWN]!r} has neither 'state' nor 'label', and its path names no state; give it one")
        return by_layout
    if state is None:
        return NORMAL_STATE if number == 0 else by_layout if by_layout and label_of(by_layout) else UNNAMED_STATE
    state = NORMAL_STATE if state in NORMAL_STATES else state
    if state != NORMAL_STATE and re.sub(r"[\W_]+", "", state.lower()) in NORMAL_WORDS:
        raise ValueError(f"{place}: state {state!r} would count as an anomaly: normal is {NORMAL_STATE}, or leave state empty and set label normal")
    if number is not None and number != label_of(state):
        raise ValueError(f"{place}: state {state!r} and label {label!r} contradict each other: normal clips have the state {NORMAL_STATE}")
    if "/" in state:
        raise ValueError(f"{place}: state {state!r} cannot be a folder's name; give it another one")
    return state


def _id_of(listed: Path, by_layout: Place | None, category: str, state: str, side: str | None) -> str:
    if by_layout and by_layout.state == state:
        return f"{by_layout.folder}/{by_layout.name}"
    trains = label_of(state) == 0 and side in (Split.TRAIN.value, Split.VAL.value)
    name = "__".join(part for part in listed.with_suffix("").parts if part not in ("/", ".", ".."))
    return f"{category}/{TRAIN_FOLDER}/{name}" if trains else f"{category}/{TEST_FOLDER}/{state}/{name}"
