"""Clips that are one recording twice: files of the same bytes, and copies that were encoded anew, cropped a little, or made brighter.

Two stages. A perceptual hash of 16 sampled frames (the signs of each frame's 63 lowest DCT coefficients) finds candidates among all pairs at
once. A candidate's pictures are then aligned (a scale within 10 %, a shift) and their light fitted; what still differs, where it differs
most, decides: two films of one mechanism from one place differ at the part that moves. A copy that begins at another moment, is mirrored or
runs at another speed is not found; neither are films told apart of which no 48 x 48 picture differs (a mechanism that stands still,
filmed twice by a fixed camera): these are listed, for a person to judge.

Measured by `python tests/bench/near_duplicates.py --videos DIR` on 344 simulated clips of 8 mechanisms (112 pixels, 58,996 pairs): the
figures stand in data_prep/README.md.

Shape suffixes: N clips, T frames, H W pixels.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from vlmphys.files import write_atomic, writing
from vlmphys.layout import Clip
from vlmphys.sources import clip_stat, sha256_clip
from vlmphys.video import VideoError, read_frames
from vlmphys.workers import Lost, run_in_order

FRAMES = 16
FEWEST_FRAMES = 8               # of a clip that has no 16: what any packing needs
PICTURE_PIXELS = 48             # edge of the pictures that are compared
HASH_PIXELS, HASH_EDGE = 32, 8  # a frame's DCT is taken at 32 x 32; its lowest 8 x 8 coefficients but the first make 63 bits
CANDIDATE_SHARE = 0.2           # of the bits differ, at most
LARGEST_DIFFERENCE = 0.62       # in standard deviations of the pictures
SATURATED = 245                 # a copy made brighter loses what was bright: such pixels are not compared
READER_LIMIT_SECONDS = 120.0
CACHE_VERSION = 1


@dataclass(frozen=True, order=True)
class Pair:
    """Two clips, ids ascending. `difference`: None for the same bytes, else what remains after alignment, in standard deviations."""

    first: str
    second: str
    difference: float | None = None

    def said(self, content: dict) -> str:
        """The pair in a line, with the side of each clip."""
        how = "the same file" if self.difference is None else f"near-duplicates, difference {self.difference:.2f}"
        return f"{self.first} ({content['clips'][self.first]}) and {self.second} ({content['clips'][self.second]}): {how}"


class HashCache:
    """Hashes of clips in a JSON file: valid while a clip's size and time of change are what they were."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.entries: dict[str, dict] = {}
        try:
            stored = json.loads(self.path.read_bytes())
            if stored["version"] == CACHE_VERSION:
                self.entries = stored["clips"]
        except (OSError, ValueError, KeyError, TypeError):
            pass    # absent, cut or of another version: it is made again, nothing but time is lost

    def get(self, path: Path, kind: str):
        """A stored hash of a clip, None where there is none or the clip changed."""
        entry = self.entries.get(str(path.absolute()))
        return entry.get(kind) if entry and entry["stat"] == list(clip_stat(path)) else None

    def put(self, path: Path, kind: str, value: str) -> None:
        """Store one hash of a clip."""
        facts, name = list(clip_stat(path)), str(path.absolute())
        if self.entries.get(name, {}).get("stat") != facts:
            self.entries[name] = {"stat": facts}
        self.entries[name][kind] = value

    def save(self) -> None:
        """Write the file, whole or not at all. Raises ValueError where the disk refuses it."""
        with writing("--out", self.path, "file"):
            write_atomic(self.path, json.dumps({"version": CACHE_VERSION, "clips": self.entries}, sort_keys=True).encode())


def identical_pairs(clips: list[Clip], cache: HashCache) -> list[Pair]:
    """Each clip whose bytes are another's, paired with the first such clip. Only files of one size are read, and hard links never.

    Files that cannot be read, and empty ones, are passed over: packing names those.
    """
    sizes: dict[int, list[Clip]] = defaultdict(list)
    for clip in sorted(clips, key=lambda clip: clip.clip_id):
        try:
            size = clip_stat(clip.path)[0]
        except OSError:
            continue
        if size:
            sizes[size].append(clip)
    found, links = [], {}
    for size, same in sizes.items():
        firsts: dict[str, str] = {}
        for clip in same if len(same) > 1 else ():
            try:
                facts = os.stat(clip.path)
                inode = (facts.st_dev, facts.st_ino)
                if inode not in links:
                    digest = cache.get(clip.path, "sha256") or sha256_clip(clip.path)
                    cache.put(clip.path, "sha256", digest)
                    links[inode] = digest
            except (OSError, ValueError):
                continue
            first = firsts.setdefault(links[inode], clip.clip_id)
            if first != clip.clip_id:
                found.append(Pair(first, clip.clip_id))
    return sorted(found)


