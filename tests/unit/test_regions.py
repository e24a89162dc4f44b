"""The region of interest: pixels or shares, for all or for one category, refused in one sentence where it cannot be meant."""

from __future__ import annotations

import numpy as np
import pytest
from clip_files import encode_clip

from vlmphys.frame_rules import VideoError
from vlmphys.packing import ClipPixels, ClipTask, FrameSettings, decode_clip
from vlmphys.pixels import fit_frames
from vlmphys.regions import box_of, check_categories, cut, parse_regions, region_of
from vlmphys.video import read_frames

pytestmark = pytest.mark.unit


def test_for_all_and_for_one():
    regions = parse_regions(["0.25,0,0.5,1", "fan=100,50,640,480"])
    assert regions == {"*": [0.25, 0, 0.5, 1], "fan": [100, 50, 640, 480]}
    assert region_of(regions, "fan") == [100, 50, 640, 480] and region_of(regions, "gear") == [0.25, 0, 0.5, 1] and region_of({}, "gear") is None
    check_categories(regions, ["fan"])
    with pytest.raises(ValueError, match="--roi fan=...: no clip has this category"):
        check_categories(regions, ["gear"])


@pytest.mark.parametrize("texts, words", [
    (["1,2,3"], "four numbers"), (["fan=a,b,c,d"], "four numbers"), (["=0,0,1,1"], "four numbers"), (["0.5,0,0.6,1"], "beyond the picture"),
    (["0,0,0,1"], "more than 0"), (["-1,0,5,5"], "0 or more"), (["0,0,nan,1"], "0 or more"), (["10.5,0,100,100"], "whole numbers"),
    (["fan=0,0,1,1", "fan=0,0,1,1"], "one already for fan"), (["0,0,1,1", "0,0,1,1"], "one already for all")])
def test_what_cannot_be_meant(texts, words):
    with pytest.raises(ValueError, match=words):
        parse_regions(texts)


def test_boxes():
    assert box_of(None, 1080, 1920) == box_of([0, 0, 1, 1], 1080, 1920) == [0, 0, 1920, 1080]
    assert box_of([0.25, 0, 0.5, 1], 1080, 1920) == [480, 0, 960, 1080]
    assert box_of([100, 50, 640, 480], 1080, 1920) == [100, 50, 640, 480]
    for region in ([1500, 0, 640, 480], [0.1, 0.1, 0.001, 0.001]):
        with pytest.raises(VideoError, match="region of interest .* does not lie within its pictures of 96 x 64"):
            box_of(region, 64, 96)
    image = np.arange(64 * 96 * 3).reshape(64, 96, 3)
    assert np.array_equal(cut(image, [0.5, 0.5, 0.5, 0.5]), image[32:, 48:])


def test_a_clip_is_cut_before_it_is_fitted(tmp_path):
    path = encode_clip(tmp_path / "clip.mp4", 20)
    whole = read_frames(path).frames_THWC
    found = decode_clip(ClipTask(str(path), FrameSettings(8, 32, fit="letterbox", regions={"fan": [16, 8, 64, 48]}), "fan/train/clip", "fan"))
    assert isinstance(found, ClipPixels) and found.box == [16, 8, 64, 48]
    assert np.array_equal(found.frames_STHWC[0], fit_frames(whole[:, 8:56, 16:80], 32, "letterbox"))
    beyond = decode_clip(ClipTask(str(path), FrameSettings(8, 32, regions={"*": [0, 0, 200, 48]}), "fan/train/clip", "fan"))
    assert isinstance(beyond, VideoError) and "128 x 96" in str(beyond)


def test_settings_that_contradict_each_other():
    with pytest.raises(ValueError, match="official gives the same frames in each; take --frame-rule jitter or phase"):
        FrameSettings(8, 32, sets=2)
    with pytest.raises(ValueError, match="give --frame-sets 2 or more"):
        FrameSettings(8, 32, "jitter")
