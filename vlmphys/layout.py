"""The Phys-AD folder layout: which clips there are, of which category and state.

<root>/<category>/train/*.mp4                    normal clips only
<root>/<category>/test/anomaly_free/*.mp4        normal clips
<root>/<category>/test/<anomaly>/*.mp4           anomalous clips
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from vlmphys.records import VIDEO_SUFFIXES, Split, clip_id_of, label_of

LAYOUT = "<root>/<category>/train/*.mp4 and <root>/<category>/test/<anomaly_free or an anomaly>/*.mp4"
TRAIN_FOLDER, TEST_FOLDER, NORMAL_STATE = "train", "test", "anomaly_free"


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
        return self.clip_id.split("/")[1] == TRAIN_FOLDER


def scan_videos(root: str | Path) -> list[Clip]:
    """All clips below `root`, sorted by clip id; nothing is opened.

    Files with other suffixes (ground truth, notes) and hidden files are passed over. Raises ValueError for a root that is no
    folder, a root without clips, a video outside the layout, and two files that would share one clip id.
    """
    root = Path(root).expanduser()
    if not root.exists():
        raise ValueError(f"videos folder {root}: no such folder; expected layout: {LAYOUT}")
    if not root.is_dir():
        raise ValueError(f"videos folder {root}: is a file; expected a folder laid out as {LAYOUT}")
    clips: dict[str, Clip] = {}
    outside: list[str] = []
    for path in video_paths(root):
        place = path.relative_to(root).parts
        if len(place) == 3 and place[1] == TRAIN_FOLDER:
            state = NORMAL_STATE
        elif len(place) == 4 and place[1] == TEST_FOLDER:
            state = place[2]
        else:
            outside.append(str(path.relative_to(root)))
            continue
        clip_id = clip_id_of(path, root)
        if clip_id in clips:
            raise ValueError(f"{clips[clip_id].path} and {path} would both be clip {clip_id!r}: rename one of them")
        clips[clip_id] = Clip(clip_id, path, place[0], state, label_of(state))
    if outside:
        raise ValueError(f"videos folder {root}: {len(outside)} video file(s) stand outside the layout, first {min(outside)!r}; "
                         f"expected {LAYOUT}: move them, or point to the folder that holds the categories")
    if not clips:
        raise ValueError(f"videos folder {root}: holds no clip ({', '.join(VIDEO_SUFFIXES)}); expected layout: {LAYOUT}")
    return [clips[clip_id] for clip_id in sorted(clips)]


def video_paths(root: Path) -> list[Path]:
    """Names that end like a video, broken links and unreadable files included: packing reports those, it does not lose them."""
    found = []
    for folder, subfolders, names in os.walk(root, followlinks=True):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        found += [Path(folder, name) for name in names if not name.startswith(".") and name.lower().endswith(VIDEO_SUFFIXES)]
    return found
