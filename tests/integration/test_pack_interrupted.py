"""pack.py against kill -9 at random moments and against a full disk: what it leaves in the end is what an undisturbed run leaves, to the byte."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from clip_files import encode_clip, make_videos
from launching import load_script

from vlmphys import packing
from vlmphys.layout import scan_videos
from vlmphys.packing import FrameSettings, pack_frames
from vlmphys.splits import make_split, write_split

pytestmark = pytest.mark.integration

CLIPS, CLIPS_PER_SHARD, KILLS = 360, 3, 10
TMPFS_MIB = 4


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    """360 names of 12 files: what is tested is the packer, not the decoder."""
    root = make_videos(tmp_path_factory.mktemp("videos"), {"fan": ("stuck",)}, clips=4)
    files = sorted(root.rglob("*.mp4"))
    for number in range(CLIPS - len(files) - 1):
        os.link(files[number % len(files)], files[number % len(files)].with_name(f"more{number:04d}.mp4"))
    encode_clip(root / "fan/train/short.mp4", 5, 48, 64)
    return root


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def pack_in_a_session(script: Path, arguments: list[str]) -> None:
    """pack.py's own main, in a process group of its own, with shards so small that there are many, and rows that are kept one by one."""
    os.setsid()
    packing.CLIPS_PER_SHARD, packing.FRAMES_PER_BATCH = CLIPS_PER_SHARD, 1
    sys.argv = ["pack.py", *arguments]
    sys.exit(load_script(script).main())


def journal_lines(out: Path) -> int:
    try:
        return (out / "frames.partial/progress.jsonl").read_text().count("\n")
    except FileNotFoundError:
        return 0


def gone(pids: list[int]) -> bool:
    return not any(Path(f"/proc/{pid}/status").is_file() and "Z (zombie)" not in Path(f"/proc/{pid}/status").read_text() for pid in pids)


