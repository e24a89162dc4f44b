"""Windows of a long video: the wanted frames of each, exact to the bit, in one pass over the file.

Shape suffixes: N frames of the file, T frames of a window, H W pixels, C colour channels (RGB).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from av.video.frame import PictureType

from vlmphys.video import (KNOWS_UNREFERENCED, PACKET_IS_FRAME, DecodedClip, VideoError, check_regular, check_whole, fps_of,
                           frame_indices, rgb_of, stacked, video_stream)


@dataclass(frozen=True)
class Window:
    """A stretch of a file, in seconds from its first frame, when its frames are shown (T), and these; their numbers count from the file's first."""

    start_seconds: float
    stop_seconds: float
    seconds_T: np.ndarray
    clip: DecodedClip


@dataclass(frozen=True)
class _Timeline:
    """When each shown frame comes, and (time stamp, key frame, discarded) of each packet in file order, None where those do not tell."""

    seconds_N: np.ndarray
    fps: float
    packets: list[tuple[int, bool, bool]] | None


class _NotOneForOne(Exception):
    """A file's packets are not its frames after all: it is read by counting."""


def read_windows(path: str | Path, window_seconds: float, stride_seconds: float, rule: str = "official", frames: int = 8,
                 shape: Callable[[np.ndarray], np.ndarray] = lambda image_HWC: image_HWC, threads: int = 1) -> Iterator[Window]:
    """The wanted frames of each window of a file, in one pass: no frame is decoded twice, and stretches without a wanted one are left out
    wherever that is exact.

    Windows begin every `stride_seconds`; the last one ends with the file. `shape` is applied to each frame (H x W x 3, uint8) as soon as it
    is decoded, so that a long video needs no memory at its full size. Raises VideoError as `read_frames` does, and where a window holds
    fewer frames than wanted; ValueError for lengths that are not positive.
    """
    if not (window_seconds > 0 and stride_seconds > 0 and np.isfinite(window_seconds + stride_seconds)):
        raise ValueError(f"--window {window_seconds:g}s, --stride {stride_seconds:g}s: both must be longer than 0 seconds")
    path = Path(path)
    frame_indices(frames, frames, rule)
    check_regular(path)
    try:
        timeline = _timeline(path, threads)
        plan = _window_plan(timeline, window_seconds, stride_seconds, rule, frames)
        done = 0
        try:
            if timeline.packets is not None:
                for window in _assembled(plan, _frames_by_packets(path, timeline, plan, threads), timeline, shape):
                    done += 1
                    yield window
        except _NotOneForOne:
            pass
        if done < len(plan):
            yield from _assembled(plan[done:], _frames_by_counting(path, plan[done:], threads), timeline, shape)
    except _NotOneForOne as error:
        raise VideoError(f"is damaged: {error}") from error
    except (av.error.FFmpegError, OSError) as error:
        raise VideoError(f"cannot be read as a video (PyAV: {error.strerror or error})") from error


