"""Pack videos for training: each clip decoded once into frames shards, each dialogue tokenised into dialogue shards.

Run again at any time: what is there is kept, what is missing is made. Bad clips go to frames/quarantine.jsonl and are never replaced.
With --features a model's frozen video tower is run once over every packed clip, and what it makes of them is stored beside the frames.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from vlmphys.signals import exit_status, stop_quietly

STOPPED = "stopped; the same command goes on from here"
if __name__ == "__main__":
    stop_quietly(STOPPED)   # before the imports below, which take a second

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from vlmphys.clip_lists import check_listed, find_clips
from vlmphys.dialogue_packing import DialogueMaker, DialogueSettings, pack_dialogues
from vlmphys.dialogue_views import coloured, spread, statistics
from vlmphys.features import FEATURES, FeaturesTable
from vlmphys.files import only_writer, write_atomic
from vlmphys.frame_rules import FRAME_RULES
from vlmphys.help_text import DefaultsFormatter
from vlmphys.layout import Clip
from vlmphys.packing import READER_LIMIT_SECONDS, FrameSettings, PackReport, check_clips, check_kept, pack_frames
from vlmphys.pixels import FITS
from vlmphys.prior_lint import lint_warning
from vlmphys.priors import load_priors
from vlmphys.records import Variant, counted
from vlmphys.regions import check_categories, parse_regions
from vlmphys.shards import DIALOGUES, FRAMES, QUARANTINE, SPLIT, DialogueTable, FramesTable
from vlmphys.splits import SplitFile, check_split_target, load_split, losses
from vlmphys.standing import finish_folder
from vlmphys.video import READERS

MOST_CLASSES = 20

console = Console(highlight=False, soft_wrap=True)


def parser_of() -> argparse.ArgumentParser:
    variants = ",".join(variant.value for variant in Variant)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=DefaultsFormatter)
    parser.add_argument("--videos", help="folder of categories in the Phys-AD layout, or a list of clips: csv, jsonl, json (not needed "
                        "with --only dialogues)")
    parser.add_argument("--split", help="file written by split.py (with --only dialogues: the one packed before)")
    parser.add_argument("--model", default="tiny", help="tiny, a Hugging Face folder, or a hub id: gives image size and tokenizer")
    parser.add_argument("--out", required=True, help="folder to write")
    parser.add_argument("--variants", default=variants, help="dialogue variants, separated by commas")
    parser.add_argument("--frames", type=int, default=8, help="frames of each clip")
    parser.add_argument("--frame-rule", default="official", choices=FRAME_RULES, help="official: first to last; hf: never the last; phase: uneven "
                        "distances, so that what turns steadily does not seem to stand; jitter: official, and other moments in further sets")
    parser.add_argument("--frame-sets", type=int, default=1, metavar="N", help="sets of frames of each clip (rules jitter and phase): each epoch "
                        "of training sees another one, predictions and validations the first")
    parser.add_argument("--fit", default="crop", choices=FITS, help="how a picture becomes a square")
    parser.add_argument("--roi", action="append", default=[], metavar="[CATEGORY=]X,Y,W,H", help="cut this part out of each picture first, in "
                        "pixels or, where no number is above 1, in shares of the picture; once for all categories, or for each one")
    parser.add_argument("--reader", default="auto", choices=READERS, help="auto: PyAV, decord where PyAV refuses a file")
    parser.add_argument("--workers", type=int, help="decoding processes, 0: decode in this process (default: one a core)")
    parser.add_argument("--time-limit", type=float, default=READER_LIMIT_SECONDS, metavar="SECONDS", help="a reader that takes longer for a clip "
                        "counts as one that hangs; it is ended, and the other one tries (needs --workers of at least 1)")
    parser.add_argument("--strict", action="store_true", help="end with status 3 where a clip is in quarantine")
    parser.add_argument("--only", choices=(FRAMES, DIALOGUES), help="write this table alone; dialogues never decode")
    parser.add_argument("--restart", action="store_true", help="decode all clips anew, with these settings, whatever is packed")
    parser.add_argument("--repair", action="store_true", help="read all that is packed, and make anew the shards whose bytes changed since; those "
                        "that are missing or cut off are made anew without it, too; and take over the rows of whole shards where the manifest is "
                        "damaged or gone")
    parser.add_argument("--drop", action="store_true", help="let packed clips go that the split no longer names, even where they are most of "
                        "what is packed (a clip that has only changed its name is taken over all the same)")
    parser.add_argument("--check", action="store_true", help="check all inputs, priors and the length of dialogues, and write nothing")
    parser.add_argument("--priors", help="folder with your own <category>.yaml files")
    parser.add_argument("--seed", type=int, default=0, help="picks the paraphrases of the questions")
    parser.add_argument("--system", action="store_true", help="begin dialogues with Vicuna's system sentence")
    parser.add_argument("--shuffle-labels", type=int, metavar="SEED", help="a control: permute states among a category's train clips")
    parser.add_argument("--features", action="store_true", help="store what the tower of --model makes of each clip, which training and prediction "
                        "then take in place of pixels; without --videos and --split that alone, for the clips that are packed")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"), help="where --features runs the tower; auto: the GPU, if any")
    parser.add_argument("--show", type=int, metavar="N", help="print N of the packed dialogues, their supervised tokens in colour")
    parser.add_argument("--statistics", action="store_true", help="print how long the packed dialogues are, and what share of them is supervised")
    return parser


def main() -> int:
    options = parser_of().parse_args()
    return exit_status(lambda: 3 if run(options) and options.strict else 0, STOPPED)


def run(options: argparse.Namespace) -> int:
    """Check all inputs, then write: nothing is decoded before everything that can be known to fail has been tried. Returns how many clips are in
    quarantine."""
    check_options(options)
    out = Path(os.path.expanduser(options.out))
    workers = len(os.sched_getaffinity(0)) if options.workers is None else options.workers
    if options.features and not (options.videos or options.split or options.only):
        if options.check:
            raise ValueError("--check is about videos, split and priors: give --videos and --split, or leave --check out")
        add_features(out, options)
        return 0
    if is_look(options):
        show_dialogues(DialogueTable.open(out / DIALOGUES), load_split(out / SPLIT), options)
        return 0
    settings = DialogueSettings(tuple(options.variants.split(",")), options.seed, options.system, options.shuffle_labels)
    with_frames = options.only != DIALOGUES
    if with_frames and not (options.videos and options.split):
        raise ValueError("--videos and --split are needed, except with --only dialogues, and with --features for clips that are packed")
    split_path = Path(options.split or out / SPLIT)
    split = load_split(split_path)
    if with_frames:
        found = find_clips(options.videos)
        clips = check_clips(found, split)
        # A split of some categories alone (split.py --categories) leaves the others out on purpose.
        named = {clip.category for clip in clips}
        if others := sum(clip.category in named for clip in found) - len(clips):
            are, them = ("is", "it") if others == 1 else ("are", "them")
            console.print(f"note: {counted(others, 'clip')} of the videos {are} in no side of the split: split again to use {them}")
        states = {clip.clip_id: (clip.category, clip.state) for clip in clips}
        n_frames = options.frames
    else:
        frames = FramesTable.open(out / FRAMES)
        check_packed_as(frames, options)
        states, n_frames = frames.states(), frames.meta["frames"]
    priors = load_priors({category for category, _ in states.values()}, options.priors)
    if warning := lint_warning(priors, options.priors):
        print(warning, file=sys.stderr)

    # Transformers takes seconds to import, which the workers, who import this file too, and the mistakes above need not wait for.
    from vlmphys.model import load_tokenizer, read_facts

    tokenizer = load_tokenizer(options.model)
    facts = read_facts(options.model, tokenizer)
    maker = DialogueMaker(facts, tokenizer, priors, n_frames, settings)
    frame_settings = FrameSettings(n_frames, facts.image_size, options.frame_rule, options.fit, options.reader, options.frame_sets,
                                   parse_regions(options.roi))
    check_categories(frame_settings.regions, {category for category, _ in states.values()})
    trained_on = facts.frames_trained_on
    if with_frames and trained_on is not None and n_frames != trained_on:
        print(f"warning: --frames {n_frames}: this model was trained on {trained_on} frames a clip; with others it must learn their places anew",
              file=sys.stderr)
    maker.check(states)
    check_split_copy(out)
    if options.check:
        if with_frames:
            say_what_goes(clips, out, frame_settings, options)
            check_listed(options.videos, clips)
        console.print(f"{counted(len(states), 'clip')}: split, priors and dialogues fit; nothing was written (--check)")
        return 0
    with only_writer(out):
        if with_frames:
            # Under the lock: nobody else changes what is looked at here.
            finish_folder(out / f"{FRAMES}.partial", out / FRAMES)
            say_what_goes(clips, out, frame_settings, options)
            report = decode(clips, out, frame_settings, workers, options)
            show(FRAMES, report, out)
            show_losses(*losses(states, split, (bad["clip_id"] for bad in report.quarantine)))
        if options.only != FRAMES:
            packed = FramesTable.open(out / FRAMES)
            packed.check(facts.image_size)
            show(DIALOGUES, pack_dialogues(packed.states(), split, out, maker, options.repair), out)
        if not (out / SPLIT).is_file() or (out / SPLIT).read_bytes() != split_path.read_bytes():
            write_atomic(out / SPLIT, split_path.read_bytes())
    if options.features:
        add_features(out, options)
    elif (out / FEATURES).is_dir() and FeaturesTable.open(out / FEATURES).stale(FramesTable.open(out / FRAMES)):
        console.print(f"note: {out / FEATURES} was made of other frames than these: run --features again, or delete it")
    if options.show or options.statistics:
        show_dialogues(DialogueTable.open(out / DIALOGUES), split, options)
    return len(report.quarantine) if with_frames else 0


def check_options(options: argparse.Namespace) -> None:
    """Raise ValueError for options that are wrong by themselves, or contradict each other."""
    if not options.out:
        raise ValueError("--out is empty: give the name of a folder")
    if options.workers is not None and options.workers < 0:
        raise ValueError(f"--workers {options.workers}: must be 0 or more")
    if not options.time_limit > 0:
        raise ValueError(f"--time-limit {options.time_limit:g}: must be more than 0 seconds")
    if options.show is not None and options.show < 1:
        raise ValueError(f"--show {options.show}: must be at least 1")
    if options.only == FRAMES and (options.show is not None or options.statistics):
        raise ValueError("--show and --statistics are about dialogues, which --only frames does not make: leave one of them out")
    if options.features:
        from vlmphys.feature_packing import device_of

        device_of(options.device)


def is_look(options: argparse.Namespace) -> bool:
    """Whether --show or --statistics is given with nothing to pack: what is packed is then only read. ValueError with --check."""
    look = bool(options.show or options.statistics) and not (options.videos or options.split or options.only or options.features)
    if look and options.check:
        raise ValueError("--check is about videos, split and priors, --show and --statistics about what is packed: leave one of them out")
    return look


def say_what_goes(clips: list[Clip], out: Path, settings: FrameSettings, options: argparse.Namespace) -> None:
    """Raise ValueError where packed clips would be lost that nobody has said may go, and print how many go else (see `check_kept`)."""
    if not options.restart:
        for line in check_kept(clips, out, settings, options.repair, options.drop):
            console.print(f"note: {line}")


def check_split_copy(out: Path) -> None:
    """As `check_split_target`, of what stands where the copy of the split goes; one that was cut off, beside packed frames, is written anew."""
    if (out / FRAMES).is_dir() and (out / SPLIT).is_file():
        try:
            json.loads((out / SPLIT).read_bytes())
        except ValueError:
            return
    check_split_target(out / SPLIT)


def check_packed_as(frames: FramesTable, options: argparse.Namespace) -> None:
    """Raise ValueError where --only dialogues is given what decides frames, and these were packed in another way: they stay as they are."""
    regions, parser = frames.meta.get("regions", {}), parser_of()
    packed = {"frames": frames.meta["frames"], "frame_rule": frames.meta["rule"], "frame_sets": frames.sets, "fit": frames.meta["fit"]}
    other = ["--" + name.replace("_", "-") for name, value in packed.items() if getattr(options, name) not in (parser.get_default(name), value)]
    other += ["--roi"] if parse_regions(options.roi) not in ({}, regions) else []
    if other:
        raise ValueError(f"{other[0]} belongs to the frames, which were packed in another way and which --only {DIALOGUES} leaves as they are: "
                         "leave the one or the other out")


def add_features(out: Path, options: argparse.Namespace) -> None:
    """Store the features of every packed clip. Raises ValueError where nothing is packed, or for another model's image size."""
    from vlmphys.feature_packing import TowerRun, device_of, pack_features
    from vlmphys.model import read_facts

    frames, device = FramesTable.open(out / FRAMES), device_of(options.device)
    with only_writer(out), bar_of("features", len(frames)) as advance:
        report = pack_features(frames, out, TowerRun(options.model, read_facts(options.model), device), advance)
    show(FEATURES, report, out)


