"""Trivial cues and the audit that prints them: measured as said, planted leaks listed, a fair bench passed."""

from __future__ import annotations

import errno
import io
import json

import numpy as np
import pytest
from clip_files import encode_clip
from launching import load_script
from rich.console import Console

from vlmphys.cues import CUES, PICTURE_CUES, ClipCues, frame_cues, measure_clip
from vlmphys.layout import scan_videos
from vlmphys.video import VideoError

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def leak_audit(repository):
    return load_script(repository / "tests/bench/leak_audit.py")


def square_at(column: int) -> np.ndarray:
    frame_HWC = np.full((128, 128, 3), 40, np.uint8)
    frame_HWC[40:90, column:column + 50] = np.random.default_rng(0).integers(60, 250, (10, 10, 1)).repeat(5, 0).repeat(5, 1)
    return frame_HWC


def test_motion_cues_grow_with_motion_and_stills_do_not_care():
    still = frame_cues(np.stack([square_at(20)] * 14))
    slow, fast = (frame_cues(np.stack([square_at(20 + step * index) for index in range(14)])) for step in (1, 4))
    assert still["frame difference"] == 0 and still["optical flow"] < 0.01
    assert still["frame difference"] < slow["frame difference"] < fast["frame difference"]
    assert still["optical flow"] < slow["optical flow"] < fast["optical flow"]
    assert (still["first frame"] == fast["first frame"]).all() and (still["last frame"] != fast["last frame"]).any()
    assert all(slow[name].shape == (16 * 16 * 3,) for name in PICTURE_CUES)


def test_cues_of_a_file(tmp_path):
    path = encode_clip(tmp_path / "a.mp4", frames=20)
    cues = measure_clip(path).values
    assert set(cues) == set(CUES)
    assert cues["length"] == 20 and cues["file size"] == path.stat().st_size
    assert cues["mean colour"].shape == (3,)
    (tmp_path / "b.mp4").write_bytes(b"no video")
    assert isinstance(measure_clip(tmp_path / "b.mp4"), VideoError)
    assert "has 9 frame(s), 14 are wanted" in str(measure_clip(encode_clip(tmp_path / "c.mp4", frames=9)))


def bench(tmp_path, states: dict[str, tuple[str, ...]], clips: int = 10):
    """Names of clips alone: the files are empty, and their cues are made up."""
    for category, anomalies in states.items():
        for place in ("train", "test/anomaly_free", *(f"test/{state}" for state in anomalies)):
            (tmp_path / category / place).mkdir(parents=True)
            for number in range(clips):
                (tmp_path / category / place / f"{number:04d}.mp4").touch()
    return scan_videos(tmp_path)


def test_the_audit_names_the_planted_leaks_and_nothing_else(tmp_path, leak_audit):
    clips = bench(tmp_path, {"fan": ("stuck", "bent"), "lamp": ("dark",), "slide": ("derailment", "jam"), "usb": ()})
    generator = np.random.default_rng(0)
    cues = {clip.clip_id: ClipCues({name: generator.normal(0, 1, 768 if name in PICTURE_CUES else 1) for name in CUES}) for clip in clips}
    for clip in clips:
        if clip.state == "bent":
            cues[clip.clip_id].values["last frame"][:60] += 3
        if clip.state == "derailment":
            cues[clip.clip_id].values["last frame"][:] += 3
        if clip.category == "lamp" and clip.label:
            cues[clip.clip_id].values["file size"] += 9
    result = leak_audit.audit(clips, cues, seed=0)
    found = leak_audit.conclusions(result)
    assert [(category, cue) for category, cue, _ in found["solved"]] == [("lamp", "file size")]
    assert [(folder, cue) for folder, cue, _ in found["stills"]] == [("fan/bent", "last frame")]
    assert [(folder, cue) for folder, _, cue, _ in found["visible"]] == [("slide/derailment", "last frame")], "one frame shows it by nature"
    assert result["slide"]["auroc"]["last frame"] > result["slide"]["motion"]["auroc"]["last frame"] + 0.1
    assert result["slide"]["motion"]["anomalous"] == 10 and result["fan"]["motion"]["auroc"] == result["fan"]["auroc"]
    assert found["motion_means"] == []
    assert result["usb"]["reason"].startswith("20 normal and 0 anomalous") and set(result["usb"]["auroc"].values()) == {None}
    assert (result["fan"]["normal"], result["fan"]["anomalous"]) == (20, 20)


