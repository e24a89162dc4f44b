"""Windows of a video: the frames of plain decoding, whatever the codec; and which packets are left out."""

from __future__ import annotations

import numpy as np
import pytest
from clip_files import decode_all, encode_clip

from vlmphys.video import VideoError
from vlmphys.windows import _needed_packets, read_windows, window_starts

pytestmark = pytest.mark.unit
CODECS = {
    "h264.mp4": {}, "short_groups.mp4": {"options": {"g": "12"}},
    "open_groups.mkv": {"options": {"x264-params": "open-gop=1:keyint=12:bframes=3"}},
    "no_key_frames.mkv": {"options": {"x264-params": "intra-refresh=1:keyint=20"}},
    "hidden_frames.webm": {"codec": "libvpx-vp9", "options": {"deadline": "realtime", "cpu-used": "8"}}}


@pytest.mark.parametrize("name", list(CODECS))
@pytest.mark.parametrize(("window", "stride"), [(2, 1), (1, 2.6)])
def test_frames_are_those_of_plain_decoding(tmp_path, name, window, stride):
    path = encode_clip(tmp_path / name, frames=120, height=48, width=64, rate=20, **CODECS[name])
    reference, found = decode_all(path), list(read_windows(path, window, stride))
    assert len(found) == len(window_starts(6, window, stride)) and found[-1].stop_seconds == pytest.approx(6, abs=0.06)
    for one in found:
        assert np.array_equal(one.clip.frames_THWC, reference[one.clip.frame_index])
        assert one.clip.frame_index[0] == pytest.approx(20 * one.start_seconds, abs=1) and np.all(one.seconds_T < one.stop_seconds)


def test_windows_begin_every_stride_and_the_last_one_ends_with_the_video():
    assert window_starts(10, 4, 2) == [0, 2, 4, 6] and window_starts(11, 4, 2) == [0, 2, 4, 6, 7] and window_starts(3, 4, 2) == [0]
    assert len(window_starts(120, 4, 2)) == 59


def test_stretches_without_a_wanted_frame_are_not_decoded():
    packets = [(time, time % 10 == 0, False) for time in range(40)]
    needed, entries = _needed_packets(packets, {3: 0, 25: 1})
    assert np.flatnonzero(needed).tolist() == [0, 1, 2, 3, 20, 21, 22, 23, 24, 25] and entries == {20}
    # A frame shown before the key frame that precedes it in the file leans on the group before.
    leading = [(0, True, False), (2, False, False), (1, False, False), (5, True, False), (4, False, False)]
    assert np.flatnonzero(_needed_packets(leading, {4: 0})[0]).tolist() == [0, 1, 2, 3, 4]


def test_what_cannot_be_cut_is_refused(tmp_path):
    path = encode_clip(tmp_path / "a.mp4", frames=40, height=48, width=64, rate=10)
    with pytest.raises(VideoError, match="holds 5 frame.*longer --window"):
        list(read_windows(path, 0.5, 1))
    with pytest.raises(ValueError, match="longer than 0"):
        list(read_windows(path, 1, 0))
