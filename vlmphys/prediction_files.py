"""predictions.jsonl as it is written: row by row, resumed, by one process or by several, none of which waits for another. No torch.

One process writes into the file itself. Of several, each writes a part beside it (`predictions.jsonl.rank0`, ...), and whoever ends last
merges the parts into the file, by clip id; the parts of a launch that was killed are merged by the next one that starts. A hidden file
beside it is locked by all that write, which the system undoes when a process dies: it says how many ranks share the clips.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Collection
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

from vlmphys.files import write_atomic
from vlmphys.predictions import UNCALIBRATED, Calibration, Explain, Identity, Prediction
from vlmphys.records import Verdict
from vlmphys.rows import json_object


@dataclass(frozen=True)
class RowRules:
    """What all rows of one file have in common. `side`: all clips that may stand in it; None: any."""

    identity: Identity
    explain: Explain
    side: frozenset[str] | None = None
    calibration: Calibration = UNCALIBRATED
    describe: bool = False

    def check(self, row: dict, path: Path, number: int) -> str:
        """The row's clip id. Raises ValueError, naming file and line, where it belongs to another model, variant, grounding or data folder, was
        made with another `explain`, `describe` or `calibration`, or is of a clip of another side."""
        where = f"{path}:{number}"
        for key, wanted in asdict(self.identity).items():
            if row.get(key) != wanted and key == "data_fingerprint":
                raise ValueError(f"{where} was predicted from another data folder, or from other data in the same folder: give the data that the "
                                 f"file was begun with, another --out, or delete {path} to predict again")
            if row.get(key) != wanted:
                raise ValueError(f"{where} was predicted with {key} {row.get(key)!r}, this run has {wanted!r}: "
                                 f"give another --out, or delete {path} to predict again")
        clip_id, verdict = row.get("clip_id"), row.get("verdict")
        if not isinstance(clip_id, str) or verdict not in list(Verdict):
            raise ValueError(f"{where} is no row of predictions.jsonl: it needs a clip_id and a verdict")
        score = row.get("score")
        if isinstance(score, float) and (row.get("probability"), verdict) != (self.calibration.probability(score),
                                                                              self.calibration.verdict(score).value):
            raise ValueError(f"{where} was predicted with another calibration than the run has now: give another --out, or delete "
                             f"{path} to predict again")
        if (row.get("explanation") is not None) != self.explain.wants(Verdict(verdict)):
            raise ValueError(f"{where} {'has an' if row.get('explanation') is not None else 'has no'} explanation, which --explain "
                             f"{self.explain.value} does not give: use the same --explain as before, or another --out")
        if ("description" in row) != self.describe:
            raise ValueError(f"{where} was predicted {'with' if 'description' in row else 'without'} --describe: do the same as before, or give "
                             "another --out")
        if self.side is not None and clip_id not in self.side:
            raise ValueError(f"{where}: clip {clip_id!r} is not on the side that --split asks for, and one file holds one side: "
                             "give another --out, or the --split that the file was begun with")
        return clip_id

    def line(self, row: Prediction) -> bytes:
        """A row as it stands in the file."""
        values = asdict(row)
        if not self.describe:
            del values["description"]
        return json.dumps(values, ensure_ascii=False).encode() + b"\n"


def rows_in(path: Path, rules: RowRules) -> tuple[dict[str, bytes], int]:
    """The whole lines of a file by clip id, and their length in bytes. Raises ValueError as `RowRules.check`, and for a clip that stands there
    twice. A last line without its newline is what a killed process leaves: it does not count."""
    found: dict[str, bytes] = {}
    whole_bytes = 0
    with open(path, "rb") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.endswith(b"\n"):
                break
            clip_id = rules.check(json_object(line, path, number), path, number)
            if clip_id in found:
                raise ValueError(f"{path}:{number}: clip {clip_id!r} stands there twice: delete one of its rows")
            found[clip_id] = line
            whole_bytes += len(line)
    return found, whole_bytes


def check_out(path: Path) -> None:
    """Raise ValueError for an --out that is a folder or cannot be written."""
    if path.is_dir():
        raise ValueError(f"--out {path} is a folder: give a file, for instance {path / 'predictions.jsonl'}")
    nearest = next(parent for parent in path.absolute().parents if parent.exists())
    if not os.access(path if path.exists() else nearest, os.W_OK) or not nearest.is_dir():
        raise ValueError(f"--out {path} cannot be written: give a file in a folder that you may write to")


class PredictionWriter:
    """Appends rows to a file, each flushed to the disk, and knows which clips stand there already.

    Opening checks the rows that are there and raises ValueError as `rows_in`; the file is left as it was. A half-written last line is
    dropped, and its clip is predicted again. A new file is created by its first row, which raises ValueError where another process was
    faster.
    """

    def __init__(self, path: Path, rules: RowRules) -> None:
        self.path = Path(path)
        self.rules = rules
        self.done: set[str] = set()
        check_out(self.path)
        self._stream: BinaryIO | None = None
        if self.path.exists():
            self._open()
            try:
                found, whole_bytes = rows_in(self.path, rules)
                os.truncate(self.path, whole_bytes)
                self.done = set(found)
            except ValueError:
                self._stream.close()
                raise

    def _open(self) -> None:
        """Create or reopen the file and lock it, so that two processes cannot write the same clips."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._stream = open(self.path, "ab")
        try:
            fcntl.flock(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._stream.close()
            raise ValueError(f"{self.path} is being written by another process: wait for it or give another --out") from error

    def append(self, row: Prediction) -> None:
        """Write one row, whole, and flush it."""
        assert row.clip_id not in self.done, row.clip_id
        if self._stream is None:
            self._open()
            # There was no file when this writer was opened, so its rows, if there are any now, were never compared with ours.
            if os.fstat(self._stream.fileno()).st_size:
                self._stream.close()
                raise ValueError(f"{self.path} was written by another process in the meantime: start this one again to go on from "
                                 "its rows, or give another --out")
        self._stream.write(self.rules.line(row))
        self._stream.flush()
        self.done.add(row.clip_id)

    def close(self) -> None:
        """Give the file and its lock back."""
        if self._stream is not None:
            self._stream.close()

    def __enter__(self) -> PredictionWriter:
        return self

    def __exit__(self, *_) -> None:
        self.close()


class SharedFile:
    """predictions.jsonl as one of `ranks` processes writes it; a context in which `append` is called, and at whose end parts are merged
    unless others still write. Every rank has clips of its own, which follow from the list of all clips and the number of ranks.

    Raises ValueError as `PredictionWriter`, and while processes of a launch with another number of ranks are alive. `done`: the clips that
    have a row in the file or in this rank's part.
    """

    def __init__(self, path: Path, rules: RowRules, rank: int = 0, ranks: int = 1) -> None:
        self.path, self.rules, self.rank, self.ranks = Path(path), rules, rank, ranks
        self.rows: int | None = None        # of the whole file, once this process has merged it or was the only one

    def __enter__(self) -> SharedFile:
        check_out(self.path)
        self._made = not self.path.parent.exists()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = None
        try:
            self._join()
            own = self.path if self.ranks == 1 else self.path.with_name(f"{self.path.name}.rank{self.rank}")
            self._writer = PredictionWriter(own, self.rules)
            self.done = set(self._writer.done)
            if self.ranks > 1 and self.path.exists():
                self.done.update(rows_in(self.path, self.rules)[0])
        except BaseException:
            self._leave(merge=False)
            raise
        return self

    def append(self, row: Prediction) -> None:
        """Write one row, whole, and flush it."""
        self._writer.append(row)
        self.done.add(row.clip_id)

    def __exit__(self, *_) -> None:
        try:
            self._writer.close()
        finally:                # what could not be written before, on a full disk say, cannot be now
            self._leave(merge=True)

    def _join(self) -> None:
        """Become one of those who write, for which a shared lock stands; where nobody else is one, merge first what an earlier launch left."""
        place = self.path.with_name(f".{self.path.name}.lock")
        while True:
            self._lock = open(place, "a+b")
            alone = self._locked(fcntl.LOCK_EX | fcntl.LOCK_NB)
            if alone and self._is(place):
                self._merge()
                self._lock.truncate(0)
                self._lock.write(str(self.ranks).encode())
                self._lock.flush()
            # Going over from one lock to another gives up the first: what stands in the file, and whether it is the file still, is looked at after.
            fcntl.flock(self._lock, fcntl.LOCK_SH)
            if self._is(place):
                break
            self._lock.close()
        self._lock.seek(0)
        others = self._lock.read().decode()
        if others != str(self.ranks) or (self.ranks == 1 and not alone):
            raise ValueError(f"{self.path} is being written by another process (one of {others or 'several'}): wait for it or give another --out")

    def _leave(self, merge: bool) -> None:
        """Stop being one of those who write; the last one merges, and takes the lock's file away, and a folder that was made for nothing."""
        if self._lock is not None:
            # The shared lock is given up even where this fails: of several that leave, the last to ask finds no other.
            try:
                if self._locked(fcntl.LOCK_EX | fcntl.LOCK_NB):
                    if merge:
                        self.rows = self._merge() or len(self.done)
                    Path(self._lock.name).unlink(missing_ok=True)
            finally:
                self._lock.close()
        if self._made:
            with suppress(OSError):
                self.path.parent.rmdir()

    def _locked(self, kind: int) -> bool:
        try:
            fcntl.flock(self._lock, kind)
        except BlockingIOError:
            return False
        return True

    def _is(self, place: Path) -> bool:
        """Whether the open file is the one of that name, and not one that was taken away since."""
        try:
            return os.path.samestat(os.fstat(self._lock.fileno()), os.stat(place))
        except FileNotFoundError:
            return False

    def _parts(self) -> list[Path]:
        """The parts that lie beside the file, by rank."""
        form = re.compile(re.escape(self.path.name) + r"\.rank(\d+)")
        folder = self.path.parent
        found = [(int(match[1]), path) for path in (folder.iterdir() if folder.is_dir() else ()) if (match := form.fullmatch(path.name))]
        return [path for _, path in sorted(found)]

    def _merge(self) -> int:
        """Put the rows of all parts into the file, sorted by clip id, and remove the parts; the number of rows, 0 where there are no parts. To be
        called where nobody writes."""
        parts = self._parts()
        if not parts:
            return 0
        rows: dict[str, bytes] = {}
        for path in (self.path, *parts):
            for clip_id, line in rows_in(path, self.rules)[0].items() if path.exists() else ():
                rows.setdefault(clip_id, line)      # what stands in two files was merged before its part could be removed
        if rows:
            write_atomic(self.path, b"".join(rows[clip_id] for clip_id in sorted(rows)))
        for path in parts:
            path.unlink()
        return len(rows)


def share(clip_ids: Collection[str], rank: int, ranks: int) -> list[str]:
    """The clips of one rank among the sorted ones: the same whatever is done already, so that ranks need not agree on it."""
    return sorted(clip_ids)[rank::ranks]