def decode(clips, out: Path, settings: FrameSettings, workers: int, options: argparse.Namespace) -> PackReport:
    """Pack frames behind a progress bar."""
    with bar_of("decode", len(clips), " quarantined") as advance:
        return pack_frames(clips, out, settings, workers, advance, options.time_limit, options.restart, options.repair)


@contextmanager
def bar_of(doing: str, clips: int, of_bad: str = "") -> Iterator[Callable[..., None]]:
    """A progress bar: clips done, clips/s of this run, time left and, where `of_bad` says what these are, clips in quarantine.

    Gives what is to be called as it goes: `advance(clips done, quarantined)`, first with what an earlier run had done.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"),
               TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[bad]}"))
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(doing, total=clips, rate="", bad=f"0{of_bad}" if of_bad else "")
        earlier = None

        def advance(clips_done: int, quarantined: int = 0) -> None:
            nonlocal earlier
            earlier = clips_done if earlier is None else earlier
            seconds = bar.tasks[task].elapsed or 0
            rate = f"{(clips_done - earlier) / seconds:.1f} clips/s" if seconds > 0 and clips_done > earlier else ""
            bar.update(task, completed=clips_done, rate=rate, bad=f"{quarantined}{of_bad}" if of_bad else "")

        yield advance


def show_dialogues(table: DialogueTable, split: SplitFile, options: argparse.Namespace) -> None:
    """Print dialogues with their supervised tokens in colour (marked `[[1 ...]]` where there are no colours), and their lengths."""
    if options.show:
        from vlmphys.model import load_tokenizer, read_facts

        tokenizer = load_tokenizer(options.model)
        table.check(tokenizer_sha256=read_facts(options.model, tokenizer).tokenizer_sha256)
    for clip_id, variant in spread(table.keys, options.show) if options.show else ():
        row = table.row(clip_id, variant)
        side = split.clips[clip_id].value if clip_id in split.clips else "no side"
        console.rule(f"{escape(clip_id)}, {variant}, {side}: {len(row.input_ids)} tokens, {int((row.turn > 0).sum())} supervised", align="left")
        console.print(coloured(row, tokenizer, table.meta["video_token_id"], marks=not console.is_terminal))
    if options.statistics:
        lines = Table("variant", "dialogues", "tokens: least", "mean", "most", "supervised", "of these in answer 1, 2, ...")
        for one in statistics(table):
            lines.add_row(one.variant, str(len(one.lengths)), str(one.lengths.min()), f"{one.lengths.mean():.1f}", str(one.lengths.max()),
                          f"{one.supervised_share:.1%}", ", ".join(f"{share:.0%}" for share in one.turn_shares))
        console.print(lines)


def show(table: str, report: PackReport, out: Path) -> None:
    """Print what one table holds now, and what was left out of it."""
    state = "already packed" if report.skipped else "packed"
    console.print(f"{table}: {state}, {counted(report.rows, 'row')} in {counted(report.shards, 'shard')}, "
                  f"{report.nbytes / 2**20:.1f} MiB in {out / table}")
    if report.taken_over:
        console.print(f"  {report.taken_over} taken over, {report.decoded} decoded")
    if report.unproven:
        console.print(f"  rows of {counted(len(report.unproven), 'shard')} were taken over that nothing proves, first "
                      f"{Path(report.unproven[0]).name}: whole Arrow files whose sha256, and perhaps reader, the manifest no longer told; "
                      "--restart decodes all anew")
    for bad in report.quarantine[:5]:
        console.print(f"  quarantined {printable(bad['clip_id'])}: {bad['reason']}", markup=False)
    if report.quarantine:
        console.print(f"  {len(report.quarantine)} clip(s) in quarantine, all in {out / table / QUARANTINE}: nothing stands in their place")


def show_losses(lines: list[str], empty: list[str]) -> None:
    """Print which classes lost clips to the quarantine, and warn of those that a side of the split has no more."""
    for line in lines[:MOST_CLASSES]:
        console.print(f"  {printable(line)}", markup=False)
    if len(lines) > MOST_CLASSES:
        console.print(f"  and {counted(len(lines) - MOST_CLASSES, 'class', 'classes')} more")
    for line in empty:
        print(f"warning: {printable(line)}: mend these files, or split what can be read", file=sys.stderr)


def printable(name: str) -> str:
    """A clip's name on one line, whatever it holds."""
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in name)


if __name__ == "__main__":
    sys.exit(main())
