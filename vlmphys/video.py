"""N frames of a clip, exact to the bit, with no packet decoded in vain; or N pictures of a folder. Nothing but this file and `windows`
decodes video.

Shape suffixes: T frames, H W pixels, C colour channels (RGB).
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from PIL import Image

from vlmphys.frame_rules import VideoError, frame_indices
from vlmphys.sources import PICTURE_SUFFIXES, frame_files

READERS = ("auto", "pyav", "decord")
# In these codecs one packet of a file is one shown frame, so that packets count frames without decoding them. Elsewhere
# (VP8's hidden frames, packed MPEG-4 in AVI) all frames are decoded once more, only to be counted.
PACKET_IS_FRAME = ("h264", "hevc", "av1", "mjpeg", "prores", "ffv1")
# Frames nothing refers to may be left undecoded where the decoder knows them from the bit stream's own flag.
KNOWS_UNREFERENCED = ("h264",)
PACKETS_KEPT_BYTES = 256 << 20


class ReaderRefused(VideoError):
    """One reader failed on a file; another one may succeed."""


@dataclass(frozen=True)
class DecodedClip:
    """The wanted frames of one clip: `frames_THWC` uint8 RGB at the source's size (or as `shape` made them), `frame_index` int32 (T), fps 0
    where unknown."""

    frames_THWC: np.ndarray
    frame_index: np.ndarray
    fps: float
    n_frames: int


Pick = Callable[[int], np.ndarray]
Shape = Callable[[np.ndarray], np.ndarray]


def as_it_is(image_HWC: np.ndarray) -> np.ndarray:
    return image_HWC


def read_frames(path: str | Path, rule: str = "official", frames: int = 8, reader: str = "auto", threads: int = 1) -> DecodedClip:
    """Decode the wanted frames of a file, or of a folder with a picture a frame, in the order of the numbers in their names.

    `reader` (files only): `pyav`, `decord`, or `auto` (PyAV, then decord where PyAV's decoder refuses the file). Both give the same pixels.
    Raises VideoError with the reason for a file that is no usable video; ValueError for a wrong argument.
    """
    frame_indices(frames, frames, rule)
    return read_picked(path, lambda n_frames: frame_indices(n_frames, frames, rule), reader, threads)


def read_picked(path: str | Path, pick: Pick, reader: str = "auto", threads: int = 1, shape: Shape = as_it_is) -> DecodedClip:
    """`read_frames` for frames chosen by `pick`: from a clip's number of frames to the wanted ones, ascending, each once.

    `shape` is applied to each picture (H x W x 3, uint8) as soon as it is decoded, so that no clip is held at its full size.
    """
    if reader not in READERS:
        raise ValueError(f"reader {reader!r}: must be one of {', '.join(READERS)}")
    path = Path(path)
    if os.path.isdir(path):     # unlike Path.is_dir false, and no error, for a name that is too long or in a folder that may not be read
        return _read_folder(path, pick, shape)
    check_regular(path)
    if reader == "decord":
        return _read_decord(path, pick, threads, shape)
    try:
        return _read_pyav(path, pick, threads, shape)
    except ReaderRefused as first:
        if reader == "pyav":
            raise
        try:
            return _read_decord(path, pick, threads, shape)
        except ReaderRefused as second:
            raise VideoError(f"cannot be read as a video ({first}; {second})") from second


def check_regular(path: Path) -> None:
    try:
        facts = path.stat()
    except (OSError, ValueError) as error:      # ValueError: a NUL in the name
        raise VideoError(f"cannot be opened: {getattr(error, 'strerror', None) or error}") from error
    if not stat.S_ISREG(facts.st_mode):
        raise VideoError("is not a regular file")
    if facts.st_size == 0:
        raise VideoError("is empty (0 bytes)")


def _read_pyav(path: Path, pick: Pick, threads: int, shape: Shape) -> DecodedClip:
    try:
        with av.open(str(path)) as container:
            stream = video_stream(container, threads)
            check_whole(path, stream)
            packets, times = _packets(container, stream, path.stat().st_size <= PACKETS_KEPT_BYTES)
            if times is not None:
                wanted = pick(len(times))
                wanted_times = [times[index] for index in wanted]
                clip = _decode_at_times(stream, packets, wanted_times, shape) if packets else _decode_afresh(path, wanted_times, threads, shape)
                if clip is not None:
                    return DecodedClip(clip, wanted, fps_of(stream), len(times))
        return _decode_by_counting(path, pick, threads, shape)
    except (av.error.FFmpegError, OSError) as error:
        raise ReaderRefused(f"PyAV: {error.strerror or error}") from error


def video_stream(container, threads: int):
    if container.format.name == "tty":      # FFmpeg would draw a text as one picture
        raise VideoError("is a text, not a video")
    if not container.streams.video:
        raise VideoError("has no video stream")
    stream = container.streams.video[0]
    if stream.codec_context is None:
        raise ReaderRefused("PyAV: no decoder for this codec")
    stream.codec_context.thread_count = threads
    return stream


def fps_of(stream) -> float:
    return float(stream.average_rate) if stream.average_rate else 0.0


def check_whole(path: Path, stream) -> None:
    """An mp4 names the place of every sample up front, so that a file that ends early is found before it is decoded."""
    ends = [entry.pos + entry.size for entry in stream.index_entries]
    size = path.stat().st_size
    if ends and max(ends) > size:
        missing = sum(end > size for end in ends)
        raise VideoError(f"ends early: {missing} of its {len(ends)} frames lie beyond the end of the file ({size} bytes)")


def _packets(container, stream, keep: bool) -> tuple[list, list[int] | None]:
    """The stream's packets in file order (none unless `keep`), and the presentation times of all shown frames, ascending.

    Times are None where packets do not tell them. Packets are compressed: keeping them saves opening and probing the file
    again, a tenth of the time of a 1080p clip.
    """
    packets, times = [], []
    counted = stream.codec_context.codec.canonical_name in PACKET_IS_FRAME
    for packet in container.demux(stream) if counted else ():
        if packet.size and packet.is_corrupt:
            raise VideoError(f"is damaged: packet {len(times)} is cut or corrupt")
        if packet.size and not packet.is_discard:
            times.append(packet.pts)
        if keep:
            packets.append(packet)
    if not counted or None in times or len(set(times)) != len(times):
        return [], None
    return packets, sorted(times)


def _decode_at_times(stream, packets, times: list[int], shape: Shape = as_it_is) -> np.ndarray | None:
    """Frames at these presentation times, T x H x W x C; None where they do not come out one for one.

    References are decoded, unwanted frames that nothing refers to are skipped, and nothing is decoded after the last wanted packet.
    """
    slots = {time: slot for slot, time in enumerate(times)}
    picked = _Pictures(shape)
    may_skip = stream.codec_context.codec.canonical_name in KNOWS_UNREFERENCED
    waiting = set(slots)
    for packet in packets:
        if may_skip:
            stream.codec_context.skip_frame = "DEFAULT" if packet.pts in slots else "NONREF"
        waiting.discard(packet.pts)
        decoded = stream.decode(packet if packet.size else None)
        # With every wanted packet handed in, a flush brings out the frames that still wait for their turn.
        if not waiting and packet.size:
            decoded += stream.decode(None)
        for frame in decoded:
            if frame.pts in slots:
                # Two packets may make one interlaced frame: only counting is exact there.
                if frame.interlaced_frame:
                    return None
                picked.add(slots[frame.pts], rgb_of(frame))
        if not waiting:
            break
    return picked.stacked() if len(picked) == len(times) else None


def _decode_afresh(path: Path, times: list[int], threads: int, shape: Shape) -> np.ndarray | None:
    """`_decode_at_times` for a file too large for its packets to be kept."""
    with av.open(str(path)) as container:
        stream = video_stream(container, threads)
        return _decode_at_times(stream, container.demux(stream), times, shape)


def _decode_by_counting(path: Path, pick: Pick, threads: int, shape: Shape) -> DecodedClip:
    """Plain decoding, twice: the first pass counts, the second one keeps. Exact for every file that decodes at all."""
    with av.open(str(path)) as container:
        n_frames = sum(1 for _ in container.decode(video_stream(container, threads)))
    wanted = pick(n_frames)
    keep, picked = set(wanted.tolist()), _Pictures(shape)
    with av.open(str(path)) as container:
        stream = video_stream(container, threads)
        for index, frame in enumerate(container.decode(stream)):
            if index in keep:
                picked.add(index, rgb_of(frame))
            if len(picked) == len(keep):
                break
        return DecodedClip(picked.stacked(), wanted, fps_of(stream), n_frames)


def rgb_of(frame) -> np.ndarray:
    if frame.is_corrupt:
        raise VideoError(f"is damaged: the frame at time stamp {frame.pts} does not decode cleanly")
    image_HWC = frame.to_ndarray(format="rgb24")
    # A phone held upright writes lying frames and an angle (degrees, counter-clockwise) by which players turn them.
    return np.rot90(image_HWC, frame.rotation // 90) if frame.rotation % 360 else image_HWC


class _Pictures:
    """The wanted pictures of one clip as they come out of a decoder, each shaped at once, put in order at the end."""

    def __init__(self, shape: Shape):
        self._shape, self._sizes, self._held = shape, set(), {}

    def __len__(self) -> int:
        return len(self._held)

    def add(self, place: int, image_HWC: np.ndarray) -> None:
        self._sizes.add(image_HWC.shape)
        check_one_size(self._sizes)
        self._held[place] = self._shape(image_HWC)

    def stacked(self) -> np.ndarray:
        return np.stack([self._held[place] for place in sorted(self._held)])


def check_one_size(shapes: set[tuple[int, ...]]) -> None:
    if len(shapes) > 1:
        raise VideoError(f"changes its size on the way: {' and '.join(f'{shape[1]} x {shape[0]}' for shape in sorted(shapes))}")


def stacked(images: list[np.ndarray]) -> np.ndarray:
    check_one_size({image.shape for image in images})
    return np.stack(images)


def _read_decord(path: Path, pick: Pick, threads: int, shape: Shape) -> DecodedClip:
    try:
        import decord
    except ImportError as error:
        raise ReaderRefused(f"decord: is not installed here ({error})") from error
    decord.logging.set_level(decord.logging.QUIET)      # what is wrong with a file is said once, by the exception
    try:
        video = decord.VideoReader(str(path), ctx=decord.cpu(0), num_threads=threads)
        wanted = pick(len(video))
        frames_THWC = video.get_batch(wanted).asnumpy()
        fps, n_frames = float(video.get_avg_fps()), len(video)
    except (decord.DECORDError, decord.DECORDLimitReachedError, RuntimeError) as error:
        raise ReaderRefused(f"decord: {_decord_reason(str(error), path)}") from error
    return DecodedClip(np.stack([shape(image_HWC) for image_HWC in frames_THWC]), wanted, fps, n_frames)


def _decord_reason(text: str, path: Path) -> str:
    """What decord says is wrong, without the time of day, its source lines, addresses and the file's name: the same for the same file each time."""
    said = (text.strip().splitlines() or [""])[0].replace(f"[{path}]", "").replace(str(path), "the file")
    said = re.sub(r"\[\d\d:\d\d:\d\d\] \S+:\d+: ", "", said)
    said = re.sub(r"Check failed: .*?\(\S+ vs\. \S+\)|ERROR |and `DECORD.*", "", said)
    return said.strip(" .") or "refused the file"


def _read_folder(path: Path, pick: Pick, shape: Shape) -> DecodedClip:
    """The wanted pictures of a folder; frames a second are not known, and `frame_index` counts the pictures that are there."""
    try:
        pictures = [picture for _, picture in frame_files(path)]
    except OSError as error:
        raise VideoError(f"cannot be opened: {error.strerror}") from error
    except ValueError as error:
        raise VideoError(str(error)) from error
    if not pictures:
        raise VideoError(f"is a folder without a picture ({', '.join(PICTURE_SUFFIXES)})")
    wanted, picked = pick(len(pictures)), _Pictures(shape)
    for index in wanted:
        picked.add(int(index), _picture(pictures[index]))
    return DecodedClip(picked.stacked(), wanted, 0.0, len(pictures))


def _picture(path: Path) -> np.ndarray:
    try:
        with Image.open(path) as image:
            if image.mode not in ("RGB", "RGBA", "L", "P"):
                raise VideoError(f"is damaged or of another kind: {path.name} holds {image.mode} pixels, 8 bits a colour are expected")
            return np.asarray(image.convert("RGB"))
    except VideoError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise VideoError(f"is damaged: {path.name} does not decode ({error})") from error
