"""The lock that torch leaves behind when a compilation is killed, and at which every later start would wait for ever.

torch's extension loader makes a file `lock` in the build folder and removes it at the end; after a `kill -9` or a power cut it stays, and
all that need the extension wait for it without a word (torch/utils/file_baton.py).
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import psutil

LOCK = "lock"
FRESH_SECONDS = 10.0


def build_folder(name: str) -> Path:
    """Where torch builds the extension `name`."""
    from torch.utils.cpp_extension import get_default_build_root
    root = os.environ.get("TORCH_EXTENSIONS_DIR")
    if root:
        return Path(root) / name
    # The loader puts a folder for Python's version and torch's CUDA between root and name.
    found = sorted(Path(get_default_build_root()).glob(f"*/{name}/{LOCK}"), key=lambda path: path.stat().st_mtime)
    return found[-1].parent if found else Path(get_default_build_root()) / name


def remove_stale_lock(folder: Path) -> bool:
    """Remove the lock of a compilation that is no longer running; returns whether there was one.

    A lock is left alone while a build runs in that folder, and in its first seconds, before the build has started.
    """
    lock = folder / LOCK
    try:
        age_seconds = time.time() - lock.stat().st_mtime
    except FileNotFoundError:
        return False
    if age_seconds < FRESH_SECONDS or _is_building(folder):
        return False
    lock.unlink(missing_ok=True)
    return True


def _is_building(folder: Path) -> bool:
    for process in psutil.process_iter(["name", "cwd"]):
        if process.info["name"] in ("ninja", "ninja-build") and process.info["cwd"] and Path(process.info["cwd"]) == folder.resolve():
            return True
    return False