def row_of(value: float, error: float) -> dict:
    row = {"normal": 9, "anomalous": 3, "chance_error": error, "reason": "", "auroc": {cue: 0.5 for cue in CUES} | {"file size": value}}
    return {**row, "anomalies": {"stuck": {**row, "auroc": {**row["auroc"], "first frame": value}}}, "visible": {}, "motion": row}


def test_what_chance_gives_too_is_no_conclusion(leak_audit):
    result = {"many": row_of(0.85, 0.1), "few": row_of(0.85, 0.2), "below": row_of(0.75, 0.05)}
    found = leak_audit.conclusions(result)
    assert found["solved"] == [("many", "file size", 0.85)] and found["stills"] == [("many/stuck", "first frame", 0.85)]
    assert found["unclear"] == [("few", "file size", 0.85, 0.4), ("few/stuck", "first frame", 0.85, 0.4)]


@pytest.mark.parametrize("columns", [40, 80, 240])
def test_the_tables_name_every_folder_in_full_however_narrow_the_console(leak_audit, columns):
    name = "a_category_with_a_long_name"
    console = Console(file=io.StringIO(), width=columns, highlight=False)
    leak_audit.show({name: row_of(0.85, 0.2)}, console)
    lines = console.file.getvalue().splitlines()
    assert "\u2026" not in console.file.getvalue()
    (folder,) = [line for line in lines if line.strip().startswith(f"{name}/stuck ")]
    assert folder.split() == [f"{name}/stuck", "9+3", ".5", "\u00b1", "0.40", "0.85", "0.50", "0.50", "0.50", "0.50", "0.85", "0.50", "0.50"]
    unclear = f"too few clips to tell (above 0.80, and within what chance gives): {name} by file size 0.85 (.5 \u00b1 0.40 is chance); "
    assert any(line.startswith(unclear) for line in lines)


def test_the_command_reads_files_and_writes_its_figures(tmp_path, leak_audit, capsys):
    for state, height in (("train", 48), ("test/anomaly_free", 48), ("test/stuck", 64)):
        for number in range(3):
            encode_clip(tmp_path / "videos/fan" / state / f"{number}.mp4", 20 if height == 48 else 26, height, 64, seed=number)
    (tmp_path / "videos/fan/train/bad.mp4").write_bytes(b"")
    arguments = ["--videos", str(tmp_path / "videos"), "--workers", "0"]
    assert leak_audit.main([*arguments, "--json", str(tmp_path / "leaks.json")]) == 0
    written = json.loads((tmp_path / "leaks.json").read_text())
    assert written["categories"]["fan"]["auroc"]["length"] == 1.0
    assert written["unreadable"] == ["fan/train/bad: is empty (0 bytes)"]
    out = capsys.readouterr().out
    assert "categories whose faults of motion a shortcut solves (above 0.80): " in out and "fan by length 1.00" in out
    for bad, message in ((["--categories", "fann"], "'fann' (did you mean 'fan'?)"), (["--workers", "-1"], "--workers is -1"),
                         (["--json", str(tmp_path / "none" / "x.json")], "its folder does not exist"), (["--json", str(tmp_path)], "is a folder"),
                         (["--categories", "fan, gaer,x"], "no clip of category 'gaer'; 'x': there are fan"),
                         (["--categories", " "], "names no category")):
        assert leak_audit.main([*arguments, *bad]) == 2
        assert message in capsys.readouterr().err


def test_a_disk_that_is_full_at_the_end_is_told_in_one_sentence(tmp_path, leak_audit, capsys, monkeypatch):
    for state in ("train", "test/stuck"):
        for number in range(2):
            encode_clip(tmp_path / "videos/fan" / state / f"{number}.mp4", 20, seed=number)

    def full(path, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(leak_audit, "write_atomic", full)
    arguments = ["--videos", str(tmp_path / "videos"), "--workers", "0", "--categories", " fan", "--json", str(tmp_path / "leaks.json")]
    assert leak_audit.main(arguments) == 2
    said = capsys.readouterr()
    assert said.err.endswith(f"error: --json {tmp_path}/leaks.json cannot be written (No space left on device): make room and run it again\n")
    assert "a shortcut solves" in said.out, "what was measured is shown all the same"