def near_pairs(clips: list[Clip], may_matter: Callable[[str, str], bool], cache: HashCache, workers: int,
               progress: Callable[[str, int, int], None] = lambda stage, done, total: None) -> tuple[list[Pair], list[str]]:
    """Pairs of near-duplicates for which `may_matter(clip id, clip id)` holds, and a line for each clip that could not be read.

    Clips are decoded in `workers` processes (0: in this one), twice for those in a candidate pair; hashes are kept in `cache`.
    `progress(stage, done, total)` is called as it goes. Frames from 8 on are enough: of clips with fewer, packing makes nothing.
    """
    clips = sorted(clips, key=lambda clip: clip.clip_id)
    hashes, unread = _hashes(clips, cache, workers, progress)
    readable = [clip for clip in clips if clip.clip_id in hashes]
    pairs = [(first, second) for first, second in candidates([hashes[clip.clip_id] for clip in readable])
             if may_matter(readable[first].clip_id, readable[second].clip_id)]
    wanted = sorted({index for pair in pairs for index in pair})
    pictures = {}
    results = run_in_order(read_pictures, [str(readable[index].path) for index in wanted], min(workers, len(wanted)), READER_LIMIT_SECONDS, _once)
    for done, (index, result) in enumerate(zip(wanted, results), 1):
        if isinstance(result, np.ndarray):
            pictures[index] = result
        progress("pictures", done, len(wanted))
    found = []
    for done, (first, second) in enumerate(pairs, 1):
        if first in pictures and second in pictures:
            value = difference(pictures[first], pictures[second])
            if value <= LARGEST_DIFFERENCE:
                found.append(Pair(readable[first].clip_id, readable[second].clip_id, round(value, 3)))
        progress("pairs", done, len(pairs))
    return found, unread


def crossing(pairs: Iterable[Pair], content: dict) -> list[Pair]:
    """Those of the pairs whose clips stand on two sides of a split."""
    sides = content["clips"]
    return [pair for pair in pairs if sides[pair.first] != sides[pair.second]]


