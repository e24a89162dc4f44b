"""Every reply of a chat, on the disk before it counts: one JSON line each, found again by what was asked.

The key of a reply is a digest of the model and the messages, so that a second run asks nothing twice, whatever the order,
the file of predictions or the process that asked.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
from collections.abc import Sequence
from pathlib import Path

from vlmphys.files import fsync_folder
from vlmphys.records import sha256_text

COUNTS = ("max_tokens", "prompt_tokens", "reply_tokens")
NEEDED = ("key", "model", "kind", "text")


def key_of(model: str, messages: Sequence[dict[str, str]]) -> str:
    """What tells one question from another. The server's address is not in it: the same model may answer from another place."""
    asked = {"model": model, "messages": list(messages), "temperature": 0}
    return sha256_text(json.dumps(asked, sort_keys=True, ensure_ascii=False))


class Journal:
    """The replies in a file, and appending to it. Each row is flushed to the disk before `append` returns.

    A last line that a killed process left unfinished is dropped when the file is opened for writing, and its question asked again.
    Raises ValueError for a file that is something else, that cannot be written (naming `flag`, which gave it), or that another process is writing.
    """

    def __init__(self, path: Path, writable: bool = True, flag: str = "--cache") -> None:
        self.path, self._flag = Path(path), flag
        self.rows: dict[str, dict] = {}
        self._lock = threading.Lock()
        self._stream = None
        if not writable and not self.path.is_file():
            raise ValueError(f"no such file of replies: {self.path}; ask a judge first, or give the file as {flag}")
        if writable:
            self._open()
        try:
            whole_bytes = self._read()
        except ValueError:
            self.close()
            raise
        except OSError as error:
            self.close()
            raise ValueError(f"{flag} {self.path} cannot be read ({error.strerror}): give a file that you may read") from error
        if writable:
            os.truncate(self.path, whole_bytes)

    def _open(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._stream = open(self.path, "ab")
        except OSError as error:
            raise ValueError(f"{self._flag} {self.path} cannot be written ({error.strerror}): give a file that you may write to") from error
        try:
            fcntl.flock(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._stream.close()
            raise ValueError(f"{self.path} is being written by another process: wait for it, or give another {self._flag}") from None
        fsync_folder(self.path.parent)

    def _read(self) -> int:
        """Fill `rows`; return the length in bytes of the whole lines."""
        whole_bytes = 0
        with open(self.path, "rb") as stream:
            for number, line in enumerate(stream, start=1):
                if not line.endswith(b"\n"):
                    break
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError):
                    row = None
                if not isinstance(row, dict) or not all(isinstance(row.get(name), str) for name in NEEDED) or not all(
                        type(row.get(name, 0)) is int for name in COUNTS):
                    raise ValueError(f"{self.path}:{number} is no kept reply ({', '.join(NEEDED)} are needed, and counts of tokens are whole "
                                     "numbers): give another file, or delete the line")
                self.rows[row["key"]] = row
                whole_bytes += len(line)
        return whole_bytes

    def append(self, row: dict) -> None:
        """Keep one reply. From any thread."""
        line = json.dumps(row, ensure_ascii=False).encode(errors="replace") + b"\n"
        with self._lock:
            self._stream.write(line)
            self._stream.flush()
            os.fsync(self._stream.fileno())
            self.rows[row["key"]] = row

    def models(self) -> list[str]:
        """The models that were asked, sorted."""
        return sorted({row["model"] for row in self.rows.values()})

    def close(self) -> None:
        """Give the file free for others."""
        if self._stream is not None:
            self._stream.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
