"""Videos to frames shards: each clip decoded once in its life, in flat memory, resumed after any crash.

Frames are written into `frames.partial/`, one shard of CLIPS_PER_SHARD planned clips after the other; a journal names those that are
whole, so that a later run goes on from there (`unfinished`), and rows that were decoded before are copied (`takeover`). Only a complete folder,
manifest and all, gets the name `frames/`.
"""

from __future__ import annotations

import json
import shutil
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial as bound
from pathlib import Path
from typing import Callable

import numpy as np
import torch

from vlmphys.files import clear_disk_errors, json_bytes, swap_folder, write_atomic
from vlmphys.frame_rules import FRAME_RULES, SET_RULES, VideoError, frame_indices
from vlmphys.layout import Clip
from vlmphys.pixels import FITS, fit_frames
from vlmphys.records import counted, sha256_text
from vlmphys.regions import Regions, box_of, cut, region_of
from vlmphys.shard_files import MANIFEST, VERSION, ShardWriter, manifest_of, schema_metadata
from vlmphys.shards import FRAMES, FRAMES_PER_BATCH, QUARANTINE, FramesTable, frames_schema, read_quarantine
from vlmphys.sources import clip_stat, sha256_now, stat_now
from vlmphys.splits import SplitFile
from vlmphys.standing import UNKNOWN, check_dropped, check_version, finish_folder, finished_clips, stored_inputs
from vlmphys.takeover import NOTHING_KNOWN, FormerRows, Known, former_rows, is_whole, link_shards
from vlmphys.unfinished import (JOURNAL, append_durably, check_partial, check_space, keep_rows, kept_files, open_journal, read_journal,
                                unfinished_clips)
from vlmphys.video import READERS, read_picked
from vlmphys.workers import Lost, run_in_order

CLIPS_PER_SHARD = 256
# A 1080p clip takes a third of a second; one that takes this long never ends.
READER_LIMIT_SECONDS = 120.0
# Clips that wait for the disk at most: what comes in while a shard is hashed and made durable, which takes a second or two.
WAITING_FOR_DISK = 32


@dataclass(frozen=True)
class FrameSettings:
    """What decides the pixels of a clip: T frames by `rule`, fitted into a square of `size` pixels by `fit`; `sets` of them, and of each picture
    the category's region of `regions` alone."""

    frames: int
    size: int
    rule: str = "official"
    fit: str = "crop"
    reader: str = "auto"
    sets: int = 1
    regions: Regions = field(default_factory=dict)

    def __post_init__(self):
        allowed = {"rule": FRAME_RULES, "fit": FITS, "reader": READERS}
        problems = [f"{name} {getattr(self, name)!r}: must be one of {', '.join(values)}"
                    for name, values in allowed.items() if getattr(self, name) not in values]
        problems += [f"{name} {getattr(self, name)}: must be at least 1" for name in ("frames", "size", "sets") if getattr(self, name) < 1]
        if self.sets > 1 and self.rule not in SET_RULES:
            problems.append(f"--frame-sets {self.sets}: rule {self.rule} gives the same frames in each; take --frame-rule {' or '.join(SET_RULES)}")
        if self.sets == 1 and self.rule == "jitter":
            problems.append("--frame-rule jitter: its other moments are the further sets, the first is that of official; give --frame-sets 2 or more")
        if problems:
            raise ValueError("; ".join(problems))

    def meta(self) -> dict:
        """The settings as a frames shard carries them."""
        return {"version": VERSION, "frames": self.frames, "height": self.size, "width": self.size, "rule": self.rule, "fit": self.fit,
                **self.further()}

    def further(self) -> dict:
        """Settings that stand in a manifest only where they are not the default: what was packed before there were any stays as it is."""
        return {**({"sets": self.sets} if self.sets > 1 else {}), **({"regions": self.regions} if self.regions else {})}

    def described(self) -> dict[str, str]:
        """All that decides the pixels, for a comparison setting by setting."""
        return {**schema_metadata(self.meta()), "reader": self.reader}

    def as_inputs(self) -> dict:
        """All of them, for the digest of what is packed."""
        return {**{key: value for key, value in asdict(self).items() if key not in ("sets", "regions")}, **self.further()}


@dataclass(frozen=True)
class PackReport:
    """What a packing call did. `skipped`: everything was there already. `quarantine`: {clip_id, path, reason} of each bad clip. Of frames,
    `taken_over` rows are of earlier runs, and `decoded` clips were tried by this one, bad ones among them; `unproven` are the former shards
    whose rows were taken over though no sha256 was left to prove their bytes."""

    rows: int
    shards: int
    nbytes: int
    skipped: bool
    quarantine: tuple[dict, ...] = ()
    taken_over: int = 0
    decoded: int = 0
    unproven: tuple[str, ...] = ()