def read_pictures(path: str) -> np.ndarray | VideoError:
    """16 grey pictures of a clip, 16 x 48 x 48 uint8; 8, each twice, of a clip with fewer frames. What is wrong with it comes back."""
    try:
        try:
            frames_THWC = read_frames(path, frames=FRAMES).frames_THWC
        except VideoError:
            frames_THWC = read_frames(path, frames=FEWEST_FRAMES).frames_THWC.repeat(FRAMES // FEWEST_FRAMES, axis=0)
    except VideoError as error:
        return error
    except OSError as error:
        return VideoError(f"cannot be read: {error.strerror or error}")
    edge = (PICTURE_PIXELS, PICTURE_PIXELS)
    return np.stack([cv2.resize(cv2.cvtColor(frame_HWC, cv2.COLOR_RGB2GRAY), edge, interpolation=cv2.INTER_AREA) for frame_HWC in frames_THWC])


def perceptual_hash(pictures_THW: np.ndarray) -> str:
    """1008 bits in hex: for each of 16 pictures, which of its lowest DCT coefficients (the mean's left out) are positive."""
    bits = []
    for picture_HW in pictures_THW:
        small_HW = cv2.resize(picture_HW.astype(np.float32), (HASH_PIXELS, HASH_PIXELS), interpolation=cv2.INTER_AREA)
        bits.append(cv2.dct(small_HW)[:HASH_EDGE, :HASH_EDGE].reshape(-1)[1:] > 0)
    return np.packbits(np.concatenate(bits)).tobytes().hex()


def candidates(hashes: list[str], rows: int = 512) -> Iterator[tuple[int, int]]:
    """Places (i < j) of the hashes of which at most a fifth of the bits differ; all pairs, by products of matrices of `rows` rows."""
    if not hashes:
        return
    bits = np.unpackbits(np.frombuffer(bytes.fromhex("".join(hashes)), np.uint8).reshape(len(hashes), -1), axis=1)
    signs = bits.astype(np.float32) * 2 - 1
    least = signs.shape[1] * (1 - 2 * CANDIDATE_SHARE)
    for start in range(0, len(signs), rows):
        agreement = signs[start:start + rows] @ signs[start:].T
        for row, column in np.argwhere(agreement >= least):
            if column > row:
                yield start + int(row), start + int(column)


def difference(first_THW: np.ndarray, second_THW: np.ndarray) -> float:
    """What differs most between two clips after alignment, in standard deviations of the first; infinite where they cannot be aligned.

    The mean pictures are aligned by the enhanced correlation coefficient (affine, at most 10 % of scale and hardly any turn), the light
    by a gain and an offset over all pixels. A patch of 3 x 3 pixels counts, so that one pixel's noise does not.
    """
    first_THW, second_THW = first_THW.astype(np.float32), second_THW.astype(np.float32)
    edge = first_THW.shape[1]
    try:
        stop = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_COUNT, 50, 1e-4)
        _, warp = cv2.findTransformECC(first_THW.mean(0), second_THW.mean(0), np.eye(2, 3, dtype=np.float32), cv2.MOTION_AFFINE, stop, None, 3)
    except cv2.error:   # it does not converge: the pictures have nothing in common, or no structure
        return float("inf")
    off = np.abs(warp[:, :2] - np.eye(2))
    if max(off[0, 0], off[1, 1]) > 0.1 or max(off[0, 1], off[1, 0]) > 0.02:
        return float("inf")
    flags = cv2.INTER_LINEAR + cv2.WARP_INVERSE_MAP
    moved_THW = np.stack([cv2.warpAffine(picture_HW, warp, (edge, edge), flags=flags, borderValue=-1e4) for picture_HW in second_THW])
    seen_HW = (moved_THW > -1).all(0)
    rim = edge // 20
    seen_HW[:rim] = seen_HW[-rim:] = seen_HW[:, :rim] = seen_HW[:, -rim:] = False
    if seen_HW.mean() < 0.5:
        return float("inf")
    own, other = first_THW[:, seen_HW], moved_THW[:, seen_HW]
    if own.std() < 1 or other.std() < 1:
        return float("inf")
    gain = ((own - own.mean()) * (other - other.mean())).mean() / other.var()
    rest_THW = np.zeros_like(first_THW)
    rest_THW[:, seen_HW] = own - (own.mean() + gain * (other - other.mean()))
    rest_THW[(first_THW > SATURATED) | (moved_THW > SATURATED)] = 0
    return float(max(np.abs(cv2.blur(rest_HW, (3, 3))).max() for rest_HW in rest_THW) / own.std())


def _hashes(clips: list[Clip], cache: HashCache, workers: int, progress: Callable[[str, int, int], None]) -> tuple[dict[str, str], list[str]]:
    """Hashes by clip id, those that the cache lacks computed and saved even when it is stopped on the way; and who could not be read."""
    found, missing, unread = {}, [], []
    for clip in clips:
        try:
            stored = cache.get(clip.path, "frames")
        except OSError as error:
            unread.append(f"{clip.clip_id}: cannot be opened: {error.strerror}")
            continue
        if stored:
            found[clip.clip_id] = stored
        else:
            missing.append(clip)
    results = run_in_order(_hash_clip, [str(clip.path) for clip in missing], min(workers, len(missing)), READER_LIMIT_SECONDS, _once)
    try:
        for clip, result in zip(missing, results):
            if isinstance(result, str):
                found[clip.clip_id] = result
                cache.put(clip.path, "frames", result)
            else:
                unread.append(f"{clip.clip_id}: {result.reason if isinstance(result, Lost) else result}")
            progress("hashes", len(found) + len(unread), len(clips))
    finally:
        results.close()
        if missing:
            cache.save()
    return found, sorted(unread)


def _hash_clip(path: str) -> str | VideoError:
    cv2.setNumThreads(1)
    pictures = read_pictures(path)
    return pictures if isinstance(pictures, VideoError) else perceptual_hash(pictures)


def _once(task: str) -> None:
    """A clip that takes its reader's process with it is not tried again."""
