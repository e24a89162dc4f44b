"""A watched folder without a model: what is at rest, what stands in the journal, and what a crash leaves."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from vlmphys.shown import Refused
from vlmphys.watching import JOURNAL, Folder, Journal, watch

pytestmark = pytest.mark.unit


def drop(path: Path, content: bytes, changed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    os.utime(path, ns=(changed, changed))


def test_a_file_is_read_only_after_size_and_time_have_rested(tmp_path):
    now = [0.0]
    folder = Folder(tmp_path, 1.0, lambda: now[0])
    drop(tmp_path / "whole.mp4", b"abc")
    drop(tmp_path / "growing.mp4", b"a")
    drop(tmp_path / "notes.txt", b"abc")
    assert folder.at_rest({}) == []
    now[0] = 0.9
    drop(tmp_path / "growing.mp4", b"ab")
    assert folder.at_rest({}) == []
    now[0] = 1.1
    assert folder.at_rest({}) == [("whole.mp4", (3, 0))]
    drop(tmp_path / "growing.mp4", b"ab", changed=5)
    now[0] = 2.5
    assert folder.at_rest({"whole.mp4": (3, 0)}) == []
    now[0] = 3.6
    assert folder.at_rest({"whole.mp4": (3, 0)}) == [("growing.mp4", (2, 5))]
    assert folder.at_rest({"whole.mp4": (2, 0), "growing.mp4": (2, 5)}) == [], "one that was written over waits anew"


def lines_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / JOURNAL).read_text().splitlines()]


def test_each_clip_is_judged_once_over_restarts_and_a_cut_line(tmp_path):
    judged = []

    def judge(path: Path) -> Refused:
        judged.append(path.name)
        if path.name == "c.mp4" and judged.count("c.mp4") == 1:
            drop(path, b"longer than before", changed=9)        # still being written after all
        return Refused(str(path), f"of {path.stat().st_size} bytes")

    def session() -> list:
        emitted = []
        watch(tmp_path, None, "m, fan", judge, emitted.append, 0, 0.01)
        return emitted
    for name in ("a.mp4", "b/deep.mp4", "\udcff.mp4"):
        drop(tmp_path / name, name.encode(errors="surrogateescape"))
    assert len(session()) == 3
    drop(tmp_path / "c.mp4", b"part", changed=7)
    assert len(session()) == 1 and judged.count("c.mp4") == 2
    journal = (tmp_path / JOURNAL).read_bytes()
    (tmp_path / JOURNAL).write_bytes(journal[:-5])              # killed while it wrote the last line
    assert len(session()) == 1 and session() == []
    assert sorted(row["clip"] for row in lines_of(tmp_path)) == ["a.mp4", "b/deep.mp4", "c.mp4", "\udcff.mp4"]
    assert {row["clip"]: row["error"] for row in lines_of(tmp_path)}["c.mp4"] == "of 18 bytes"


def test_a_journal_of_another_model_of_another_process_or_of_something_else_is_refused(tmp_path):
    path = tmp_path / "state.jsonl"
    with Journal(path, "m1, fan") as journal:
        journal.append("a.mp4", (1, 2), Refused("a.mp4", "is empty"))
        with pytest.raises(ValueError, match="in use"):
            Journal(path, "m1, fan")
    whole = path.read_bytes()
    with pytest.raises(ValueError, match="state.jsonl:1 was judged by 'm1, fan', this is 'm2, fan'"):
        Journal(path, "m2, fan")
    assert path.read_bytes() == whole
    for line in ('{"asked": "m1, fan"}\n', "[1]\n", "\n", "garbage\n"):
        path.write_text(line)
        with pytest.raises(ValueError, match="state.jsonl:1 is no line of a watched folder's journal: give another --state"):
            Journal(path, "m1, fan")
    with pytest.raises(ValueError, match="--watch .*no such folder"):
        watch(tmp_path / "none", None, "m", lambda path: Refused("", ""), print, 0, 0.01)
    with pytest.raises(ValueError, match="cannot be written"):
        Journal(tmp_path / "none" / "state.jsonl", "m")


@pytest.mark.parametrize("removed", ["the folder", "the journal", "the journal, for another one"])
def test_a_folder_or_a_journal_that_goes_away_ends_it(tmp_path, removed):
    folder, state = tmp_path / "line", tmp_path / "state.jsonl"
    drop(folder / "a.mp4", b"a")

    def emit(found: Refused) -> None:
        if removed == "the folder":
            shutil.rmtree(folder)
            return
        state.rename(tmp_path / "state.old")
        if "another" in removed:
            state.write_text("")
    with pytest.raises(ValueError, match="the folder is gone" if removed == "the folder" else "was moved or removed while it was in use"):
        watch(folder, state, "m", lambda path: Refused(str(path), "is empty"), emit, 0, 5)