@dataclass(frozen=True)
class ClipTask:
    """One clip for a worker."""

    path: str
    settings: FrameSettings
    clip_id: str = ""
    category: str = ""


@dataclass(frozen=True)
class ClipPixels:
    """A worker's answer for a good clip: uint8 pixels and frame numbers by set, S x T; `box` x, y, width, height of what was cut out, pixels."""

    frames_STHWC: np.ndarray
    index_ST: np.ndarray
    box: list[int]
    sha256: str
    fps: float
    n_frames: int


@dataclass(frozen=True)
class SameFile:
    """A worker's answer for a clip whose bytes were decoded before."""

    sha256: str


def decode_clip(task: ClipTask, known: Known = NOTHING_KNOWN) -> ClipPixels | SameFile | VideoError:
    """Decode and fit one clip, unless its frames are `known`; what is wrong with the file comes back as an error, not as an exception."""
    if known.keys and (sha256 := sha256_now(task.path)) and known.key(task.clip_id, task.category, sha256) in known.keys:
        return SameFile(sha256)
    settings = task.settings
    region, sizes = region_of(settings.regions, task.category), []

    def sets_of(n_frames: int) -> np.ndarray:
        return np.stack([frame_indices(n_frames, settings.frames, settings.rule, number, task.clip_id) for number in range(settings.sets)])

    def shape(image_HWC: np.ndarray) -> np.ndarray:
        sizes.append(image_HWC.shape[:2])
        return fit_frames(cut(image_HWC, region)[None], settings.size, settings.fit)[0]

    try:
        before = stat_now(task.path)
        clip = read_picked(task.path, lambda n_frames: np.unique(sets_of(n_frames)), settings.reader, shape=shape)
        index_ST = sets_of(clip.n_frames)
        frames_STHWC = clip.frames_THWC[np.searchsorted(clip.frame_index, index_ST)]
        sha256 = sha256_now(task.path)
        # A hash beside the pixels of other bytes would give these pixels to every clip that has the bytes.
        if sha256 is None or stat_now(task.path) != before:
            return VideoError("changed while it was read: run the same command again when it is whole")
        return ClipPixels(frames_STHWC, index_ST, box_of(region, *sizes[-1]), sha256, clip.fps, clip.n_frames)
    except VideoError as error:
        return error
    except OSError as error:
        return VideoError(f"cannot be read: {error.strerror or error}")


def _decode_in_worker(known: Known, task: ClipTask) -> ClipPixels | SameFile | VideoError:
    # One process a core: threads within each would only get in each other's way.
    torch.set_num_threads(1)
    return decode_clip(task, known)


def _other_reader(task: ClipTask) -> ClipTask | None:
    if task.settings.reader != "auto":
        return None
    return replace(task, settings=replace(task.settings, reader="decord"))


def check_clips(clips: list[Clip], split: SplitFile) -> list[Clip]:
    """The clips that the split names. Raises ValueError where it names clips that are not there."""
    found = {clip.clip_id: clip for clip in clips}
    absent = sorted(set(split.clips) - set(found))
    if absent:
        raise ValueError(f"the split names {counted(len(absent), 'clip')} not in the videos folder, first {absent[0]!r}: "
                         "give the folder that was split, or split again with data_prep/split.py")
    return [found[clip_id] for clip_id in sorted(split.clips)]


