"""What a clip is on disk: one video file, or a folder with a picture a frame. Its bytes' hash, and what tells cheaply that it changed."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from vlmphys.records import sha256_file

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")


def frame_files(folder: Path) -> list[tuple[int, Path]]:
    """(number, path) of the pictures in a folder, by the last number in each name (`frame_0012.png` is 12); hidden and other files are passed
    over. Raises ValueError, saying what is wrong, where numbers are missing or do not rise in even steps; OSError where it cannot be read."""
    found = []
    for entry in os.scandir(folder):
        if entry.name.startswith(".") or not entry.name.lower().endswith(PICTURE_SUFFIXES):
            continue
        digits = re.findall(r"\d+", Path(entry.name).stem)
        if not digits:
            raise ValueError(f"its picture {entry.name!r} has no number: frames are named like frame_0001.png")
        found.append((int(digits[-1]), Path(entry.path)))
    found.sort()
    steps = [after[0] - before[0] for before, after in zip(found, found[1:])]
    if 0 in steps:
        raise ValueError(f"two of its pictures have the number {found[steps.index(0)][0]}")
    for step, (_, path) in zip(steps, found):
        # A lost frame would look like a jerk of the mechanism; one frame in five, evenly, is a slower film.
        if step != min(steps):
            raise ValueError(f"lacks frames after {path.name}: its numbers go up by {min(steps)}, and there by {step}")
    return found


def clip_stat(path: Path) -> tuple[int, int]:
    """Size in bytes and time of the last change in ns, of a folder those of all its files; a clip counts as the same while both are.

    Raises OSError where it cannot be read.
    """
    if not path.is_dir():
        facts = os.stat(path)
        return facts.st_size, facts.st_mtime_ns
    facts = [entry.stat() for entry in os.scandir(path)]
    return sum(one.st_size for one in facts), max((one.st_mtime_ns for one in facts), default=0)


def sha256_clip(path: Path) -> str:
    """Hex digest of a video file's bytes; of a folder of frames, over the order and the bytes of its pictures, whatever they are called.

    Raises OSError where it cannot be read, and ValueError as `frame_files` does.
    """
    if not path.is_dir():
        return sha256_file(path)
    digest = hashlib.sha256()
    for _, picture in frame_files(path):
        digest.update(bytes.fromhex(sha256_file(picture)))
    return digest.hexdigest()


def sha256_now(path: str | Path) -> str | None:
    """`sha256_clip` of what may be no clip: None where it is neither file nor folder, or cannot be read; the reader says what is wrong with it."""
    if not (os.path.isfile(path) or os.path.isdir(path)):
        return None
    try:
        return sha256_clip(Path(path))
    except (OSError, ValueError):
        return None


def stat_now(path: str | Path) -> tuple[int, int] | None:
    """`clip_stat`, None where it cannot be read."""
    try:
        return clip_stat(Path(path))
    except OSError:
        return None
