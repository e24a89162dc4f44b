"""The words that every stage writes and reads: one spelling for each, used by writers and readers alike."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Iterable
from enum import Enum
from pathlib import Path


class Variant(str, Enum):
    """How the physics reaches the model (multi-turn paper, section 3.3 and its ablation)."""

    MULTI_TURN = "multi_turn"
    SINGLE_TURN = "single_turn"
    NO_PHYSICS = "no_physics"


class Split(str, Enum):
    """The side of the border on which a clip stands."""

    TRAIN = "train"
    VAL = "val"
    TEST = "test"


class Verdict(str, Enum):
    """The hard verdict of one prediction; `UNPARSED` counts as neither."""

    NORMAL = "normal"
    ANOMALOUS = "anomalous"
    UNPARSED = "unparsed"


AUTO = "auto"      # in place of a category: the likeliest one
MAX_TURNS = 4      # the longest dialogue (multi-turn paper, equation 2)
NORMAL_STATES = ("anomaly_free", "train")
VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".wmv", ".ts", ".mts", ".m2ts", ".mpg", ".mpeg", ".flv", ".3gp")


def label_of(state: str) -> int:
    """0 for a normal clip, 1 for an anomalous one; `state` is the folder's name (`anomaly_free`, `stuck`, ...)."""
    return 0 if state in NORMAL_STATES else 1


def clip_id_of(path: Path, videos: Path) -> str:
    """The key of a clip everywhere: its path below the videos root, without suffix, with forward slashes."""
    return path.relative_to(videos).with_suffix("").as_posix()


def sha256_file(path: Path, chunk_bytes: int = 1 << 20) -> str:
    """Hex digest of a file's bytes, read in chunks."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while chunk := stream.read(chunk_bytes):
            digest.update(chunk)
    return digest.hexdigest()


def nearest(name: str, known: Iterable[str]) -> str:
    """` (did you mean 'fan'?)` where one of the known names is like this one, else nothing: for the message that refuses it."""
    close = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""


def nearest_state(state: str, known: Iterable[str]) -> str:
    """`nearest` for a state. One of the other label is named only where the two are all but the same word (`anomaly_fre`): who writes `anomalous`
    does not mean `anomaly_free`."""
    known = list(known)
    slips = difflib.get_close_matches(state, [name for name in known if label_of(name) != label_of(state)], n=1, cutoff=0.85)
    return nearest(state, slips or [name for name in known if label_of(name) == label_of(state)])


def counted(number: int, noun: str, several: str | None = None) -> str:
    """`1 clip`, `2 clips`; `several` where the plural takes more than an s."""
    return f"{number} {noun if number == 1 else several or noun + 's'}"


def shortened(entries: Iterable[object], separator: str = ", ", most: int = 10) -> str:
    """A list for a message: its first entries, and how many more there are (`a, b, ..., and 12 more`)."""
    entries = [str(entry) for entry in entries]
    if len(entries) <= most + 1:
        return separator.join(entries)
    return separator.join([*entries[:most], "...", f"and {len(entries) - most} more"])


def sha256_text(text: str) -> str:
    """Hex digest of a text, as UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()


def stable_int(*parts: object) -> int:
    """A 64-bit integer that depends on the parts alone: seeds per clip that no order of files can change."""
    joined = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(joined.encode()).digest()[:8], "big")
