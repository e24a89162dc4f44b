"""The simulated bench as files: layout, resumption, refusal of folders that are not its own."""

from __future__ import annotations

import errno
import json

import av
import numpy as np
import pytest

from vlmphys.files import clear_disk_errors, only_writer
from vlmphys.simulation import CRF, SimulationConfig, encode_h264, encoder_crf, plan_clips, simulate_bench, write_clip

pytestmark = pytest.mark.unit


def small(categories: str = "rubber_band", **changes) -> SimulationConfig:
    settings = {"clips_per_state": 1, "train_clips": 2, "size": 32, "appearance": "physad", "seed": 0} | changes
    return SimulationConfig.create(categories, **settings)


def test_the_plan_holds_every_folder_of_the_layout(tmp_path):
    jobs = plan_clips(tmp_path, small("fan,ball", clips_per_state=3, train_clips=None))
    folders = {}
    for job in jobs:
        folders[job.path.parent.relative_to(tmp_path).as_posix()] = folders.get(job.path.parent.relative_to(tmp_path).as_posix(), 0) + 1
    assert folders == {"fan/train": 6, "fan/test/anomaly_free": 3, "fan/test/stuck": 3, "fan/test/uneven": 3, "fan/test/vibrate": 3,
                       "ball/train": 6, "ball/test/anomaly_free": 3, "ball/test/leak": 3, "ball/test/unfull": 3}
    assert len({job.seed for job in jobs}) == len(jobs) == 33
    assert not {job.seed for job in jobs} & {job.seed for job in plan_clips(tmp_path, small("fan,ball", clips_per_state=3, seed=1))}


def test_a_clip_is_h264_at_60_fps_of_the_published_length_with_its_truth_beside_it(tmp_path):
    job = plan_clips(tmp_path, small())[-1]
    assert write_clip(job) == 180
    with av.open(str(job.path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.average_rate, stream.width, stream.height) == ("h264", 60, 32, 32)
        assert sum(1 for _ in container.decode(video=0)) == 180
    truth = json.loads(job.path.with_suffix(".json").read_text())
    assert truth["state"] == "crack" and truth["seed"] == job.seed and truth["crf"] == encoder_crf(job.seed)
    assert {len(values) for values in truth["trajectory"].values()} == {180}
    start, end = truth["fault_span_seconds"]
    assert 0 < start < end == 3.0


def test_a_second_run_writes_only_what_is_missing(tmp_path, capsys):
    root = tmp_path / "videos"
    assert simulate_bench(root, small(), workers=1) == 4
    before = {path: path.read_bytes() for path in root.rglob("*.mp4")}
    lost = sorted(before)[0]
    lost.unlink()
    assert simulate_bench(root, small(), workers=1) == 1
    assert {path: path.read_bytes() for path in root.rglob("*.mp4")} == before
    assert simulate_bench(root, small(), workers=1) == 0
    assert "all 4 clips are there" in capsys.readouterr().out


def test_a_bench_of_other_settings_and_a_folder_of_others_are_left_alone(tmp_path):
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not a simulated bench"):
        simulate_bench(theirs, small())
    assert sorted(path.name for path in theirs.iterdir()) == ["notes.txt"]
    ours = tmp_path / "ours"
    ours.mkdir()
    (ours / "simulation.json").write_text(json.dumps({"seed": 5}))
    with pytest.raises(ValueError, match="holds a bench with"):
        simulate_bench(ours, small())


def test_a_second_writer_is_refused_and_changes_nothing(tmp_path):
    root = tmp_path / "videos"
    with only_writer(root, "simulating"):
        with pytest.raises(ValueError, match="videos: another process is simulating into this folder; wait for it, or give another one"):
            simulate_bench(root, small(), workers=1)
        assert list(root.iterdir()) == []
    assert simulate_bench(root, small(), workers=1) == 4


def test_what_a_killed_run_had_begun_is_cleaned_away_and_nothing_else(tmp_path):
    root = tmp_path / "videos"
    root.mkdir()
    (root / ".simulation.json.123.tmp").write_bytes(b"half of the settings")
    simulate_bench(root, small(), workers=1)
    train, notes = root / "rubber_band/train", root / "notes"
    notes.mkdir()
    for folder, names in ((train, ("0000.partial", "0001.123.partial", ".0000.json.123.tmp")), (notes, ("mine.partial",))):
        for name in names:
            (folder / name).write_bytes(b"half a clip")
    simulate_bench(root, small(), workers=1)
    assert [path.name for path in root.rglob("*.partial")] == ["mine.partial"] and not list(root.rglob(".*.tmp"))


def test_a_clip_that_cannot_be_encoded_leaves_no_part_of_itself(tmp_path, monkeypatch):
    def full(path, *_):
        path.write_bytes(b"half a clip")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("vlmphys.simulation.encode_h264", full)
    with pytest.raises(OSError, match="No space"):
        write_clip(plan_clips(tmp_path, small())[0])
    assert not list(tmp_path.rglob("*.partial")) and not list(tmp_path.rglob("*.mp4"))


def test_a_folder_that_cannot_be_made_is_told_in_a_sentence(tmp_path):
    (tmp_path / "file").touch()
    for root, reason in ((tmp_path / "file" / "videos", "cannot be made or opened"), (tmp_path / "file", "is not a simulated bench")):
        with pytest.raises(ValueError, match=reason):
            simulate_bench(root, small(), workers=1)


@pytest.mark.parametrize(("changes", "message"), [
    ({"size": 0}, "--size is 0"), ({"size": 65}, "even number"), ({"clips_per_state": 0}, "--clips-per-state is 0"),
    ({"train_clips": 0}, "--train-clips is 0"), ({"seed": -1}, "--seed is -1: give 0 or a number above it"),
    ({"categories": "zzz"}, r"allowed are ball, button, .*, \.\.\., and \d+ more, or 'all'"), ({"categories": "gaer"}, "did you mean 'gear'"), ({"categories": " , "}, "names none")])
def test_bad_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        small(**changes)


def test_a_bad_number_of_workers_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="--workers is 0"):
        simulate_bench(tmp_path / "videos", small(), workers=0)
    assert not (tmp_path / "videos").exists()


