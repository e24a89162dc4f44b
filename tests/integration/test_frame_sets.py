"""16 frames, further frame sets and a region of interest, from pack.py through training to the detector."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from clip_files import make_videos
from launching import load_script

from vlmphys.batches import ClipOrder, load_step
from vlmphys.frame_rules import frame_indices
from vlmphys.layout import scan_videos
from vlmphys.pixels import fit_frames
from vlmphys.records import Split, Variant
from vlmphys.shards import open_packed
from vlmphys.splits import make_split, write_split
from vlmphys.verifying import verify
from vlmphys.video import read_frames

pytestmark = pytest.mark.integration

FRAMES, SETS = 16, 3


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    return make_videos(tmp_path_factory.mktemp("videos"), {"fan": ("stuck",)}, clips=4, frames=50)


@pytest.fixture(scope="module")
def packing(videos, repository, tiny_model_folder, tmp_path_factory):
    """Call pack.py within this process; its status and what it said."""
    folder, module = tmp_path_factory.mktemp("data"), load_script(repository / "data_prep/pack.py")
    write_split(folder / "split.json", make_split(scan_videos(videos), "weak", per_anomaly=1))

    def call(capsys, *arguments: object) -> tuple[int, str]:
        capsys.readouterr()
        words = ("--videos", videos, "--split", folder / "split.json", "--model", tiny_model_folder, "--out", folder / "packed", "--workers", 0,
                 "--variants", "multi_turn", *arguments)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["pack.py", *map(str, words)])
            return module.main(), capsys.readouterr().err

    return folder / "packed", call


OPTIONS = ("--frames", FRAMES, "--frame-rule", "jitter", "--frame-sets", SETS, "--roi", "fan=0.25,0,0.5,1", "--fit", "letterbox")


def test_what_is_packed_trained_and_detected(packing, videos, tiny_model_folder, tmp_path, capsys):
    folder, call = packing
    status, said = call(capsys, *OPTIONS)
    assert status == 0 and "warning: --frames 16: this model was trained on 8 frames a clip" in said
    data = open_packed(folder)
    assert data.frames.sets == SETS and data.frames.meta["regions"] == {"fan": [0.25, 0, 0.5, 1]}
    for clip in scan_videos(videos):
        for number in range(SETS):
            row = data.frames.row(clip.clip_id, number)
            wanted = frame_indices(50, FRAMES, "jitter", number, clip.clip_id)
            assert row.frame_index.tolist() == wanted.tolist() and row.box == (16, 0, 32, 48)
            every = read_frames(clip.path, frames=50).frames_THWC
            assert np.array_equal(row.frames_THWC, fit_frames(every[wanted][:, :, 16:48], 32, "letterbox"))
    assert not [problem for check in verify(folder, model=str(tiny_model_folder)) for problem in check.problems]
    before = (folder / "frames/manifest.json").stat().st_mtime_ns
    assert call(capsys, *OPTIONS)[0] == 0 and (folder / "frames/manifest.json").stat().st_mtime_ns == before

    # Training reads another set in each epoch, whatever step it begins at; set 0 is what the detector looks at.
    order = ClipOrder(data.clip_ids(Split.TRAIN), 2, seed=0)
    seen: dict[str, list[int]] = {}
    for step in range(SETS * order.steps_per_epoch):
        for batch in load_step(data, ClipOrder(order.clip_ids, 2, seed=0), step, 0, 1, 2, Variant.MULTI_TURN, 5):
            for clip_id, frames_THWC in zip(batch.clip_ids, batch.frames_BTHWC.numpy()):
                seen.setdefault(clip_id, []).append(next(number for number in range(SETS)
                                                         if np.array_equal(frames_THWC, data.frames.row(clip_id, number).frames_THWC)))
    assert all(sorted(sets) == list(range(SETS)) for sets in seen.values()) and set(seen) == set(order.clip_ids)
    from vlmphys import Detector
    from vlmphys.config import load_config
    from vlmphys.train import train
    run = train(load_config(None, ["engine=plain", "max_steps=2", "per_device_train_batch_size=2"],
                            {"data": str(folder), "model": str(tiny_model_folder), "out": str(tmp_path / "run")}))
    detector, clip = Detector(run, device="cpu"), scan_videos(videos)[0]
    found = detector.detect(clip.path, "fan", explain="none")
    assert np.array_equal(found.pictures, data.frames.row(clip.clip_id).frames_THWC) and np.isfinite(found.score)
    with pytest.raises(ValueError, match="trained on a region of interest of its own"):
        detector.detect(clip.path, "auto")


@pytest.mark.parametrize("options, words", [
    (("--frame-sets", 2), "take --frame-rule jitter or phase"), (("--roi", "fan=1,2,3"), "four numbers are expected"),
    (("--roi", "fann=0,0,1,1"), "no clip has this category (did you mean 'fan'?)"), (("--frames", 400), "use shorter texts, fewer frames"),
    (("--time-limit", 0), "must be more than 0 seconds")])
def test_refusals(packing, capsys, options, words):
    status, said = packing[1](capsys, *options)
    assert status == 2 and words in said


def test_a_region_beyond_the_pictures_is_the_clips_reason(packing, capsys):
    said = packing[1](capsys, "--roi", "0,0,500,48", "--restart")[1]
    assert "the region of interest 0,0,500,48 does not lie within its pictures of 64 x 48 pixels" in said
