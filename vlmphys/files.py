"""Files that are either whole or not there: atomic writes, folders swapped in one rename, one writer a folder."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import warnings
from contextlib import contextmanager
from pathlib import Path

# What flock answers for a folder on file systems that only lock files (NFS) or nothing: a cluster's run folders often lie there.
NO_LOCKS = (errno.EBADF, errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)


def fsync_folder(folder: Path) -> None:
    """Make the names in a folder durable: a rename survives a power cut only after this."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def fsync_file(path: Path) -> None:
    """Make a closed file's bytes durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomic(path: Path, data: bytes) -> None:
    """Write `data` beside `path`, fsync, rename: a reader sees the old file or the new one, never a part."""
    path = Path(path)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(aside, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
    fsync_folder(path.parent)


def check_target(option: str, path: Path) -> None:
    """Raise ValueError where a file given as `option` could not be written: before the work, so that its result is not lost."""
    if path.is_dir():
        raise ValueError(f"{option} {path} is a folder: give the name of a file")
    if not path.absolute().parent.is_dir():
        raise ValueError(f"{option} {path}: its folder does not exist; make it first")
    if not os.access(path.absolute().parent, os.W_OK):
        raise ValueError(f"{option} {path} cannot be written: give a file in a folder that you may write to")


@contextmanager
def writing(option: str, path: Path, kind: str = "folder"):
    """Turn what the disk refuses meanwhile into a ValueError that names the option, the path and the reason."""
    try:
        yield
    except OSError as error:
        cure = "make room and run it again" if error.errno in (errno.ENOSPC, errno.EDQUOT) else f"give a {kind} that you may write to"
        raise ValueError(f"{option} {path} cannot be written ({error.strerror}): {cure}") from error


def json_bytes(value: object) -> bytes:
    """Indented JSON with sorted keys and a final newline: the same value always gives the same bytes."""
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def read_json(path: Path, cure: str) -> dict:
    """The object in a JSON file. Raises ValueError, naming the file and ending with `cure`, for anything else."""
    try:
        value = json.loads(Path(path).read_bytes())
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; {cure}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON ({error}); {cure}") from error
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); {cure}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: a JSON object is expected, not a {type(value).__name__}; {cure}")
    return value


def logged_rows(path: Path) -> list[dict]:
    """The rows of a JSONL log, none where there is no such file; a last line that is still being written, or was cut off, is left out.

    Raises ValueError, naming the file and the line, for anything else than an object a line.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read ({error}); give the run folder that launch/train.py wrote") from error
    rows, lines = [], text.splitlines()
    for number, line in enumerate(lines, 1):
        if number == len(lines) and not line.endswith("}"):
            break
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}: no JSON ({error.msg}); remove that line, or train the run anew") from error
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number}: a JSON object is expected, not {line[:60]!r}; remove that line, or train the run anew")
        rows.append(row)
    return rows


def old_folder(target: Path) -> Path:
    """Where a folder waits while its successor takes its name; not `frames.old`, which a person may have put there."""
    return target.with_name(f".{target.name}.replaced")


def swap_folder(ready: Path, target: Path) -> None:
    """Give a complete folder the name `target`; what stood there before is removed after the swap."""
    old = old_folder(target)
    if target.exists():
        if old.exists():
            shutil.rmtree(old)
        os.replace(target, old)
    os.replace(ready, target)
    fsync_folder(target.parent)
    if old.exists():
        shutil.rmtree(old)


def finish_swap(ready: Path, target: Path, complete_marker: str) -> None:
    """Finish or undo a swap that a crash cut in two; nothing happens where there was none."""
    old = old_folder(target)
    if not target.exists():
        if (ready / complete_marker).is_file():
            os.replace(ready, target)
        elif old.exists():
            os.replace(old, target)
        else:
            return
        fsync_folder(target.parent)
    if old.exists():
        shutil.rmtree(old)


@contextmanager
def clear_disk_errors(out: Path, kept: str):
    """Turn what a disk refuses inside the block, no space or no right to write, into a ValueError that says so of `out`, and that `kept` are
    not lost; other errors pass."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise ValueError(f"{error.filename or out}: cannot be written ({error.strerror}); give a folder that you may write to: {kept} are "
                             "kept") from error
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ValueError(f"{out}: no space left on the device; make room and run the same command again: {kept} are kept") from error


@contextmanager
def only_writer(folder: Path, doing: str = "packing", passing: bool = False):
    """Hold a folder, made where it is missing, for one process alone. It is removed again where nothing stands in it at the end and it was
    made here, or is a `passing` one, whose name nobody but this program gives.

    Raises ValueError where another process holds it, saying what that is `doing`, and for a folder that cannot be made. The lock ends
    with the process, however that ends.
    """
    ours = passing or not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise ValueError(f"{folder}: this folder cannot be made or opened ({error.strerror})") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise ValueError(f"{folder}: another process is {doing} into this folder; wait for it, or give another one") from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            os.close(handle)
            raise ValueError(f"{folder}: this folder cannot be locked ({error.strerror})") from error
        warnings.warn(f"{folder}: its file system cannot lock a folder; see to it that no other process is {doing} into it", stacklevel=3)
    try:
        yield
    finally:
        if ours and not any(folder.iterdir()):
            folder.rmdir()
        os.close(handle)