def window_starts(length_seconds: float, window_seconds: float, stride_seconds: float) -> list[float]:
    """Where windows begin, in seconds: every stride, and once more so that the last one ends with the video; one where the video is shorter."""
    last = length_seconds - window_seconds
    if last <= 0:
        return [0.0]
    starts = [float(number * stride_seconds) for number in range(int((last + 1e-6) // stride_seconds) + 1)]
    return starts if last - starts[-1] < 1e-6 else [*starts, last]


def _timeline(path: Path, threads: int) -> _Timeline:
    """When each frame is shown, from the packets where they tell it, else by decoding all of them once."""
    with av.open(str(path)) as container:
        stream = video_stream(container, threads)
        check_whole(path, stream)
        packets, seconds = [], None
        counted = stream.codec_context.codec.canonical_name in PACKET_IS_FRAME
        for packet in container.demux(stream) if counted else ():
            if packet.size and packet.is_corrupt:
                raise VideoError(f"is damaged: packet {len(packets)} is cut or corrupt")
            if packet.size:
                packets.append((packet.pts, packet.is_keyframe, packet.is_discard))
        times = [time for time, _, discarded in packets if not discarded]
        if times and None not in times and len(set(times)) == len(times):
            seconds = np.sort(np.array(times, dtype=np.int64) - min(times)) * float(stream.time_base)
            return _Timeline(seconds, fps_of(stream), packets)
        fps = fps_of(stream)
    with av.open(str(path)) as container:
        shown = [frame.time for frame in container.decode(video_stream(container, threads))]
    if not shown or (None in shown and not fps):
        raise VideoError("has no frame" if not shown else "does not say when its frames are shown: no windows can be cut from it")
    seconds = np.arange(len(shown)) / fps if None in shown else np.array(shown) - shown[0]
    return _Timeline(seconds, fps, None)


def _window_plan(timeline: _Timeline, window: float, stride: float, rule: str, frames: int) -> list[tuple[float, float, np.ndarray]]:
    """Start, stop (seconds) and wanted frame numbers of each window."""
    seconds_N = timeline.seconds_N
    step = float(np.median(np.diff(seconds_N))) if len(seconds_N) > 1 else 0.0
    length = float(seconds_N[-1]) + step
    plan = []
    for start in window_starts(length, window, stride):
        stop = min(start + window, length)
        first, end = np.searchsorted(seconds_N, [start - 1e-6, stop - 1e-6])
        if end - first < frames <= len(seconds_N):
            raise VideoError(f"holds {end - first} frame(s) in the window from {start:.2f} s on, {frames} are wanted: give a longer --window")
        plan.append((start, stop, (first + frame_indices(int(end - first), frames, rule)).astype(np.int32)))
    return plan


def _assembled(plan, found: Iterator[tuple[int, np.ndarray]], timeline: _Timeline, shape) -> Iterator[Window]:
    """Windows from frames that come in ascending order; a frame is dropped when no later window wants it."""
    held: dict[int, np.ndarray] = {}
    for start, stop, index in plan:
        held = {number: image for number, image in held.items() if number >= index[0]}
        while not set(index.tolist()) <= held.keys():
            number, image_HWC = next(found, (None, None))
            if number is None:
                raise _NotOneForOne("not all of its frames can be decoded")
            held[number] = shape(image_HWC)
        clip = DecodedClip(stacked([held[number] for number in index.tolist()]), index, timeline.fps, len(timeline.seconds_N))
        yield Window(start, stop, timeline.seconds_N[index], clip)


def _frames_by_packets(path: Path, timeline: _Timeline, plan, threads: int) -> Iterator[tuple[int, np.ndarray]]:
    """The wanted frames, ascending. Raises _NotOneForOne where packets and frames do not go together one for one."""
    wanted_numbers = sorted({number for _, _, index in plan for number in index.tolist()})
    times = sorted(time for time, _, discarded in timeline.packets if not discarded)
    wanted = {times[number]: number for number in wanted_numbers}
    needed, entries = _needed_packets(timeline.packets, wanted)
    last = int(np.flatnonzero(needed)[-1])
    with av.open(str(path)) as container:
        stream = video_stream(container, threads)
        context = stream.codec_context
        may_skip = context.codec.canonical_name in KNOWS_UNREFERENCED
        waiting = False                 # whether the decoder holds frames
        entry = None                    # the key frame at which decoding began again, until it is there
        place = -1
        for packet in container.demux(stream):
            place += bool(packet.size)
            decoded = []
            if packet.size and needed[place]:
                if may_skip:
                    context.skip_frame = "DEFAULT" if packet.pts in wanted or packet.pts in entries else "NONREF"
                entry = packet.pts if packet.pts in entries else entry
                decoded, waiting = stream.decode(packet), True
            if waiting and (not packet.size or place == last or not needed[place]):
                # The frames that wait for their turn come out here; what follows begins anew at a key frame.
                decoded, waiting = decoded + stream.decode(None), False
                context.flush_buffers()
            for frame in decoded:
                if frame.pts == entry:
                    if frame.pict_type != PictureType.I:
                        raise _NotOneForOne("decoding cannot begin at its key frames")
                    entry = None
                if frame.pts in wanted:
                    if entry is not None and frame.pts > entry:
                        raise _NotOneForOne("decoding cannot begin at its key frames")
                    if frame.interlaced_frame:
                        raise _NotOneForOne("frames are interlaced")
                    yield wanted[frame.pts], rgb_of(frame)
            if place == last:
                return


def _needed_packets(packets, wanted) -> tuple[np.ndarray, set[int]]:
    """Which packets are decoded, bool in file order, and the time stamps of the key frames at which decoding begins again after a gap.

    A wanted frame needs its packet and those before it from a key frame on that is not shown after it: frames shown before the key frame that
    precedes them in the file lean on what stands before that.
    """
    needed = np.zeros(len(packets), dtype=bool)
    keys = [place for place, (_, key, _) in enumerate(packets) if key]
    for place, (time, _, _) in enumerate(packets):
        if time in wanted:
            start = next((key for key in reversed(keys[:bisect_right(keys, place)]) if packets[key][0] <= time), 0)
            needed[start:place + 1] = True
    entries = {packets[place][0] for place in np.flatnonzero(needed) if place and not needed[place - 1]}
    return needed, entries


def _frames_by_counting(path: Path, plan, threads: int) -> Iterator[tuple[int, np.ndarray]]:
    """The wanted frames, ascending, by plain decoding from the start."""
    wanted = {number for _, _, index in plan for number in index.tolist()}
    with av.open(str(path)) as container:
        for number, frame in enumerate(container.decode(video_stream(container, threads))):
            if number in wanted:
                yield number, rgb_of(frame)
            if number >= max(wanted):
                return
