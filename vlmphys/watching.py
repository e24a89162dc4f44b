"""A folder into which clips are dropped: each is judged once when it is whole, also after a restart or a crash. No torch.

The journal is the record: a clip is done when its line stands there, on the disk. A clip is its path in the folder with its size and its
time of change, so that one that is written over, or was broken and is mended, is judged again.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from vlmphys.layout import video_paths
from vlmphys.rows import json_object

JOURNAL = "detections.jsonl"
POLL_SECONDS = 0.2
Mark = tuple[int, int]      # size in bytes, time of change in nanoseconds


class Found(Protocol):
    """What is known of a clip after it was judged, or why it could not be."""

    def as_json(self) -> dict:
        """The fields of its line."""


class Journal:
    """The lines of a watched folder, appended and forced to the disk one by one; what a killed process left half-written is dropped.

    Opening raises ValueError where another process holds the file, where it cannot be written, and where a line is of another model or
    category (`asked`).
    """

    def __init__(self, path: Path, asked: str) -> None:
        self.path, self.asked = Path(path), asked
        self.done: dict[str, Mark] = {}
        self.anomalous_from: float | None = None        # by which the last clip was judged
        try:
            self._stream = open(self.path, "ab")
        except OSError as error:
            raise ValueError(f"{self.path} cannot be written ({error.strerror}): give a file that can be, with --state") from error
        try:
            fcntl.flock(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.truncate(self.path, self._read())
        except BlockingIOError as error:
            self._stream.close()
            raise ValueError(f"{self.path} is in use: another process watches with this journal; stop it, or give another --state") from error
        except ValueError:
            self._stream.close()
            raise

    def _read(self) -> int:
        """Fill `done`; the length in bytes of the whole lines."""
        whole = 0
        with open(self.path, "rb") as stream:
            for number, line in enumerate(stream, start=1):
                if not line.endswith(b"\n"):
                    break
                try:
                    row = json_object(line, self.path, number)
                except ValueError as error:
                    raise ValueError(f"{self.path}:{number} is no line of a watched folder's journal: give another --state") from error
                if row.get("asked") != self.asked:
                    raise ValueError(f"{self.path}:{number} was judged by {row.get('asked')!r}, this is {self.asked!r}: give another --state, "
                                     "or move that file away to judge all clips again")
                try:
                    self.done[row["clip"]] = int(row["size"]), int(row["mtime_ns"])
                except (KeyError, TypeError, ValueError) as error:
                    raise ValueError(f"{self.path}:{number} is no line of a watched folder's journal: give another --state") from error
                self.anomalous_from = row.get("anomalous_from", self.anomalous_from)
                whole += len(line)
        return whole

    def append(self, clip: str, mark: Mark, found: Found) -> None:
        """Write one line, whole and durable. Raises ValueError where the file was moved or removed meanwhile: after a restart nothing would be
        known of what is written into it."""
        self.check()
        row = {"clip": clip, "size": mark[0], "mtime_ns": mark[1], "asked": self.asked, **found.as_json()}
        self._stream.write(json.dumps(row).encode() + b"\n")
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self.done[clip] = mark

    def check(self) -> None:
        """Raise ValueError where the file of that name is not this one any more."""
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(self._stream.fileno()), os.stat(self.path)):
                return
        raise ValueError(f"{self.path} was moved or removed while it was in use: put it back, or start again, which judges all clips anew that "
                         "have no line in it")

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_) -> None:
        self._stream.close()


class Folder:
    """Finds clips that came to rest: the same size and time of change at two looks at least `settle_seconds` apart."""

    def __init__(self, folder: Path, settle_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.folder, self.settle_seconds, self.clock = folder, settle_seconds, clock
        self.waiting: dict[str, tuple[Mark, float]] = {}

    def at_rest(self, done: dict[str, Mark]) -> list[tuple[str, Mark]]:
        """The clips that may be judged now, oldest first; what is still being written waits."""
        now, ready, seen = self.clock(), [], set()
        for path in video_paths(self.folder):
            clip, mark = path.relative_to(self.folder).as_posix(), mark_of(path)
            if mark is None or done.get(clip) == mark:
                continue
            seen.add(clip)
            known, since = self.waiting.get(clip, (None, now))
            if known != mark:
                self.waiting[clip] = mark, now
            elif now - since >= self.settle_seconds:
                ready.append((clip, mark))
        self.waiting = {clip: value for clip, value in self.waiting.items() if clip in seen}
        return sorted(ready, key=lambda item: (item[1][1], item[0]))


def mark_of(path: Path) -> Mark | None:
    """Size and time of change; None where the file is gone."""
    with suppress(OSError):
        facts = path.stat()
        return facts.st_size, facts.st_mtime_ns
    return None


def watch(folder: Path, state: Path | None, asked: str, judge: Callable[[Path], Found], emit: Callable[[Found], None], settle_seconds: float,
          until_idle_seconds: float | None, ready: Callable[[Journal], None] = lambda journal: None) -> None:
    """Judge each clip that appears below `folder`, until nothing has come or grown for `until_idle_seconds` (None: for ever).

    `asked` says by which model and for which category, and must be that of the journal. A clip that changes or vanishes while it is judged
    is not recorded: it waits anew. `ready` is called with the journal once it is this process's own. Raises ValueError for a folder or a journal that
    cannot be used, also where one of them goes away meanwhile.
    """
    if not folder.is_dir():
        raise ValueError(f"--watch {folder}: no such folder; make it first")
    clips = Folder(folder, settle_seconds)
    with Journal(state or folder / JOURNAL, asked) as journal:
        ready(journal)
        busy = time.monotonic()
        while True:
            if not folder.is_dir():
                raise ValueError(f"--watch {folder}: the folder is gone; make it again, or mount its disk, and start again")
            journal.check()
            for clip, mark in clips.at_rest(journal.done):
                found = judge(folder / clip)
                if mark_of(folder / clip) == mark:
                    journal.append(clip, mark, found)
                    emit(found)
                busy = time.monotonic()
            if clips.waiting:
                busy = time.monotonic()
            elif until_idle_seconds is not None and time.monotonic() - busy >= until_idle_seconds:
                return
            time.sleep(POLL_SECONDS)
