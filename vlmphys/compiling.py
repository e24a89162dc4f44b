"""DeepSpeed's ops are compiled at their first use in an environment; here that is announced, refused clearly, and freed of stale locks.

torch's extension loader makes a file `lock` in the build folder and removes it at the end; after a `kill -9` or a power cut it stays, and
all that need the extension wait for it without a word (torch/utils/file_baton.py). And what one virtual environment has compiled is
compiled anew for another, since the paths of its headers differ; with one folder for all they would undo each other's work.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import psutil

LOCK = "lock"
# What DeepSpeed raises where an op does not compile, or was compiled for another torch or Python and does not load.
BUILD_ERRORS = (ImportError, RuntimeError, OSError)
FRESH_SECONDS = 10.0


def load_op(builder: Any, what: str, announce: bool, cure: str) -> None:
    """Compile and load an op by DeepSpeed's `builder`, about a minute at its first use in an environment (.venv). `what` and `cure` are for messages.

    Raises ValueError where it cannot be built or loaded.
    """
    os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(build_root()))
    folder = build_folder(builder.name)
    # Also where it is compiled already: a process that is killed while it loads the library leaves the lock, too.
    if os.environ.get("LOCAL_RANK", "0") == "0":
        wait_for_lock(folder)
    if announce and not any(folder.parent.glob(f"**/{builder.name}.so")):
        announce_build(what)
    try:
        builder.load(verbose=False)
    except BUILD_ERRORS as error:
        raise ValueError(f"deepspeed: {what} could not be compiled or loaded ({error.__cause__ or error}): {cure}; if it worked before, "
                         f"remove {folder}, which holds what was compiled") from error


def announce_build(what: str) -> None:
    """The line before a wait in which nothing else is printed. On stderr, since what a command prints on stdout may be JSON."""
    print(f"building {what} (once in each environment (.venv), about a minute)", file=sys.stderr, flush=True)


def build_root() -> Path:
    """Where ops are compiled: TORCH_EXTENSIONS_DIR, else a folder of this host in this virtual environment, or beside torch's own.

    A folder for each host, because a cluster's nodes may share their disk and not their processor, for which the code is made.
    """
    from torch.utils.cpp_extension import get_default_build_root
    if "TORCH_EXTENSIONS_DIR" in os.environ:
        return Path(os.environ["TORCH_EXTENSIONS_DIR"])
    in_environment = sys.prefix != sys.base_prefix and os.access(sys.prefix, os.W_OK)
    root = Path(sys.prefix) / "torch_extensions" if in_environment else Path(get_default_build_root()) / "vlmphys"
    return root / os.uname().nodename


def build_folder(name: str) -> Path:
    """Where the extension `name` is compiled."""
    return build_root() / name


def wait_for_lock(folder: Path) -> None:
    """Return when no other process compiles in that folder: at once, or when it has ended, or died and left its lock."""
    told = False
    while (folder / LOCK).exists() and not remove_stale_lock(folder):
        if not told:
            print(f"waiting for another process that compiles in {folder}", file=sys.stderr, flush=True)
            told = True
        time.sleep(0.5)


def remove_stale_lock(folder: Path) -> bool:
    """Remove the lock of a compilation that is no longer running; returns whether there was one.

    A lock is left alone while a build runs in that folder, and in its first seconds, before the build has started.
    """
    lock = folder / LOCK
    if not lock.exists() or is_held(folder):
        return False
    lock.unlink(missing_ok=True)
    return True


def is_held(folder: Path) -> bool:
    """Whether the folder's lock is that of a compilation that runs, or may be about to; False without a lock."""
    try:
        age_seconds = time.time() - (folder / LOCK).stat().st_mtime
    except FileNotFoundError:
        return False
    return age_seconds < FRESH_SECONDS or _is_building(folder)


def _is_building(folder: Path) -> bool:
    for process in psutil.process_iter(["name", "cwd"]):
        if process.info["name"] in ("ninja", "ninja-build") and process.info["cwd"] and Path(process.info["cwd"]) == folder.resolve():
            return True
    return False
