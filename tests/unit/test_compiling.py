"""A lock left by a killed compilation does not hold up the next start; one of a running compilation does."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from vlmphys.compiling import build_folder, load_op, remove_stale_lock, wait_for_lock

pytestmark = pytest.mark.unit


def old_lock(folder):
    (folder / "lock").touch()
    os.utime(folder / "lock", (time.time() - 60,) * 2)


def test_an_old_lock_without_a_build_is_removed(tmp_path):
    old_lock(tmp_path)
    assert remove_stale_lock(tmp_path)
    assert not (tmp_path / "lock").exists()
    assert not remove_stale_lock(tmp_path)


def test_a_fresh_lock_is_left(tmp_path):
    (tmp_path / "lock").touch()
    assert not remove_stale_lock(tmp_path)
    assert (tmp_path / "lock").exists()


def test_the_lock_of_a_running_build_is_left(tmp_path):
    old_lock(tmp_path)
    ninja = tmp_path / "ninja"
    ninja.symlink_to(sys.executable)
    with subprocess.Popen([str(ninja), "-c", "import sys; sys.stdin.read()"], cwd=tmp_path, stdin=subprocess.PIPE) as build:
        try:
            assert not remove_stale_lock(tmp_path)
        finally:
            build.kill()
    assert remove_stale_lock(tmp_path)


def test_a_start_waits_for_a_running_build_and_goes_on_when_it_dies(tmp_path, capsys):
    old_lock(tmp_path)
    ninja = tmp_path / "ninja"
    ninja.symlink_to(sys.executable)
    with subprocess.Popen([str(ninja), "-c", "import time; time.sleep(2)"], cwd=tmp_path):
        wait_for_lock(tmp_path)
    assert not (tmp_path / "lock").exists()
    assert capsys.readouterr().err.count("waiting for another process") == 1
    wait_for_lock(tmp_path)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("built", "announce", "said"), [(False, True, 1), (True, True, 0), (False, False, 0)])
def test_the_wait_for_a_build_is_announced_before_it_begins(built, announce, said, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    if built:
        (tmp_path / "an_op").mkdir()
        (tmp_path / "an_op" / "an_op.so").touch()
    seen = []
    builder = SimpleNamespace(name="an_op", load=lambda verbose: seen.append(capsys.readouterr()))
    load_op(builder, "DeepSpeed's op", announce, "cure")
    (before,) = seen
    assert before.err.count("building DeepSpeed's op (once in each environment (.venv), about a minute)\n") == said and before.out == ""


def test_another_environment_compiles_elsewhere(tmp_path, monkeypatch):
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR", raising=False)
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    assert tmp_path in build_folder("cpu_adam").parents


def test_the_build_folder_follows_torchs_variable(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    assert build_folder("cpu_adam") == tmp_path / "cpu_adam"
