"""The heap's settings: large blocks come back from the heap, and a user's own settings stand."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.unit

# Page faults of the later rounds of taking a block of 64 MiB, writing into it and giving it back.
FAULTS = """
import resource
from vlmphys.heap import keep_freed_memory
{first}
import numpy as np
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        np.ones(1 << 26, dtype=np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""
glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the settings are those of glibc")


def faults(first: str) -> int:
    return int(subprocess.run([sys.executable, "-c", FAULTS.format(first=first)], capture_output=True, text=True, check=True).stdout)


@glibc
def test_a_block_that_was_freed_is_not_mapped_anew(monkeypatch):
    monkeypatch.delenv("MALLOC_TRIM_THRESHOLD_", raising=False)
    monkeypatch.delenv("MALLOC_MMAP_THRESHOLD_", raising=False)
    assert faults("assert keep_freed_memory()") * 20 < faults("")


@glibc
def test_what_the_environment_says_stands(monkeypatch):
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "131072")
    faults("assert not keep_freed_memory()")