def pack_frames(clips: list[Clip], out: Path, settings: FrameSettings, workers: int,
                progress: Callable[[int, int], None] = lambda clips_done, quarantined: None,
                limit_seconds: float = READER_LIMIT_SECONDS, restart: bool = False, repair: bool = False) -> PackReport:
    """Write `out/frames` for these clips, or go on where an earlier run stopped, or do nothing where it is all there.

    Clips that were decoded before, here or into the unfinished folder, with the same settings from the same bytes, are not decoded again, except
    with `restart`; bad ones are tried again where anything changed. Shards of another size than they were written with are made anew, with
    `repair` those of other bytes, too; and where the manifest is damaged or gone, whole shards give their rows. Bad clips are
    listed in `quarantine.jsonl` and never replaced. `progress(clips done, quarantined)` is called as it goes, first with what an earlier run had
    done. A reader that takes longer than `limit_seconds` for a clip is ended. Raises
    ValueError where every clip is bad, and where the disk is full.
    """
    target, partial = out / FRAMES, out / f"{FRAMES}.partial"
    finish_folder(partial, target)
    inputs = _inputs_sha256(clips, settings)
    if not restart:
        check_version(target)
    same = stored_inputs(target, restart or repair) == inputs
    if same and not restart and is_whole(target, repair):
        table = FramesTable.open(target)
        quarantine = tuple(read_quarantine(target / QUARANTINE))
        progress(len(clips), len(quarantine))
        return report_of(table.manifest, True, quarantine)
    with clear_disk_errors(out, "finished shards, and all of the next one but its last few clips,"):
        chunks = [clips[start:start + CLIPS_PER_SHARD] for start in range(0, len(clips), CLIPS_PER_SHARD)]
        done = _open_partial(partial, inputs, settings, restart)
        if same and not restart:
            link_shards(target, partial, settings.described(), chunks, done)
        taken_over = sum(entry["shard"]["rows"] for entry in done.values() if entry["shard"])
        check_space(out, sum(len(chunk) for index, chunk in enumerate(chunks) if index not in done),
                    settings.sets * settings.frames * settings.size ** 2 * 3)
        former = former_rows(None if restart or len(done) == len(chunks) else target, partial, settings.described(),
                             frames_schema(settings.meta()), settings.rule == "jitter", done)
        copied, decoded = _write_missing_shards(chunks, done, partial, settings, workers, progress, limit_seconds, former)
        entries = [done[index] for index in range(len(chunks))]
        quarantine = tuple(bad for entry in entries for bad in entry["quarantine"])
        shards = [entry["shard"] for entry in entries if entry["shard"]]
        if not shards:
            shutil.rmtree(partial)
            raise ValueError(f"none of the {len(clips)} clips can be used; first: {quarantine[0]['path']}: {quarantine[0]['reason']}")
        write_atomic(partial / QUARANTINE, "".join(json.dumps(bad, ensure_ascii=False) + "\n" for bad in quarantine).encode())
        for path in kept_files(partial):
            path.unlink()
        manifest = manifest_of(FRAMES, settings.meta(), shards, inputs_sha256=inputs, quarantined=len(quarantine), reader=settings.reader)
        write_atomic(partial / MANIFEST, json_bytes(manifest))
        (partial / JOURNAL).unlink()
        swap_folder(partial, target)
    return report_of(manifest, False, quarantine, taken_over + copied, decoded, former.unproven)


def _open_partial(partial: Path, inputs: str, settings: FrameSettings, restart: bool) -> dict[int, dict]:
    """The shards of these inputs that an earlier run left whole, by number. Of what else it left, rows of these settings are kept.

    With `restart` only a run that was begun with it counts.
    """
    check_partial(partial)
    header, _ = read_journal(partial)
    same = header.get("inputs_sha256") == inputs or header.get("settings") == settings.described()
    if same and (header.get("restart", False) or not restart):
        keep_rows(partial, inputs)
    elif partial.exists():
        shutil.rmtree(partial)
    return open_journal(partial, inputs, settings=settings.described(), restart=restart)


def _write_missing_shards(chunks: list[list[Clip]], done: dict[int, dict], partial: Path, settings: FrameSettings, workers: int,
                          progress: Callable[[int, int], None], limit_seconds: float, former: FormerRows) -> tuple[int, int]:
    """Make the shards that are not `done`, with rows of `former` where there are any; returns how many rows were copied, how many clips decoded."""
    clips_done = sum(len(chunks[index]) for index in done)
    quarantined = sum(len(entry["quarantine"]) for entry in done.values())
    progress(clips_done, quarantined)
    missing = [index for index in range(len(chunks)) if index not in done]
    tasks = [ClipTask(str(clip.path), settings, clip.clip_id, clip.category) for index in missing for clip in chunks[index]]
    function = bound(_decode_in_worker, former.known()) if workers else bound(decode_clip, known=former.known())
    results = run_in_order(function, tasks, min(workers, len(tasks)), limit_seconds, _other_reader)
    schema = frames_schema(settings.meta())
    copied, disk = 0, _Disk()
    try:
        for index in missing:
            writer = disk.open(partial / f"{FRAMES}-{index:05d}.arrow", schema)
            bad: list[dict] = []
            for clip, result in zip(chunks[index], results):
                if isinstance(result, SameFile):
                    disk.later(_copy_row, writer, former, clip, result.sha256)
                    copied += 1
                elif isinstance(result, ClipPixels):
                    disk.later(writer.add, _frames_row(clip, result, settings))
                else:
                    reason = result.reason if isinstance(result, Lost) else str(result)
                    bad.append({"clip_id": clip.clip_id, "path": str(clip.path), "reason": reason})
                clips_done += 1
                progress(clips_done, quarantined + len(bad))
            quarantined += len(bad)
            disk.later(_finish_shard, index, writer, bad, done, partial / JOURNAL)
        disk.wait()
    finally:
        results.close()
        disk.close()
    return copied, len(tasks) - copied


def _copy_row(writer: ShardWriter, former: FormerRows, clip: Clip, sha256: str) -> None:
    writer.add(former.row(clip, sha256))