def test_a_full_disk_is_told_in_a_sentence_and_other_errors_are_not_hidden(tmp_path):
    with pytest.raises(ValueError, match=r"no space left on the device; make room and run the same command again: finished clips are kept"):
        with clear_disk_errors(tmp_path, "finished clips"):
            raise av.error.OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(ValueError, match=r"clip.mp4: cannot be written \(Permission denied\); give a folder that you may write to"):
        with clear_disk_errors(tmp_path, "finished clips"):
            raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "clip.mp4"))
    with pytest.raises(OSError, match="Input/output error"):
        with clear_disk_errors(tmp_path, "finished clips"):
            raise OSError(errno.EIO, "Input/output error")


def test_the_quality_of_encoding_hangs_on_the_seed_alone_and_covers_its_range_in_every_state(tmp_path):
    jobs = plan_clips(tmp_path, small("fan", clips_per_state=120, train_clips=120))
    for state in {job.state for job in jobs}:
        drawn = [encoder_crf(job.seed) for job in jobs if job.state == state]
        assert min(drawn) <= CRF[0] + 1 and max(drawn) >= CRF[1] - 1 and set(drawn) <= set(range(CRF[0], CRF[1] + 1))
        assert abs(np.mean(drawn) - sum(CRF) / 2) < 2


@pytest.mark.parametrize("crf", CRF)
def test_encoding_keeps_the_picture(tmp_path, crf):
    gradient = np.tile(np.linspace(0, 255, 64).astype(np.uint8)[None, :, None], (64, 1, 3))
    assert encode_h264(tmp_path / "x.mp4", [gradient] * 3, 64, crf) == 3
    with av.open(str(tmp_path / "x.mp4")) as container:
        decoded = next(container.decode(video=0)).to_ndarray(format="rgb24")
    assert np.abs(decoded.astype(int) - gradient).mean() < 6


def test_a_coarser_quality_takes_fewer_bytes(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (4, 64, 64, 3)).astype(np.uint8)
    for crf in CRF:
        encode_h264(tmp_path / f"{crf}.mp4", noise, 64, crf)
    fine, coarse = ((tmp_path / f"{crf}.mp4").stat().st_size for crf in CRF)
    assert coarse < 0.8 * fine
