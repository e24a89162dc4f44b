"""`vlmphys detect`: clips from a file, a folder, standard input or a watched folder, each judged once by a model that stays loaded."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from io import TextIOWrapper
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from vlmphys.files import check_target, write_atomic, writing
from vlmphys.finished import chance_note, check_run
from vlmphys.layout import video_paths
from vlmphys.frame_rules import VideoError
from vlmphys.predictions import Explain
from vlmphys.priors import load_prior
from vlmphys.records import AUTO, VIDEO_SUFFIXES, Verdict
from vlmphys.shown import NOT_JUDGED, Refused, card_html, page, panel, plain, summary
from vlmphys.sources import PICTURE_SUFFIXES
from vlmphys.watching import Journal, watch

if TYPE_CHECKING:
    from vlmphys.detector import Detection, Detector

STDIN = "-"
TEXT_SUFFIXES = (".txt", ".csv", ".tsv", ".json", ".jsonl", ".lst")
NORMAL, ANOMALOUS, ERROR = 0, 3, 2
UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0}


@dataclass(frozen=True)
class DetectOptions:
    """What to judge, and how to say it. Either `target` (files and folders, or `-`) or `watch` (a folder) is given. Times are in seconds."""

    run: Path
    category: str
    target: Sequence[str] = ()
    watch: Path | None = None
    state: Path | None = None               # the watched folder's journal; detections.jsonl in it where None
    priors: Path | None = None
    json: bool = False
    html: Path | None = None
    window: float | None = None             # None: the whole clip at once
    stride: float | None = None             # None: half a window
    explain: Explain = Explain.ALL
    device: str = "auto"
    dtype: str = "auto"
    settle: float = 1.0                     # how long size and time of change must rest before a watched clip is read
    until_idle: float | None = None         # None: watch until interrupted

    def check(self) -> None:
        """Raise ValueError for options that do not go together."""
        if (not self.target) == (self.watch is None):
            raise ValueError("give FILEs, FOLDERs or - (paths on standard input), or --watch DIR, and not both")
        if STDIN in self.target and len(self.target) > 1:
            raise ValueError("- takes all paths from standard input: give no FILE or FOLDER beside it")
        if self.stride is not None and self.window is None:
            raise ValueError("--stride needs --window: a clip without windows is judged once")
        if self.watch is None and (self.state is not None or self.until_idle is not None):
            raise ValueError("--state and --until-idle belong to --watch DIR")
        if self.watch is not None and self.html is not None:
            raise ValueError("--html is one page of clips that are all there: leave it out with --watch, and run vlmphys detect on the folder for it")
        for option in ("window", "stride", "until_idle"):
            value = getattr(self, option)
            if value is not None and not value > 0:
                raise ValueError(f"--{option.replace('_', '-')} {value:g}s: more than 0 seconds are needed")
        if self.settle < 0:
            raise ValueError(f"--settle {self.settle:g}s: 0 seconds or more are needed")


def seconds_of(text: str) -> float:
    """Seconds in `4s`, `4`, `500ms` or `2m`. Raises ValueError for anything else."""
    unit = next((unit for unit in UNITS if text.endswith(unit)), "")
    try:
        value = float(text.removesuffix(unit)) * UNITS.get(unit, 1.0)
    except ValueError:
        value = float("nan")
    if not 0 <= value < float("inf"):
        raise ValueError(f"{text!r} is no length of time: give seconds, such as 4s or 0.5s")
    return value


def detect(options: DetectOptions, console) -> int:
    """Judge what is asked for; the exit status: 2 where a clip could not be judged, else 3 where one is anomalous, else 0.

    Raises ValueError, before a clip is read, for options, a run, a category or a path that cannot be used.
    """
    options.check()
    if options.html is not None:
        check_target("--html", options.html)
    # All that a slip of the hand can spoil is looked at before the imports, which take seconds.
    paths = list(map(paths_of, options.target))
    check_run(options.run)
    if options.category != AUTO and (options.priors is None or options.priors.is_dir()):
        load_prior(options.category, options.priors)
    from vlmphys.detector import Detector
    with console.status(f"loading {plain(str(options.run))}") if console.is_terminal and not options.json else nullcontext():
        detector = Detector(options.run, options.priors, options.device, options.dtype)
    detector.check_category(options.category)
    if options.category not in (AUTO, *detector.categories):
        print(f"note: the run was not trained on {options.category!r}, only on {', '.join(detector.categories)}: its verdict on it may mean nothing",
              file=sys.stderr)
    if note := chance_note(options.run):
        print(f"note: {note}", file=sys.stderr)
    verdicts: list[str] = []
    cards: list[str] = []

    def emit(found: Detection | Refused) -> None:
        verdicts.append(NOT_JUDGED if isinstance(found, Refused) else found.verdict)
        say(found, options.json, console)
        if options.html is not None:
            cards.append(card_html(found))

    def judged(path: Path) -> Detection | Refused:
        return judge(detector, path, options)

    def ready(journal: Journal) -> None:
        before, now = journal.anomalous_from, detector.calibration.anomalous_from
        if before not in (None, now):
            print(f"note: the clips in {journal.path} were judged anomalous from probability {before:.3f}, new ones are from {now:.3f}: the run was "
                  "calibrated meanwhile; give another --state to judge all clips again", file=sys.stderr)
        print(f"watching {options.watch}; Ctrl-C ends it", file=sys.stderr, flush=True)
    if options.watch is not None:
        watch(options.watch, options.state, f"{detector.label}, --category {options.category}", judged, emit, options.settle, options.until_idle,
              ready)
    else:
        for path in chain.from_iterable(paths):
            emit(judged(path))
    if options.html is not None:
        with writing("--html", options.html, "file"):
            write_atomic(options.html, page(cards, detector.label, summary(verdicts)).encode(errors="replace"))
        if not options.json:
            console.print(f"page: {options.html}", highlight=False, markup=False, soft_wrap=True)
    if len(verdicts) > 1 and not options.json:
        console.print(summary(verdicts), highlight=False, markup=False)
    return ERROR if NOT_JUDGED in verdicts else ANOMALOUS if Verdict.ANOMALOUS.value in verdicts else NORMAL


def judge(detector: Detector, path: Path, options: DetectOptions) -> Detection | Refused:
    """What the model says of one file, or why it cannot be judged."""
    try:
        if options.window is None:
            return detector.detect(path, options.category, options.explain)
        return detector.detect_windows(path, options.category, options.window, options.stride or options.window / 2, options.explain)
    except VideoError as error:
        return Refused(str(path), " ".join(str(error).split()))


def say(found: Detection | Refused, as_json: bool, console) -> None:
    """One line of JSON, or a panel; a clip that cannot be judged is a sentence on stderr, too."""
    if as_json:
        print(json.dumps(found.as_json()), flush=True)
    elif not isinstance(found, Refused):
        console.print(panel(found))
    if isinstance(found, Refused):
        print(f"error: {plain(found.source)}: {plain(found.error)}", file=sys.stderr, flush=True)


def paths_of(target: str) -> Iterator[Path]:
    """The clips of a file, a folder (and its folders, sorted), or `-`: one path a line, each as soon as it is there. A folder that holds pictures
    and no video is one clip.

    Raises ValueError for a path that does not exist, for a folder without videos, and, at its end, for a standard input without a path.
    """
    if target == STDIN:
        return _paths_of_stream(sys.stdin)
    path = Path(target).expanduser()
    if not path.exists():
        raise ValueError(f"{target}: no such file or folder; give a clip, a folder of clips, or - for paths on standard input")
    if not path.is_dir():
        if path.suffix.lower() in TEXT_SUFFIXES:
            raise ValueError(f"{target}: a text, not a clip; a list of paths comes on standard input: vlmphys detect - < {target}")
        return iter([path])
    found = sorted(video_paths(path))
    if not found and any(name.lower().endswith(PICTURE_SUFFIXES) for name in os.listdir(path)):
        return iter([path])
    if not found:
        raise ValueError(f"{target}: this folder holds no clip ({', '.join(VIDEO_SUFFIXES)})")
    return iter(found)


def _paths_of_stream(stream: TextIO | None) -> Iterator[Path]:
    """One path a line; empty lines are passed over."""
    if isinstance(stream, TextIOWrapper):
        stream.reconfigure(errors="surrogateescape")        # a name need not be UTF-8, and one that is not must not end the stream
    found = False
    for line in stream or ():      # None: it was closed
        if line.endswith("\0"):
            raise ValueError("the paths on standard input are parted by NUL (find -print0, git ls-files -z): one path a line is needed")
        if line.strip():
            found = True
            yield Path(line.rstrip("\r\n"))
    if not found:
        raise ValueError("no path came on standard input: give one clip a line, or a FILE or FOLDER in place of -")
