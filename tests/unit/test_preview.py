"""Contact sheets and animations: every state is there, the animation moves, other folders are left alone."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from vlmphys.preview import ANIMATION_TILE, TILE, animation, contact_sheet, overview, write_preview

pytestmark = pytest.mark.unit


def test_a_sheet_has_a_row_a_state_and_eight_pictures_that_differ():
    sheet = np.asarray(contact_sheet("rubber_band", 0, "physad"))
    assert sheet.shape[0] == pytest.approx(2 * TILE, abs=12) and sheet.shape[1] > 8 * TILE
    rows = [sheet[top:top + TILE, -8 * (TILE + 3):].astype(int) for top in (3, TILE + 6)]
    assert np.abs(rows[0] - rows[1]).mean() > 2, "a normal and a cracked band look alike"
    first, third = (rows[0][:, start:start + TILE] for start in (0, 2 * (TILE + 3)))
    assert np.abs(first - third).mean() > 1, "nothing moves"


def test_the_overview_has_a_row_a_category():
    heights = [overview(categories, 0, "physad").height for categories in (("fan",), ("fan", "clip"))]
    assert heights[1] - heights[0] > 40


def test_the_animation_shows_every_state_and_moves():
    frames = animation("clip", 0, "physad")
    assert len(frames) == 120 / 3
    assert frames[0].width == pytest.approx(3 * ANIMATION_TILE, abs=12)
    assert np.abs(np.asarray(frames[0]).astype(int) - np.asarray(frames[20])).mean() > 1


def test_files_are_written_and_written_again(tmp_path):
    folder, told = tmp_path / "pictures", []
    files = write_preview(folder, ("rubber_band",), 0, "physad", told.append)
    assert [path.name for path in files] == ["rubber_band.png", "rubber_band.webp", "mechanisms.png"] and told == ["rubber_band"]
    before = [path.read_bytes() for path in files]
    with Image.open(files[1]) as moving:
        assert moving.n_frames == 180 / 3
    assert [path.read_bytes() for path in write_preview(folder, ("rubber_band",), 0, "physad")] == before
    assert write_preview(folder, ("rubber_band",), 1, "physad")[0].read_bytes() != before[0]


def test_pictures_of_an_earlier_preview_go_and_others_stay(tmp_path):
    folder = tmp_path / "pictures"
    write_preview(folder, ("rubber_band", "usb"), 0, "physad")
    for name in ("fan.png", "notes.png"):
        (folder / name).write_text("mine: no preview has made it")
    write_preview(folder, ("usb",), 0, "physad")
    assert sorted(path.name for path in folder.iterdir()) == ["fan.png", "mechanisms.png", "notes.png", "preview.json", "usb.png", "usb.webp"]


def test_a_folder_of_others_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="exists and is not a preview: give a new or an empty folder"):
        write_preview(tmp_path, ("fan",), 0, "physad")
    with pytest.raises(ValueError, match="exists and is not a preview"):
        write_preview(tmp_path / "notes.txt", ("fan",), 0, "physad")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_the_command_wants_a_bench_or_a_preview(repository, tmp_path):
    def run(*arguments):
        return subprocess.run([sys.executable, "data_prep/simulate.py", *arguments], cwd=repository, capture_output=True, text=True)

    both = run("--out", str(tmp_path / "v"), "--preview", str(tmp_path / "p"))
    assert both.returncode == 2 and "not allowed with" in both.stderr and list(tmp_path.iterdir()) == []
    assert "one of the arguments --out --preview is required" in run().stderr
    unread = run("--preview", str(tmp_path / "p"), "--clips-per-state", "12", "--workers", "1")
    assert unread.returncode == 2 and list(tmp_path.iterdir()) == []
    assert unread.stderr.startswith("error: --clips-per-state, --workers: --preview, which writes no bench, does not read them: leave them out")
    assert "unrecognized arguments: --categorie" in run("--preview", str(tmp_path / "p"), "--categorie", "usb").stderr
    (tmp_path / "file").touch()
    refused = run("--preview", str(tmp_path / "file" / "p"), "--categories", "usb")
    assert refused.returncode == 2 and refused.stderr.endswith("p cannot be written (Not a directory): give a folder that you may write to\n")
    (tmp_path / "file").unlink()
    unknown = run("--preview", str(tmp_path / "p"), "--categories", "gaer")
    assert unknown.returncode == 2 and "did you mean 'gear'" in unknown.stderr and list(tmp_path.iterdir()) == []
