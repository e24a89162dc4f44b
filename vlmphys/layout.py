"""The Phys-AD folder layout: which clips there are, of which category and state.

<root>/<category>/train/*.mp4                    normal clips only
<root>/<category>/test/anomaly_free/*.mp4        normal clips
<root>/<category>/test/<anomaly>/*.mp4           anomalous clips

and that of extracted frames, a folder a clip: <root>/<category>/{train,test}/frames/NNNN_<category>_<state>/frame_NNNN.png
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vlmphys.records import VIDEO_SUFFIXES, Split, counted, label_of
from vlmphys.sources import PICTURE_SUFFIXES

# What may be a clip that somebody misses: no recording of these kinds is read, and pictures only in the layout of extracted frames.
NOT_READ = (".asf", ".vob", ".f4v", ".divx", ".mxf", ".dv", ".rm", ".rmvb", ".mjpeg", ".mjpg", ".h264", ".264", ".h265", ".265", ".hevc", ".y4m",
            ".yuv", ".ogv", ".gif", ".apng", *PICTURE_SUFFIXES, ".tif", ".tiff")
LAYOUT = "<root>/<category>/train/*.mp4 and <root>/<category>/test/<anomaly_free or an anomaly>/*.mp4"
TRAIN_FOLDER, TEST_FOLDER, FRAMES_FOLDER, NORMAL_STATE = "train", "test", "frames", "anomaly_free"


@dataclass(frozen=True, order=True)
class Clip:
    """One video file, or one folder of extracted frames.

    `state` is `anomaly_free` for every normal clip, those of the train folder included. `side` (train, val or test) is set where a list of
    clips names it; elsewhere the folder says whether a clip is the train folder's.
    """

    clip_id: str
    path: Path
    category: str
    state: str
    label: int
    side: str | None = None

    @property
    def in_train_folder(self) -> bool:
        """Whether the data set's author put it on the train side (normal clips only; what a list holds out to validate counts as train)."""
        if self.side is not None:
            return self.label == 0 and self.side != Split.TEST.value
        return self.label == 0 and self.clip_id.split("/")[1] == TRAIN_FOLDER


@dataclass(frozen=True)
class Place:
    """What a path in one of the two layouts says: category, state, the clip's folder in the first one (`fan/train`, `fan/test/stuck`), name."""

    category: str
    state: str
    folder: str
    name: str


def place_of(parts: tuple[str, ...]) -> Place | None:
    """The place of a path below the videos root, given in parts; None where it stands in neither layout.

    A video's name is its file name without suffix. A folder of frames keeps its whole name: it is unique among its neighbours.
    """
    if len(parts) < 3 or parts[1] not in (TRAIN_FOLDER, TEST_FOLDER):
        return None
    category, side = parts[:2]
    is_video = parts[-1].lower().endswith(VIDEO_SUFFIXES)
    if is_video and len(parts) == 3 and side == TRAIN_FOLDER:
        return Place(category, NORMAL_STATE, f"{category}/{TRAIN_FOLDER}", Path(parts[2]).stem)
    if is_video and len(parts) == 4 and side == TEST_FOLDER:
        return Place(category, parts[2], f"{category}/{TEST_FOLDER}/{parts[2]}", Path(parts[3]).stem)
    named = re.fullmatch(rf"\d+_{re.escape(category)}_(.+)", parts[-1])
    if len(parts) == 4 and parts[2] == FRAMES_FOLDER and named:
        state = NORMAL_STATE if side == TRAIN_FOLDER or label_of(named[1]) == 0 else named[1]
        folder = f"{category}/{TRAIN_FOLDER}" if side == TRAIN_FOLDER else f"{category}/{TEST_FOLDER}/{state}"
        return Place(category, state, folder, parts[3])
    return None


