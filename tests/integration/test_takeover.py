"""Packing again: what was decoded is taken over, what was damaged is made anew, and the bytes are always those of a pack from nothing."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from clip_files import encode_clip, make_videos

from launching import load_script

from vlmphys import packing
from vlmphys.layout import Clip, scan_videos
from vlmphys.packing import FrameSettings, PackReport, check_kept, pack_frames
from vlmphys.shards import FramesTable
from vlmphys.splits import make_split, write_split
from vlmphys.unfinished import keep_rows, kept_files

pytestmark = pytest.mark.integration

SETTINGS = FrameSettings(8, 32)
CLIPS = 18      # of which 17 are good


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(packing, "CLIPS_PER_SHARD", 6)
    monkeypatch.setattr(packing, "FRAMES_PER_BATCH", 2)


@pytest.fixture(scope="module")
def first(tmp_path_factory) -> Path:
    """18 clips in two categories, one of them bad."""
    root = make_videos(tmp_path_factory.mktemp("videos"), {"fan": ("stuck",), "hinge": ("falloff",)}, clips=3)
    (root / "fan/train/0001.mp4").write_bytes(b"no video at all")
    return root


@pytest.fixture
def videos(first, tmp_path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(first, tmp_path / "videos"))


@pytest.fixture
def decoded(monkeypatch) -> list[str]:
    """The files that are decoded, as they are."""
    names, really = [], packing.read_picked

    def read_picked(path, *arguments, **options):
        names.append("/".join(Path(path).parts[-3:]))
        return really(path, *arguments, **options)

    monkeypatch.setattr(packing, "read_picked", read_picked)
    return names


def pack(clips: list[Clip], out: Path, settings: FrameSettings = SETTINGS, **options) -> PackReport:
    out.mkdir(exist_ok=True)
    return pack_frames(clips, out, settings, 0, **options)


def same_as_fresh(out: Path, clips: list[Clip], settings: FrameSettings = SETTINGS) -> bool:
    """Whether a folder holds what a pack from nothing writes."""
    fresh = out.with_name("fresh")
    pack(clips, fresh, settings)
    wanted = tree(fresh)
    shutil.rmtree(fresh)
    return tree(out) == wanted


def touch(path: Path) -> None:
    os.utime(path, ns=(1, path.stat().st_mtime_ns + 10 ** 9))


def test_a_touched_file_is_hashed_and_not_decoded(videos, tmp_path, decoded):
    out, clips = tmp_path / "packed", scan_videos(videos)
    assert pack(clips, out).decoded == CLIPS
    decoded.clear()
    report = pack(clips, out)
    assert report.skipped and not decoded
    touch(videos / "fan/train/0000.mp4")
    report = pack(clips, out)
    assert (report.skipped, report.taken_over, report.decoded) == (False, 17, 1)
    assert decoded == ["fan/train/0001.mp4"], "the bad clip is tried again"
    assert same_as_fresh(out, clips)


def test_only_new_and_changed_clips_are_decoded(videos, tmp_path, decoded):
    out = tmp_path / "packed"
    (videos / "fan/train/0001.mp4").unlink()
    pack(scan_videos(videos), out)
    encode_clip(videos / "fan/test/stuck/0000.mp4", 20, 48, 64, seed=99)       # changed
    encode_clip(videos / "fan/test/stuck/0007.mp4", 20, 48, 64, seed=98)       # added
    (videos / "hinge/train/0001.mp4").unlink()                                 # removed
    (videos / "hinge/test/falloff").rename(videos / "hinge/test/loose")        # another label
    (videos / "fan/train/0000.mp4").rename(videos / "fan/train/0005.mp4")      # another name
    decoded.clear()
    clips = scan_videos(videos)
    report = pack(clips, out)
    assert sorted(decoded) == ["test/stuck/0000.mp4", "test/stuck/0007.mp4"]
    assert (report.taken_over, report.decoded, report.rows) == (15, 2, 17)
    assert FramesTable.open(out / "frames").row("hinge/test/loose/0000").state == "loose"
    assert same_as_fresh(out, clips)


def test_a_row_is_not_taken_where_its_frames_hang_on_the_id_or_its_region_on_the_category(videos, tmp_path, decoded):
    (videos / "fan/train/0001.mp4").unlink()
    for name, settings, change in (
            ("jitter", FrameSettings(8, 32, "jitter", sets=2), lambda clip: replace(clip, clip_id=clip.clip_id + "b")),
            ("regions", FrameSettings(8, 32, regions={"fan": [0, 0, 0.5, 1]}), lambda clip: replace(clip, category="hinge"))):
        out, clips = tmp_path / name, scan_videos(videos)
        pack(clips, out, settings)
        decoded.clear()
        assert clips[0].category == "fan"
        clips = [change(clips[0]), *clips[1:]]
        report = pack(clips, out, settings)
        assert (report.taken_over, len(decoded)) == (16, 1)
        assert same_as_fresh(out, clips, settings)


def test_a_clip_that_changes_while_it_is_read_gives_its_pixels_to_no_other(videos, tmp_path, decoded, monkeypatch):
    """Its row would hold the hash of the new bytes beside the pixels of the old ones."""
    (videos / "fan/train/0001.mp4").unlink()
    changing, out, clips, really = videos / "fan/train/0000.mp4", tmp_path / "packed", scan_videos(videos), packing.read_picked

    def read_picked(path, *arguments, **options):
        clip = really(path, *arguments, **options)
        if Path(path) == changing:
            encode_clip(changing, 20, 48, 64, seed=99)
        return clip

    with monkeypatch.context() as patched:
        patched.setattr(packing, "read_picked", read_picked)
        report = pack(clips, out)
    assert [(bad["clip_id"], bad["reason"][:26]) for bad in report.quarantine] == [("fan/train/0000", "changed while it was read:")]
    decoded.clear()
    report = pack(clips, out)
    assert (report.quarantine, decoded) == ((), ["fan/train/0000.mp4"]) and same_as_fresh(out, clips)


def test_restart_and_other_settings_decode_all(videos, tmp_path, decoded):
    out, clips = tmp_path / "packed", scan_videos(videos)
    pack(clips, out)
    before = tree(out)
    assert pack(clips, out, restart=True).decoded == CLIPS and tree(out) == before
    for other in (replace(SETTINGS, reader="pyav"), replace(SETTINGS, fit="stretch")):
        with pytest.raises(ValueError, match=r"settings differ \((reader auto -> pyav|fit crop -> stretch)\), and 17 finished"):
            check_kept(clips, out, other)
        report = pack(clips, out, other)
        assert (report.taken_over, report.decoded) == (0, CLIPS) and same_as_fresh(out, clips, other)
        with pytest.raises(ValueError, match=r"settings differ \((reader pyav -> auto|fit stretch -> crop)\)"):
            check_kept(clips, out, SETTINGS)
        pack(clips, out, restart=True)


def test_the_command_says_what_it_took_over_and_repairs_dialogues_too(videos, repository, tiny_model_folder, tmp_path, monkeypatch, capsys):
    """With worker processes, which hash the files."""
    write_split(tmp_path / "split.json", make_split(scan_videos(videos), "weak", per_anomaly=1))
    module, out = load_script(repository / "data_prep/pack.py"), tmp_path / "packed"

    def said(*more: str) -> str:
        words = ["--videos", videos, "--split", tmp_path / "split.json", "--model", tiny_model_folder, "--out", out, "--workers", 2, *more]
        monkeypatch.setattr("sys.argv", ["pack", *map(str, words)])
        assert module.main() == 0
        return capsys.readouterr().out

    monkeypatch.chdir(repository)
    assert "taken over" not in said()
    before = tree(out)
    flip(out / "frames/frames-00002.arrow", 0.5)
    flip(out / "dialogues/dialogues-00000.arrow", 0.4)
    assert "frames: already packed" in said() and tree(out) != before
    text = said("--repair")
    assert "11 taken over, 6 decoded" in text and "dialogues: packed" in text and tree(out) == before
    for path in videos.rglob("*.mp4"):
        touch(path)
    assert "17 taken over, 1 decoded" in said()
    after = tree(out)
    assert [name for name in before if before[name] != after[name]] == ["frames/manifest.json"]
    (out / "dialogues/dialogues-00000.arrow").unlink()
    assert "frames: already packed" in said() and tree(out) == after


def stop(clips: list[Clip], out: Path, at: int, **options) -> None:
    """Pack until so many clips are done, then be stopped as by Ctrl-C."""
    def progress(done: int, bad: int) -> None:
        if done == at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(clips, out, progress=progress, **options)


def test_ctrl_c_loses_no_clip_of_an_unfinished_shard(videos, tmp_path, decoded):
    out, clips = tmp_path / "packed", scan_videos(videos)
    stop(clips, out, 11)        # five clips into the second shard
    with pytest.raises(ValueError, match=r"settings differ \(fit crop -> stretch\), and \d+ finished"):
        check_kept(clips, out, replace(SETTINGS, fit="stretch"))
    before = tree(out)
    assert len(decoded) == 11
    decoded.clear()
    stop(clips, out, 9)         # and again while the rows are copied
    assert not set(decoded) - {"fan/train/0001.mp4"} and tree(out) != before
    report = pack(clips, out)
    bad = [clip.clip_id for clip in clips].index("fan/train/0001") >= 6
    assert (report.taken_over, report.decoded) == (10, 7 + bad)
    assert same_as_fresh(out, clips)


def test_rows_of_an_unfinished_pack_of_other_clips_are_taken_over(videos, tmp_path, decoded):
    out = tmp_path / "packed"
    (videos / "fan/train/0001.mp4").unlink()
    stop(scan_videos(videos), out, 11)
    encode_clip(videos / "fan/test/anomaly_free/0007.mp4", 20, 48, 64, seed=98)
    decoded.clear()
    stop(scan_videos(videos), out, 5)
    encode_clip(videos / "fan/test/anomaly_free/0008.mp4", 20, 48, 64, seed=97)
    clips = scan_videos(videos)
    report = pack(clips, out)
    assert len(decoded) == len(set(decoded)) == CLIPS - 1 + 2 - 11
    assert report.taken_over == 12 and same_as_fresh(out, clips)


def test_rows_of_clips_that_have_changed_names_are_kept_over_two_interruptions(videos, tmp_path, decoded):
    (videos / "fan/train/0001.mp4").unlink()
    out, names = tmp_path / "packed", [clip.path for clip in scan_videos(videos)]
    stop(scan_videos(videos), out, 17)
    for path in names:
        path.rename(path.with_suffix(".aside"))
    for number, path in enumerate(names):
        path.with_suffix(".aside").rename(names[(number + 6) % len(names)])
    stop(scan_videos(videos), out, 7)       # a shard of six clips is whole, of which each had the name of another
    pack(scan_videos(videos), out)
    assert len(decoded) == CLIPS - 1 and same_as_fresh(out, scan_videos(videos))


def test_an_interrupted_restart_goes_on_and_takes_no_older_row(videos, tmp_path):
    (videos / "fan/train/0001.mp4").unlink()
    out, clips = tmp_path / "packed", scan_videos(videos)
    pack(clips, out)
    stop(clips, out, 8, restart=True)
    assert FramesTable.open(out / "frames").clip_ids, "the former folder stands"
    report = pack(clips, out, restart=True)
    assert (report.taken_over, report.decoded) == (8, 9)
    assert pack(clips, out, restart=True).taken_over == 0
    stop([*clips[:3], *clips[4:]], out, 8)
    assert pack(clips, out, restart=True).taken_over == 0, "an unfinished run without --restart does not count"


def kill_in_the_middle(videos: Path, out: Path) -> None:
    """A pack that is killed when one shard of six clips is whole, and two batches of two clips of the next are written."""
    def lines(name: str) -> int:
        path = out / "frames.partial" / name
        return path.read_text().count("\n") if path.is_file() else 0

    def progress(done: int, bad: int) -> None:
        if done == 11:
            while lines("progress.jsonl") < 2 or lines("frames-00001.arrow.batches") < 2:
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)

    pack_frames(scan_videos(videos), out, SETTINGS, 0, progress)


@pytest.mark.parametrize("damage, kept", [
    (lambda shard, batches: None, 4),
    (lambda shard, batches: shard.write_bytes(shard.read_bytes() + b"torn"), 4),
    (lambda shard, batches: os.truncate(shard, shard.stat().st_size - 1), 2),
    (lambda shard, batches: flip(shard, 0.9), 2),
    (lambda shard, batches: flip(shard, 0.1), 0),
    (lambda shard, batches: batches.write_bytes(batches.read_bytes() + b'{"rows": 6, "by'), 4),
    (lambda shard, batches: batches.write_bytes(batches.read_bytes()[:-10] + b"\0" * 9 + b"\n"), 2),
    (lambda shard, batches: batches.unlink(), 0),
    (lambda shard, batches: shard.rename(shard.with_suffix("")), 4)],      # killed between its own name and the journal's line
    ids=("nothing", "more", "cut", "last batch", "first batch", "list cut", "list torn", "no list", "renamed"))
def test_kill_9_keeps_the_whole_batches_of_an_unfinished_shard(videos, tmp_path, decoded, damage, kept):
    (videos / "fan/train/0001.mp4").unlink()
    out, clips = tmp_path / "packed", scan_videos(videos)
    out.mkdir()
    process = multiprocessing.get_context("fork").Process(target=kill_in_the_middle, args=(videos, out))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    damage(out / "frames.partial/frames-00001.arrow.tmp", out / "frames.partial/frames-00001.arrow.batches")
    report = pack(clips, out)
    assert (report.taken_over, report.decoded, len(decoded)) == (6 + kept, 11 - kept, 11 - kept)
    assert same_as_fresh(out, clips)


@pytest.mark.parametrize("damage", (lambda path: os.truncate(path, 0), lambda path: os.truncate(path, 1000), lambda path: flip(path, 0.5),
                                    lambda path: path.write_bytes(bytes(path.stat().st_size))), ids=("empty", "cut", "flipped", "zeros"))
def test_kept_rows_that_are_damaged_are_not_taken_over_and_stop_nothing(videos, tmp_path, decoded, damage):
    """As a power cut leaves a file whose bytes were still on their way to the disk."""
    (videos / "fan/train/0001.mp4").unlink()
    out, clips = tmp_path / "packed", scan_videos(videos)
    stop(clips, out, 5)
    keep_rows(out / "frames.partial", "of other clips")
    damage(*kept_files(out / "frames.partial"))
    decoded.clear()
    check_kept(clips, out, SETTINGS)
    assert pack(clips, out).taken_over == 0 and len(decoded) == CLIPS - 1 and same_as_fresh(out, clips)


def killed_at(monkeypatch, number: int, run: Callable[[], object]) -> bool:
    """Run, but end just before the change of names in the file system that has this number, as by kill -9; returns whether there was one."""
    changes, main = [0], threading.main_thread()

    def counting(really: Callable) -> Callable:
        def change(*arguments, **options):
            changes[0] += threading.current_thread() is main
            if changes[0] >= number and threading.current_thread() is main:      # and nothing tidies up after it
                raise KeyboardInterrupt
            return really(*arguments, **options)
        return change

    with monkeypatch.context() as patched:
        for name in ("replace", "unlink", "rmdir", "link", "truncate", "mkdir"):
            patched.setattr(os, name, counting(getattr(os, name)))
        with suppress(KeyboardInterrupt):
            run()
            return False
    return True


@pytest.mark.parametrize("begun", (True, False), ids=("unfinished", "finished"))
def test_killed_at_any_change_of_names_it_decodes_no_clip_again(videos, tmp_path, decoded, monkeypatch, begun):
    """Clips come after a pack that was finished, or that was stopped half way: the next one is killed at each step, and run once more."""
    (videos / "fan/train/0001.mp4").unlink()
    former = tmp_path / "former"
    pack(scan_videos(videos)[:5] if begun else scan_videos(videos), former)
    if begun:
        stop(scan_videos(videos), former, 11)
    for new in (7, 8):
        encode_clip(videos / f"fan/test/anomaly_free/000{new}.mp4", 20, 48, 64, seed=90 + new)
    clips, missing, whole, number, killed = scan_videos(videos), 2 + (CLIPS - 1 - 11 if begun else 0), tmp_path / "whole", 0, True
    pack(clips, whole)
    while killed:
        number += 1
        out = Path(shutil.copytree(former, tmp_path / "packed"))
        decoded.clear()
        killed = killed_at(monkeypatch, number, lambda: pack(clips, out))
        pack(clips, out)
        assert len(decoded) == len(set(decoded)) == missing, f"killed before change {number}"
        assert tree(out) == tree(whole)
        shutil.rmtree(out)
    assert number > 10


def flip(path: Path, share: float) -> None:
    content = bytearray(path.read_bytes())
    content[int(len(content) * share)] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("repair", (False, True))
@pytest.mark.parametrize("damage", (Path.unlink, lambda path: os.truncate(path, 1000), lambda path: flip(path, 0.5)),
                         ids=("missing", "cut", "flipped"))
def test_only_a_damaged_shard_is_made_anew(videos, tmp_path, decoded, damage, repair):
    out, clips = tmp_path / "packed", scan_videos(videos)
    pack(clips, out)
    before, kept = tree(out), (out / "frames/frames-00000.arrow").stat().st_ino
    shard = out / "frames/frames-00001.arrow"
    rows = [line["rows"] for line in json.loads((out / "frames/manifest.json").read_text())["shards"]]
    damage(shard)
    seen = not shard.is_file() or shard.stat().st_size == 1000
    if seen:
        with pytest.raises(ValueError, match="frames-00001.arrow: .*; run the same data_prep/pack.py command again with --repair"):
            FramesTable.open(out / "frames")
    decoded.clear()
    report = pack(clips, out, repair=repair)
    if not (seen or repair):
        assert report.skipped and tree(out) != before, "a flipped byte is looked for when asked"
        return
    assert (report.taken_over, report.decoded, len(decoded)) == (sum(rows) - rows[1], 6, 6)
    assert tree(out) == before and (out / "frames/frames-00000.arrow").stat().st_ino == kept


def test_no_row_is_taken_from_a_damaged_shard(videos, tmp_path, decoded):
    """Copied, a flipped pixel would get a sha256 that calls it right."""
    out, clips = tmp_path / "packed", scan_videos(videos)
    pack(clips, out)
    flip(out / "frames/frames-00001.arrow", 0.5)
    touch(videos / "fan/train/0000.mp4")
    decoded.clear()
    pack(clips, out)
    assert 6 <= len(decoded) <= 7 and same_as_fresh(out, clips)


def test_a_damaged_list_of_the_quarantine_is_made_anew(videos, tmp_path, decoded):
    out, clips = tmp_path / "packed", scan_videos(videos)
    pack(clips, out)
    before = tree(out)
    (out / "frames/quarantine.jsonl").unlink()
    decoded.clear()
    pack(clips, out)
    assert decoded == ["fan/train/0001.mp4"] and tree(out) == before
