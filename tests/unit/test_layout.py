"""The folder layout: every clip found once, whatever stands around it; what is not the layout is refused by name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from vlmphys.layout import passed_over, scan_videos

pytestmark = pytest.mark.unit


def touch(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return root


def test_clips_are_found_and_sorted(tmp_path):
    touch(tmp_path, "fan/train/0002.mp4", "fan/train/0001.mp4", "fan/test/stuck/0003.MP4", "fan/test/anomaly_free/a b'\n\u00e9.mp4",
          "fan/test/stuck/0003.json", "fan/notes.txt", "fan/test/stuck/._0003.mp4", ".cache/fan/train/0009.mp4")
    (tmp_path / "ball/test/leak").mkdir(parents=True)
    (tmp_path / "ball/test/leak/1.mkv").symlink_to(tmp_path / "nowhere")
    (tmp_path / "fan/test/stuck/again").symlink_to("..")
    found = [(clip.clip_id, clip.category, clip.state, clip.label, clip.in_train_folder) for clip in scan_videos(tmp_path)]
    assert found == [
        ("ball/test/leak/1", "ball", "leak", 1, False),
        ("fan/test/anomaly_free/a b'\n\u00e9", "fan", "anomaly_free", 0, False),
        ("fan/test/stuck/0003", "fan", "stuck", 1, False),
        ("fan/train/0001", "fan", "anomaly_free", 0, True),
        ("fan/train/0002", "fan", "anomaly_free", 0, True)]


@pytest.mark.parametrize("names, message", [
    ((), "holds no clip"), (("fan/train/0001.txt",), "holds no clip"), (("fan/train/a\udcff.mp4",), "is no UTF-8.*rename it"),
    (("fan/0001.mp4",), "outside the layout, first 'fan/0001.mp4'"),
    (("fan/test/0001.mp4", "fan/train/0001.mp4"), "1 video file.*first 'fan/test/0001.mp4'"),
    (("fan/train/0001.mp4", "fan/train/0001.avi"), "would both be clip 'fan/train/0001'")])
def test_what_is_not_the_layout_is_refused(tmp_path, names, message):
    with pytest.raises(ValueError, match=message):
        scan_videos(touch(tmp_path, *names))


def test_files_that_look_like_clips_and_are_none_are_counted(tmp_path):
    touch(tmp_path, "fan/train/0001.M4V", "fan/test/stuck/0002.wmv", "fan/test/stuck/0003.ts", "fan/test/stuck/0002.json", "fan/test/stuck/notes.txt",
          "fan/test/stuck/.DS_Store", "fan/test/stuck/.0003.png", "fan/overview.png", "fan/test/frames/0001_fan_stuck/frame_0001.png")
    assert [clip.clip_id for clip in scan_videos(tmp_path)] == ["fan/test/stuck/0002", "fan/test/stuck/0003", "fan/train/0001"]
    assert passed_over(tmp_path) == ""
    touch(tmp_path, "fan/train/0004.GIF", "fan/test/stuck/0004.vob", "fan/test/stuck/0005.vob")
    assert passed_over(tmp_path).startswith("3 files passed over (.gif, .vob): ")
    assert passed_over(tmp_path / "fan/overview.png") == ""


def test_no_such_folder(tmp_path):
    with pytest.raises(ValueError, match="no such folder"):
        scan_videos(tmp_path / "vidoes")
    with pytest.raises(ValueError, match="is a file"):
        scan_videos(touch(tmp_path, "videos.mp4") / "videos.mp4")


def test_splitting_imports_no_heavy_library():
    code = "import sys, vlmphys.layout, vlmphys.splits; print(sorted({'torch', 'av', 'pyarrow', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
