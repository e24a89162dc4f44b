"""Exact frames: whatever the fast reader skips, what it returns is what plain decoding returns."""

from __future__ import annotations

import os
from pathlib import Path

import av
import numpy as np
import pytest
from clip_files import decode_all, encode_clip, sound_alone

from vlmphys import video
from vlmphys.frame_rules import frame_indices
from vlmphys.video import VideoError, read_frames

pytestmark = pytest.mark.unit

ENCODINGS = {
    "h264 with a pyramid of B-frames": dict(codec="libx264", options={"x264-params": "bframes=7:b-pyramid=normal:b-adapt=0"}),
    "h264, three B-frames, none referred to": dict(codec="libx264", options={"x264-params": "bframes=3:b-pyramid=none:b-adapt=0"}),
    "h264 without B-frames": dict(codec="libx264", options={"bf": "0"}),
    "h264, open groups of 10": dict(codec="libx264", options={"x264-params": "bframes=3:keyint=10:open-gop=1"}),
    "h264, interlaced": dict(codec="libx264", options={"flags": "+ildct+ilme", "bf": "2"}),
    "h264 in Matroska": dict(codec="libx264", options={"bf": "3"}, suffix=".mkv"),
    "h264, lossless 4:4:4": dict(codec="libx264", options={"qp": "0"}, pixels="yuv444p"),
    "hevc, 10 bits": dict(codec="libx265", options={"x265-params": "log-level=none:bframes=4:pools=1"}, pixels="yuv420p10le"),
    "mpeg4 with B-frames in AVI, without time stamps": dict(codec="mpeg4", options={"bf": "2"}, suffix=".avi"),
    "h264 in a transport stream": dict(codec="libx264", options={"bf": "2"}, suffix=".ts"),
    "mpeg2 in a program stream": dict(codec="mpeg2video", options={"bf": "2"}, suffix=".mpg"),
    "Windows Media": dict(codec="wmv2", suffix=".wmv"),
    "h264 in Flash": dict(codec="libx264", options={"bf": "2"}, suffix=".flv"),
    "vp8 with hidden frames": dict(codec="libvpx", options={"auto-alt-ref": "1", "lag-in-frames": "8"}, suffix=".webm"),
}


@pytest.mark.parametrize("name", ENCODINGS)
def test_frames_are_those_of_plain_decoding(tmp_path, name):
    encoding = dict(ENCODINGS[name])
    path = encode_clip(tmp_path / f"clip{encoding.pop('suffix', '.mp4')}", 37, **encoding)
    every = decode_all(path)
    assert len(every) == 37
    for rule in ("official", "hf"):
        for frames in (8, 13):
            clip = read_frames(path, rule, frames, "pyav")
            wanted = frame_indices(37, frames, rule)
            assert clip.n_frames == 37 and clip.frame_index.tolist() == wanted.tolist()
            assert clip.frames_THWC.dtype == np.uint8 and np.array_equal(clip.frames_THWC, every[wanted])
            assert clip.fps == pytest.approx(60, rel=0.02)


@pytest.mark.parametrize("size", [(96, 128), (50, 34), (98, 62)])
def test_decord_gives_the_same_pixels(tmp_path, size):
    path = encode_clip(tmp_path / "clip.mp4", 25, *size, options={"bf": "3"})
    ours, theirs = read_frames(path, reader="pyav"), read_frames(path, reader="decord")
    assert np.array_equal(ours.frames_THWC, theirs.frames_THWC)
    assert (ours.frame_index.tolist(), ours.n_frames) == (theirs.frame_index.tolist(), theirs.n_frames)


class CountingStream:
    """A stream that counts what goes into its decoder and what comes out."""

    def __init__(self, stream):
        self.stream, self.codec_context, self.packets, self.frames = stream, stream.codec_context, 0, 0

    def decode(self, packet):
        self.packets += packet is not None
        decoded = self.stream.decode(packet)
        self.frames += len(decoded)
        return decoded


def test_no_frame_is_decoded_in_vain(tmp_path):
    path = encode_clip(tmp_path / "clip.mp4", 60, options={"x264-params": "bframes=3:b-pyramid=none:b-adapt=0"})
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        packets, times = video._packets(container, stream, keep=True)
        counting = CountingStream(stream)
        wanted = [times[index] for index in frame_indices(60, 8, "hf")]
        assert video._decode_at_times(counting, packets, wanted) is not None
    # hf's last frame is number 52: what follows it stays packed; three in four frames are B-frames that nothing refers to.
    assert counting.packets <= 56
    assert counting.frames <= 26


def test_a_file_too_large_to_keep_its_packets_gives_the_same(tmp_path, monkeypatch):
    path = encode_clip(tmp_path / "clip.mp4", 40, options={"bf": "3"})
    kept = read_frames(path, reader="pyav")
    monkeypatch.setattr(video, "PACKETS_KEPT_BYTES", 0)
    assert np.array_equal(read_frames(path, reader="pyav").frames_THWC, kept.frames_THWC)


def test_turned_by_metadata(tmp_path):
    path = encode_clip(tmp_path / "clip.mp4", 12, rotation=90)
    with av.open(str(path)) as container:
        first = next(container.decode(video=0))
        assert first.rotation % 360 == 90
        lying = first.to_ndarray(format="rgb24")
    clip = read_frames(path, reader="pyav")
    assert clip.frames_THWC.shape == (8, 128, 96, 3)
    assert np.array_equal(clip.frames_THWC[0], np.rot90(lying))