def group_of(leader: int) -> list[int]:
    """The processes of a process group."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and os.getpgid(int(entry.name)) == leader:
                found.append(int(entry.name))
        except ProcessLookupError:
            continue
    return found


def test_killed_ten_times_it_ends_as_if_it_had_not_been(videos, repository, tiny_model_folder, tmp_path):
    write_split(tmp_path / "split.json", make_split(scan_videos(videos), "weak", per_anomaly=1))
    # A server that has torch and transformers loaded, from which each run is forked: twelve starts in the time of two.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["vlmphys.packing", "vlmphys.model", "transformers"])
    script, chance = repository / "data_prep/pack.py", random.Random(0)

    def start(out: Path) -> multiprocessing.Process:
        arguments = ["--videos", videos, "--split", tmp_path / "split.json", "--model", tiny_model_folder, "--out", out, "--workers", 2,
                     "--variants", "multi_turn"]
        process = context.Process(target=pack_in_a_session, args=(script, list(map(str, arguments))))
        process.start()
        return process

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    undisturbed = start(whole)
    undisturbed.join()
    assert undisturbed.exitcode == 0
    moments = []
    for _ in range(KILLS):
        before, process = journal_lines(broken), start(broken)
        # One in three while it starts, the others between, and while, shards are written.
        more = max(0, chance.randint(-2, 4))
        wait = chance.uniform(0, 0.02 if more else 2)
        while process.is_alive() and (os.getpgid(process.pid) != process.pid or more and journal_lines(broken) < before + more):
            time.sleep(0.001)
        time.sleep(wait)
        group = group_of(process.pid)
        os.killpg(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL, "it was done before it could be killed: more clips are needed"
        deadline = time.monotonic() + 30
        while not gone(group) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert gone(group), "a worker outlived the group"
        moments.append(journal_lines(broken))
    assert moments == sorted(moments) and 1 < moments[-1] < CLIPS // CLIPS_PER_SHARD, "no shard that was finished is lost, and work is left"
    last = start(broken)
    last.join()
    assert last.exitcode == 0
    assert tree(broken) == tree(whole) and len(tree(whole)) == CLIPS // CLIPS_PER_SHARD + 5


def catches(pid: int, number: int) -> bool:
    """Whether a process has a handler of its own for a signal."""
    (caught,) = (line.split()[1] for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigCgt"))
    return bool(int(caught, 16) >> (number - 1) & 1)


@pytest.mark.parametrize("number, whole_group, moment", [
    (signal.SIGTERM, False, "decoding"), (signal.SIGINT, True, "decoding"), (signal.SIGINT, True, "importing"), (signal.SIGINT, True, "workers import"),
    (signal.SIGKILL, False, "decoding"), (signal.SIGKILL, False, "workers import")])
def test_however_it_is_stopped_it_says_one_line_and_no_traceback(videos, repository, tiny_model_folder, tmp_path, number, whole_group, moment):
    write_split(tmp_path / "split.json", make_split(scan_videos(videos), "weak", per_anomaly=1))
    out = tmp_path / "packed"
    # A shell that runs the tests behind `&` has SIGINT ignored; the command is to get it.
    process = subprocess.Popen([sys.executable, "data_prep/pack.py", "--videos", videos, "--split", tmp_path / "split.json", "--model",
                                tiny_model_folder, "--out", out, "--workers", "2", "--variants", "multi_turn"],
                               cwd=repository, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    deadline = time.monotonic() + 120
    if moment == "importing":
        while not catches(process.pid, signal.SIGTERM) and time.monotonic() < deadline:     # which Python by itself does not
            time.sleep(0.005)
    elif moment == "workers import":
        # The command, two workers, and the process by which Python keeps track of them.
        while not ((out / "frames.partial").is_dir() and len(group_of(process.pid)) == 4) and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(0.1)
    else:
        while not any(path.stat().st_size > 1000 for path in out.glob("frames.partial/*.tmp")) and time.monotonic() < deadline:
            time.sleep(0.005)
    assert process.poll() is None, process.communicate()
    (os.killpg if whole_group else os.kill)(process.pid, number)
    _, said = process.communicate(timeout=60)       # until the workers, which hold the other end, are gone as well
    assert "Traceback" not in said and "Error" not in said, said
    if number == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert said.splitlines()[-1] == "stopped; the same command goes on from here" and process.returncode == 128 + number


@pytest.fixture
def small_disk(tmp_path):
    """A file system of a few MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={TMPFS_MIB}m", "tmpfs", folder], capture_output=True, text=True) \
        if shutil.which("mount") else None
    if done is None or done.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {done.stderr.strip() if done else 'there is no mount'}")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_stops_it_and_room_lets_it_go_on(videos, small_disk, repository, tiny_model_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "CLIPS_PER_SHARD", 20)
    settings, out, whole = FrameSettings(8, 32), small_disk / "packed", tmp_path / "whole"
    clips = scan_videos(videos)[:120]       # 2.9 MB of pixels
    for folder in (out, whole):
        folder.mkdir()
    pack_frames(clips, whole, settings, 0)
    ballast = small_disk / "ballast"

    def fill() -> None:
        with open(ballast, "ab", buffering=0) as stream:
            for nbytes in (1 << 16, 1 << 12, 1):
                try:
                    while stream.write(b"\0" * nbytes):
                        pass
                except OSError:
                    continue

    def progress(done: int, bad: int) -> None:
        if done == 60:
            while journal_lines(out) < 3:
                time.sleep(0.01)
            fill()

    with pytest.raises(ValueError, match=f"{out}: no space left on the device; make room and run the same command again: finished shards, and all of the next one "):
        pack_frames(clips, out, settings, 0, progress)
    assert not (out / "frames").exists()
    # The command sees at its start that there is no room.
    write_split(tmp_path / "split.json", make_split(scan_videos(videos), "weak", per_anomaly=1))
    done = subprocess.run([sys.executable, "data_prep/pack.py", "--videos", videos, "--split", tmp_path / "split.json", "--model", tiny_model_folder,
                           "--out", small_disk / "other", "--workers", "0"], cwd=repository, capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert "GiB are free; make room, or give another --out" in done.stderr or "no space left on the device" in done.stderr
    shutil.rmtree(small_disk / "other", ignore_errors=True)
    ballast.unlink()
    started = []
    pack_frames(clips, out, settings, 0, lambda done, bad: started.append(done))
    assert started[0] >= 40 and tree(out) == tree(whole)