class _Disk:
    """A thread that writes rows and finishes shards in the order given, while the next clips are decoded; nothing else writes rows."""

    def __init__(self):
        self._thread = ThreadPoolExecutor(1, "shard writer")
        self._waiting: deque[Future] = deque()
        self._failed = False
        self._writers: list[ShardWriter] = []

    def open(self, path: Path, schema) -> ShardWriter:
        self._writers.append(ShardWriter(path, schema, FRAMES_PER_BATCH, resumable=True))
        return self._writers[-1]

    def later(self, function: Callable, *arguments: object) -> None:
        """Do this when all before it is done; raises what went wrong with an earlier one."""
        self._waiting.append(self._thread.submit(self._do, function, *arguments))
        while len(self._waiting) > WAITING_FOR_DISK or (self._waiting and self._waiting[0].done()):
            self._waiting.popleft().result()

    def _do(self, function: Callable, *arguments: object) -> None:
        # After a failure nothing more is done: a shard that lacks a piece must not be finished, even if the disk has room again by then.
        if not self._failed:
            self._failed = True
            function(*arguments)
            self._failed = False

    def wait(self) -> None:
        while self._waiting:
            self._waiting.popleft().result()

    def close(self) -> None:
        """Do what waits, end the thread, and leave the whole batches of the shards that are not whole for a later run, after a failure too."""
        self._thread.shutdown()
        for writer in self._writers:
            writer.leave(self._failed)


def _finish_shard(index: int, writer: ShardWriter, bad: list[dict], done: dict[int, dict], journal: Path) -> None:
    """Make a shard whole and durable, then say so in the journal. One without a single good clip is not written."""
    line = writer.close() if writer.rows else None
    done[index] = {"index": index, "shard": line, "quarantine": bad}
    append_durably(journal, done[index])
    writer.abort()


def _frames_row(clip: Clip, pixels: ClipPixels, settings: FrameSettings) -> dict:
    row = {"clip_id": clip.clip_id, "category": clip.category, "state": clip.state, "label": clip.label, "frames": pixels.frames_STHWC[0],
           "frame_index": pixels.index_ST[0].tolist(), "source_sha256": pixels.sha256, "source_fps": pixels.fps, "source_frames": pixels.n_frames}
    if settings.sets > 1:
        row |= {"more_frames": pixels.frames_STHWC[1:], "more_index": pixels.index_ST[1:].reshape(-1).tolist()}
    return {**row, "box": pixels.box} if settings.regions else row


def _inputs_sha256(clips: list[Clip], settings: FrameSettings) -> str:
    """A digest of what would be packed: a file counts as the same while its size and time of change are."""
    lines = []
    for clip in clips:
        try:
            lines.append([clip.clip_id, clip.category, clip.state, *clip_stat(clip.path)])
        except OSError as error:
            lines.append([clip.clip_id, clip.category, clip.state, error.errno, 0])
    return sha256_text(json.dumps([VERSION, CLIPS_PER_SHARD, settings.as_inputs(), lines]))


def check_kept(clips: list[Clip], out: Path, settings: FrameSettings, repair: bool = False, drop: bool = False) -> list[str]:
    """Raise ValueError where packing would discard clips that were finished, naming the settings that differ, or a manifest that cannot be used
    (with `repair` one of a newer version alone); and, without `drop`, where most of the clips packed are not among these. Returns what to say of
    others that will be dropped. Writes nothing."""
    target, partial = out / FRAMES, out / f"{FRAMES}.partial"
    check_version(target)
    if stored_inputs(target, repair) == _inputs_sha256(clips, settings):
        return []
    wanted = settings.described()
    for folder, (packed, clips_there) in {partial: unfinished_clips(partial), target: finished_clips(target)}.items():
        # Which reader it was is not known where the manifest is lost.
        changed = [f"{name} {packed.get(name, 'not given')} -> {wanted.get(name, 'not given')}"
                   for name in sorted({*packed, *wanted} - {"version"}) if packed.get(name) not in (wanted.get(name), UNKNOWN)]
        if clips_there and changed:
            raise ValueError(f"{folder}: settings differ ({', '.join(changed)}), and {clips_there} finished clip(s) would be discarded: "
                             "give the former settings, another --out, or --restart to decode all anew")
    return check_dropped({clip.clip_id for clip in clips}, target, partial, drop)


def report_of(manifest: dict, skipped: bool, quarantine: tuple[dict, ...] = (), taken_over: int = 0, decoded: int = 0,
              unproven: tuple[str, ...] = ()) -> PackReport:
    """What a packing call did, by the manifest that stands there now."""
    shards = manifest["shards"]
    return PackReport(manifest["rows"], len(shards), sum(line["bytes"] for line in shards), skipped, quarantine, taken_over, decoded, unproven)
