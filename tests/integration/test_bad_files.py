"""Files that real archives hold, through the real command: packed with the right pixels, or quarantined with the cause."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from clip_files import decode_all, encode_clip, moving_images, sound_alone

from vlmphys.pixels import fit_frames
from vlmphys.shards import open_packed

pytestmark = pytest.mark.integration

TIME_LIMIT_SECONDS = 12
# Loaded by every interpreter of the command: files of this name hang or kill the process in one decoder, or hang in both.
SABOTAGE = """
import os, time
def spoiled(real, names):
    def opened(path, *more, **options):
        if os.path.basename(str(path)) in names:
            time.sleep(3600) if "hangs" in str(path) else os._exit(11)
        return real(path, *more, **options)
    return opened
import av
av.open = spoiled(av.open, ("hangs.mp4", "hangs in both.mp4", "crashes in both.mp4"))
try:
    import decord
    decord.VideoReader = spoiled(decord.VideoReader, ("hangs in both.mp4", "crashes in both.mp4"))
except ImportError:
    pass
"""


def whole(path: Path, **options) -> Path:
    return encode_clip(path, 30, 48, 64, **options)


def cut(path: Path, share: float, **options) -> None:
    content = whole(path, **options).read_bytes()
    path.write_bytes(content[:int(len(content) * share)])


def no_rate(path: Path) -> None:
    """An mp4 whose table of durations says 0 for every frame."""
    content = bytearray(whole(path, options={"bf": "0"}).read_bytes())
    place = content.index(b"stts")
    count = int.from_bytes(content[place + 8:place + 12], "big")
    for entry in range(count):
        delta = place + 12 + 8 * entry + 4
        content[delta:delta + 4] = bytes(4)
    path.write_bytes(content)


def variable_rate(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=60, options={"bf": "2"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        moment = 0
        for number, image_HWC in enumerate(moving_images(30, 48, 64)):
            frame = av.VideoFrame.from_ndarray(image_HWC, format="rgb24")
            frame.pts, frame.time_base = moment, Fraction(1, 1000)
            moment += (7, 40, 120)[number % 3]
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def unreadable(path: Path) -> None:
    whole(path).chmod(0)


def link_to_nothing(path: Path) -> None:
    path.symlink_to(path.parent / "nowhere.mp4")


HEVC = dict(codec="libx265", pixels="yuv420p10le", options={"x265-params": "log-level=none:pools=1"})
AV1 = dict(codec="libsvtav1", options={"preset": "12", "svtav1-params": "lp=1"})


def encode_av1(path: Path) -> None:
    """In a process of its own: SVT-AV1, run as root, gives the one that it runs in real-time priority over all else on the machine."""
    process = multiprocessing.get_context("spawn").Process(target=encode_clip, args=(path, 30, 64, 64), kwargs=AV1)
    process.start()
    process.join()
    assert process.exitcode == 0


# (name of the file, what makes it, words of the reason; None: it is packed)
KINDS: dict[str, tuple[str, Callable[[Path], object], str | None]] = {
    "empty": ("empty.mp4", lambda path: path.write_bytes(b""), "is empty (0 bytes)"),
    "cut before its index": ("cut1.mp4", lambda path: cut(path, 0.3), "PyAV: Invalid data"),
    "cut in its frames": ("cut2.mp4", lambda path: cut(path, 0.7, container_options={"movflags": "faststart"}), "ends early"),
    "cut in its last frame": ("cut3.mp4", lambda path: path.write_bytes(whole(path, container_options={"movflags": "faststart"}).read_bytes()[:-1]),
                              "ends early: 1 of its 30 frames"),
    "cut after a few bytes": ("cut4.mkv", lambda path: path.write_bytes(whole(path).read_bytes()[:40]), "PyAV: "),
    "text": ("text.mp4", lambda path: path.write_text("this is no video\n" * 100), "PyAV: Invalid data"),
    "sound alone": ("sound.mp4", sound_alone, "has no video stream"),
    "1 frame": ("one.mp4", lambda path: encode_clip(path, 1, 48, 64), "has 1 frame(s), 8 are wanted"),
    "7 frames": ("seven.mp4", lambda path: encode_clip(path, 7, 48, 64), "has 7 frame(s), 8 are wanted"),
    "0 frames/s": ("norate.mp4", no_rate, None),
    "odd sizes": ("odd.mp4", lambda path: encode_clip(path, 30, 49, 67, pixels="yuv444p"), None),
    "turned by metadata": ("turned.mp4", lambda path: whole(path, rotation=90), None),
    "variable frame rate": ("variable.mp4", variable_rate, None),
    "10-bit HEVC": ("hevc.mp4", lambda path: encode_clip(path, 30, 64, 64, **HEVC), None),
    "AV1": ("av1.mp4", encode_av1, None),
    "no read permission": ("secret.mp4", unreadable, "Permission denied"),
    "broken link": ("link.mp4", link_to_nothing, "No such file"),
    "a name with a newline and other line ends": ("two\nlines \u2028 \x85.mp4", whole, None),
    "a name with quotes": ("it's \"this\" `one` $HOME.mp4", whole, None),
    "a name in other letters": ("Lüfter вентилятор 风扇 🌀.mp4", whole, None),
    "pipe": ("pipe.mp4", os.mkfifo, "is not a regular file"),
    "hangs in one decoder": ("hangs.mp4", whole, None),
    "hangs in both decoders": ("hangs in both.mp4", whole, f"gave no answer in {TIME_LIMIT_SECONDS} s"),
    "crashes both decoders": ("crashes in both.mp4", whole, "the reader's process died (exit status 11)"),
}
NEEDS = {"10-bit HEVC": "libx265", "AV1": "libsvtav1"}


def obstacles() -> dict[str, str]:
    """Kinds that cannot be made here, with the reason."""
    found = {kind: f"this PyAV cannot encode with {codec}" for kind, codec in NEEDS.items() if codec not in av.codecs_available}
    if os.geteuid() == 0 and not shutil.which("setpriv"):
        found["no read permission"] = "root reads every file, and there is no setpriv to take that right away"
    try:
        import decord  # noqa: F401
    except ImportError:
        found["hangs in one decoder"] = "there is one decoder only"
    return found


MISSING = obstacles()


@pytest.fixture(scope="module")
def packed(tmp_path_factory, repository, tiny_model_folder):
    """All kinds among good clips, packed by the command. Yields (videos, packed folder, what was said, both clips' reasons by id)."""
    root = tmp_path_factory.mktemp("bad")
    videos = root / "videos"
    for place in ("fan/train", "fan/test/anomaly_free", "fan/test/stuck"):
        for number in range(3):
            encode_clip(videos / place / f"{number}.mp4", 12, 48, 64, seed=number + len(place))
    for kind, (name, make, _) in KINDS.items():
        if kind not in MISSING:
            make(videos / "fan/test/stuck" / name)
    (root / "site").mkdir()
    (root / "site/sitecustomize.py").write_text(SABOTAGE)
    drop = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 and shutil.which("setpriv") else []
    environment = {**os.environ, "COLUMNS": "200", "PYTHONPATH": os.pathsep.join([str(root / "site"), os.environ.get("PYTHONPATH", "")])}

    def command(script: str, *arguments: object) -> subprocess.CompletedProcess:
        done = subprocess.run([*drop, sys.executable, f"data_prep/{script}.py", *map(str, arguments)], cwd=repository, capture_output=True, text=True,
                              env=environment)
        assert "Traceback" not in done.stderr, done.stderr
        return done

    split = command("split", "--videos", videos, "--out", root / "split.json", "--protocol", "unsupervised", "--allow-duplicates")
    assert split.returncode == 0, split.stderr
    words = ("--videos", videos, "--split", root / "split.json", "--model", tiny_model_folder, "--out", root / "packed", "--variants", "multi_turn",
             "--time-limit", TIME_LIMIT_SECONDS)
    said = command("pack", *words, "--workers", 2)
    assert said.returncode == 0, said.stdout + said.stderr
    strict = command("pack", *words, "--strict")
    assert strict.returncode == 3 and "frames: already packed" in strict.stdout
    assert command("verify", "--data", root / "packed").returncode == 0
    return videos, root / "packed", said.stdout, {bad["clip_id"]: bad["reason"] for bad in open_packed(root / "packed").quarantined()}


@pytest.mark.parametrize("kind", KINDS)
def test_packed_rightly_or_quarantined_with_the_cause(packed, kind):
    if kind in MISSING:
        pytest.skip(MISSING[kind])
    videos, folder, _, reasons = packed
    name, _, words = KINDS[kind]
    clip_id, path = f"fan/test/stuck/{Path(name).stem}", videos / "fan/test/stuck" / name
    if words is not None:
        assert words in reasons[clip_id]
        return
    row = open_packed(folder).frames.row(clip_id)
    every = decode_all(path)
    assert row.source_frames == len(every) == 30
    every = np.rot90(every, axes=(1, 2)) if kind == "turned by metadata" else every
    assert np.array_equal(row.frames_THWC, fit_frames(np.ascontiguousarray(every[row.frame_index]), 32))
    assert (row.source_fps > 0) or kind == "0 frames/s"


def test_the_rest_is_untouched_and_the_summary_counts(packed):
    videos, folder, said, reasons = packed
    data = open_packed(folder)
    bad = [kind for kind, (_, _, words) in KINDS.items() if words is not None and kind not in MISSING]
    good = [kind for kind, (_, _, words) in KINDS.items() if words is None and kind not in MISSING]
    assert len(bad) == len(reasons) and len(data.frames) == 9 + len(good) and len(KINDS) >= 20
    assert f"frames: packed, {9 + len(good)} rows" in said and f"{len(bad)} clip(s) in quarantine" in said
    for place in ("fan/train", "fan/test/anomaly_free", "fan/test/stuck"):
        for number in range(3):
            row = data.frames.row(f"{place}/{number}")
            assert np.array_equal(row.frames_THWC, fit_frames(decode_all(videos / f"{place}/{number}.mp4")[row.frame_index], 32))