def scan_videos(root: str | Path) -> list[Clip]:
    """All clips below `root`, sorted by clip id; nothing is opened.

    Files with other suffixes (ground truth, notes; `passed_over` counts those that may be missed) and hidden files are passed over, and so are
    the extracted frames of a category that has videos, too. Raises ValueError for a root that is no folder, a root without clips, a
    video or a folder of frames outside the layouts, and two files that would share one clip id.
    """
    root = Path(os.path.expanduser(root))
    if not root.exists():
        raise ValueError(f"videos folder {root}: no such folder; expected layout: {LAYOUT}")
    if not root.is_dir():
        raise ValueError(f"videos folder {root}: is a file; expected a folder laid out as {LAYOUT}")
    videos, frame_folders = _clip_paths(root, _unreadable)
    for path in (*videos, *frame_folders):
        try:
            str(path).encode()
        except UnicodeEncodeError:
            raise ValueError(f"videos folder {ascii(str(root))}: the name {ascii(str(path.relative_to(root)))} is no UTF-8, so that no "
                             "file could list it: rename it") from None
    filmed = {path.relative_to(root).parts[0] for path in videos}
    clips: dict[str, Clip] = {}
    outside: list[str] = []
    for path in [*videos, *(path for path in frame_folders if path.relative_to(root).parts[0] not in filmed)]:
        place = place_of(path.relative_to(root).parts)
        if place is None:
            outside.append(str(path.relative_to(root)))
            continue
        clip_id = f"{place.folder}/{place.name}"
        if clip_id in clips:
            raise ValueError(f"{clips[clip_id].path} and {path} would both be clip {clip_id!r}: rename one of them")
        clips[clip_id] = Clip(clip_id, path, place.category, place.state, label_of(place.state))
    if outside:
        raise ValueError(f"videos folder {root}: {counted(len(outside), 'video file')} outside the layout, first {min(outside)!r}; "
                         f"expected {LAYOUT}: move them, or point to the folder that holds the categories")
    if not clips:
        raise ValueError(f"videos folder {root}: holds no clip ({', '.join(VIDEO_SUFFIXES)}); expected layout: {LAYOUT}")
    return [clips[clip_id] for clip_id in sorted(clips)]


def passed_over(root: str | Path) -> str:
    """`2 files passed over (.gif, .png): ...` for files among a folder's clips that look like recordings or pictures and are none that is read;
    empty where there are none, and for a list."""
    root = Path(os.path.expanduser(root))
    found = []
    for folder, subfolders, names in os.walk(root, followlinks=True):
        parts = Path(folder).relative_to(root).parts
        subfolders[:] = [name for name in subfolders if not name.startswith(".") and not _leads_back(Path(folder, name))
                         and (len(parts) != 2 or name != FRAMES_FOLDER)]
        if len(parts) >= 2 and parts[1] in (TRAIN_FOLDER, TEST_FOLDER):
            found += [Path(name).suffix.lower() for name in names if not name.startswith(".") and name.lower().endswith(NOT_READ)]
    if not found:
        return ""
    return (f"{counted(len(found), 'file')} passed over ({', '.join(sorted(set(found)))}): a clip is a file that ends in one of "
            f"{', '.join(VIDEO_SUFFIXES)}, or a folder of frames")


def video_paths(root: Path) -> list[Path]:
    """Names below a folder that end like a video, broken links and unreadable files included: packing reports those, it does not lose them."""
    return _clip_paths(root)[0]


def _unreadable(error: OSError) -> None:
    """A folder that cannot be listed: its clips would be lost without a word."""
    raise ValueError(f"videos folder {error.filename}: cannot be read ({error.strerror}); give yourself the right to read it, or take it away")


def _clip_paths(root: Path, unreadable: Callable[[OSError], None] | None = None) -> tuple[list[Path], list[Path]]:
    """Names that end like a video, and the folders below `<category>/<train or test>/frames`, which are not looked into. Links are followed, but
    not back to a folder that one stands in: the same clips would be found again and again.

    `unreadable` is called for a folder that cannot be listed; without it such a folder is passed over.
    """
    found, frame_folders = [], []
    for folder, subfolders, names in os.walk(root, onerror=unreadable, followlinks=True):
        subfolders[:] = [name for name in subfolders if not name.startswith(".") and not _leads_back(Path(folder, name))]
        found += [Path(folder, name) for name in names if not name.startswith(".") and name.lower().endswith(VIDEO_SUFFIXES)]
        parts = Path(folder).relative_to(root).parts
        if len(parts) == 3 and parts[1] in (TRAIN_FOLDER, TEST_FOLDER) and parts[2] == FRAMES_FOLDER:
            frame_folders += [Path(folder, name) for name in subfolders]
            subfolders[:] = []
    return found, frame_folders


def _leads_back(folder: Path) -> bool:
    """Whether a link leads to a folder that it stands in itself."""
    return folder.is_symlink() and Path(os.path.realpath(folder.parent)).is_relative_to(os.path.realpath(folder))