def test_frame_rules():
    for n_frames in (8, 9, 60, 61, 120, 180, 240, 1001):
        assert frame_indices(n_frames, 8, "official").tolist() == np.linspace(0, n_frames - 1, 8).astype(int).tolist()
        assert frame_indices(n_frames, 8, "hf").tolist() == np.arange(0, n_frames, n_frames / 8).astype(int).tolist()
        for frames in range(1, 9):
            for rule in ("official", "hf"):
                wanted = frame_indices(n_frames, frames, rule)
                assert len(set(wanted.tolist())) == frames and wanted[0] == 0 and wanted[-1] < n_frames
    assert frame_indices(60, 8, "official")[-1] == 59 and frame_indices(60, 8, "hf")[-1] == 52


@pytest.mark.parametrize("n_frames", [14, 15, 60, 240])
def test_pairs_are_neighbours_from_the_first_two_to_the_last_two(n_frames):
    pairs = frame_indices(n_frames, 14, "pairs").reshape(7, 2)
    assert (pairs[:, 1] == pairs[:, 0] + 1).all() and (np.diff(pairs.reshape(-1)) > 0).all()
    assert pairs[0].tolist() == [0, 1] and pairs[-1].tolist() == [n_frames - 2, n_frames - 1]
    assert abs(pairs[3].mean() - (n_frames - 1) / 2) <= 0.5
    with pytest.raises(ValueError, match="13 was given, pairs need an even number"):
        frame_indices(n_frames, 13, "pairs")


def bad_file(folder: Path, kind: str) -> Path:
    path = folder / "bad.mp4"
    if kind == "absent":
        return path
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("this is no video\n" * 100)
    elif kind == "7 frames":
        encode_clip(path, 7)
    elif kind == "cut before its index":
        path.write_bytes(encode_clip(folder / "good.mp4", 40).read_bytes()[:3000])
    elif kind == "cut in its frames":
        whole = encode_clip(folder / "good.mp4", 40, container_options={"movflags": "faststart"}).read_bytes()
        path.write_bytes(whole[:len(whole) * 7 // 10])
    elif kind == "sound alone":
        sound_alone(path)
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "broken link":
        path.symlink_to(folder / "nowhere.mp4")
    return path


@pytest.mark.parametrize("kind, reason", [
    ("absent", "No such file"), ("empty", "0 bytes"), ("text", "PyAV: Invalid data.*; decord: "), ("7 frames", "has 7 frame.*8 are wanted"),
    ("cut before its index", "PyAV: Invalid data"), ("cut in its frames", "ends early: .* of its 40 frames"),
    ("sound alone", "no video stream"), ("pipe", "not a regular file"), ("folder", "a folder without a picture"), ("broken link", "No such file")])
def test_bad_files_are_refused_with_the_reason(tmp_path, kind, reason):
    with pytest.raises(VideoError, match=reason):
        read_frames(bad_file(tmp_path, kind))


@pytest.mark.parametrize("said, reason", [
    ("[12:34:56] /github/workspace/src/video/video_reader.cc:151: Check failed: st_nb >= 0 (-1381258232 vs. 0) ERROR cannot find video stream with "
     "wanted index: -1\n\nStack trace:", "cannot find video stream with wanted index: -1"),
    ("[01:02:03] /a/b.cc:292: [01:02:04] /a/c.cc:218: Check failed: send(dec_ctx_.get(), pkt.get()) >= 0 (-1094995529 vs. 0) Thread worker: Error "
     "sending packet.", "Thread worker: Error sending packet"),
    ("[01:02:03] /a/b.cc:430: [/videos/fan/a 1.mp4]Unable to handle EOF because of corrupted framesand `DECORD_REWIND_RETRY_MAX=16`. You may",
     "Unable to handle EOF because of corrupted frames"),
    ("Error reading /videos/fan/a 1.mp4...", "Error reading the file"), ("[01:02:03] /a/b.cc:4: Check failed: ok (0 vs. 1) ", "refused the file"),
    ("", "refused the file")])
def test_what_decord_says_is_one_sentence_that_no_clock_and_no_address_changes(said, reason):
    assert video._decord_reason(said, Path("/videos/fan/a 1.mp4")) == reason


def test_two_readings_of_a_bad_file_say_the_same(tmp_path):
    pytest.importorskip("decord")
    sound_alone(tmp_path / "sound.mp4")
    with pytest.raises(VideoError) as error:
        read_frames(tmp_path / "sound.mp4", reader="decord")
    assert str(error.value).startswith("decord: cannot find video stream") and ".cc" not in str(error.value) and "vs." not in str(error.value)


def test_wrong_arguments(tmp_path):
    path = encode_clip(tmp_path / "clip.mp4", 10)
    wrong = [({"rule": "oficial"}, "official, hf"), ({"reader": "ffmpeg"}, "auto, pyav, decord"), ({"frames": 0}, "at least 1")]
    for arguments, word in wrong:
        with pytest.raises(ValueError, match=word):
            read_frames(path, **arguments)


def test_a_text_is_no_video_of_one_frame(tmp_path):
    (tmp_path / "notes.txt").write_text("clips/fan/0001.mp4 is a line of a list\n" * 300)
    with pytest.raises(VideoError, match="is a text, not a video"):
        read_frames(tmp_path / "notes.txt")
