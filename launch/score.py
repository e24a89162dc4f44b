"""Score predictions: `python launch/score.py --predictions runs/NAME/predictions.jsonl --out scores --data packed`. Needs no torch unless
figures of the texts ask for it (--sbert, --judge local:DIR)."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from rich.console import Console

from vlmphys.comparison import ablation_tables, check_common, compare_runs, named_by_variant
from vlmphys.files import read_json, write_atomic, writing
from vlmphys.judge_options import JOURNAL_NAME
from vlmphys.predictions import Predictions, read_labels, read_predictions
from vlmphys.priors import known_categories, load_prior
from vlmphys.prompts import verdict_answer, true_verdict
from vlmphys.published import ablation_beside, beside_table, published_note, published_record, published_rows_table, texts_beside
from vlmphys.records import Split, label_of
from vlmphys.report import last_losses, write_html
from vlmphys.scoring import compare_clips, name_runs, score_predictions, scores_document
from vlmphys.signals import exit_status
from vlmphys.tables import csv_text, markdown_text, print_scores, text_table
from vlmphys.text_figures import clip_lines, explanation_tables
from vlmphys.text_metrics import add_text_arguments, score_texts
from vlmphys.text_tables import TextTable

WRITTEN = ("scores.json", "table.md", "table.csv", "table.tex", "report.html")
# Of the texts' figures, where they are asked for: what was found of each clip, and the judge's replies, which are kept for the next time.
TEXTS_NAME = "texts.jsonl"
ALSO_WRITTEN = (TEXTS_NAME, JOURNAL_NAME)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Figures per category and their means, from the predictions of vlmphys or of any other "
                                                 "program (JSONL or CSV with clip_id, label, score, where a higher score means more anomalous; the "
                                                 "texts of LLaMA-Factory, lmms-eval and Phys-AD). Writes scores.json, table.md, table.csv, table.tex "
                                                 "and report.html.")
    files = parser.add_mutually_exclusive_group(required=True)
    files.add_argument("--predictions", nargs="+", action="extend", metavar="[NAME=]FILE", help="one file, or several to put side by side")
    files.add_argument("--compare", nargs="+", action="extend", metavar="[NAME=]FILE",
                       help="several files: side by side, and each against the first by paired differences (the ablation: no_physics, single_turn, "
                            "multi_turn)")
    parser.add_argument("--out", required=True, type=Path, help="folder for the results, of their own")
    parser.add_argument("--overwrite", action="store_true", help="write into --out although it holds other files, or scores of other "
                                                                 "predictions, which are lost")
    parser.add_argument("--labels", type=Path, help="JSONL or CSV with clip_id and label, where the predictions have none")
    parser.add_argument("--data", type=Path, help="folder written by data_prep/pack.py: film strips, checks against its split, and "
                                                   "labels where the predictions have none")
    parser.add_argument("--run", nargs="+", action="extend", metavar="[NAME=]FOLDER", help="run folders, for a table of their last training losses "
                                                                          "(default: those that the predictions lie in)")
    parser.add_argument("--priors", type=Path, help="folder with further priors, for reference explanations")
    parser.add_argument("--threshold", type=float, help="score from which a clip counts as anomalous (default: 0 for log-odds, "
                                                        "0.5 where all scores of another program lie in [0, 1])")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap intervals")
    parser.add_argument("--no-published", action="store_true", help="leave the published figures out of the terminal and of all files")
    add_text_arguments(parser)
    return parser.parse_args(arguments)


def reference_reader(priors: Path | None):
    """(category, state) -> the first reference explanation as an answer would put it; None where no prior has one."""
    known = set(known_categories(priors))

    @cache
    def reference_of(category: str, state: str) -> str | None:
        if category not in known:
            return None
        try:
            return verdict_answer(true_verdict(state), load_prior(category, priors).texts_of(state).explanations[0])
        except ValueError:  # another program's folder may have states that no prior knows: its clips have no reference
            return None
    return reference_of


def predictions_files(files: dict[str, Path], out: Path) -> dict[str, str]:
    """Each run's predictions file as scores.json names it: by its place as seen from the results, so that both can move together."""
    return {name: Path(os.path.relpath(os.path.realpath(path), os.path.realpath(out))).as_posix() for name, path in files.items()}


def check_out(out: Path, files: dict[str, Path]) -> None:
    """Refuse a folder that holds anything but results of these predictions: ValueError that says what stands there."""
    if not out.exists():
        return
    cure = "give another --out, or --overwrite"
    present = sorted(path.name for path in out.iterdir() if not path.name.startswith("."))
    if others := [name for name in present if name not in (*WRITTEN, *ALSO_WRITTEN)]:
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        raise ValueError(f"--out {out} holds {others[0]}{more}, which score.py did not write: {cure}")
    if "scores.json" not in present:
        return
    stored = read_json(out / "scores.json", cure)
    runs = stored["runs"].values() if isinstance(stored.get("runs"), dict) else [stored]
    earlier = [run.get("predictions_file") if isinstance(run, dict) else None for run in runs]
    if set(earlier) != set(predictions_files(files, out).values()):
        named = ", ".join(os.path.normpath(out / file) if file else "a file that it does not name" for file in earlier)
        raise ValueError(f"--out {out} holds the scores of other predictions ({named}): {cure}")


def check_fingerprints(tables: Iterable[Predictions], fingerprint: str, data: Path) -> None:
    """Refuse rows that say that they were predicted on another packed folder: its split and its frames would be shown as theirs."""
    for table in tables:
        if others := table.data_fingerprints - {fingerprint}:
            raise ValueError(f"{table.path} was predicted on other packed data (fingerprint {min(others)[:12]}) than --data {data} "
                             f"({fingerprint[:12]}): give the folder that it was predicted on, or leave --data out")


def score(arguments: argparse.Namespace) -> None:
    """Read, compute, print and write; nothing is written before all of it is computed."""
    if arguments.out.exists() and not arguments.out.is_dir():
        raise ValueError(f"--out {arguments.out} is a file: give a folder")
    if arguments.compare and len(arguments.compare) < 2:
        raise ValueError("--compare needs two files or more, the first of them to compare with: give another one, or use --predictions")
    files = name_runs(arguments.compare or arguments.predictions)
    if not arguments.overwrite:
        check_out(arguments.out, files)
    labels = read_labels(arguments.labels) if arguments.labels else None
    frames = split = packed_labels = order = None
    quarantined: set[str] = set()
    if arguments.data:
        from vlmphys.shards import open_packed
        packed = open_packed(arguments.data)
        frames, split = packed.frames, packed.split
        packed_labels = {clip_id: label_of(state) for clip_id, (_, state) in frames.states().items()}
        order = packed.clip_ids(Split.TEST)
        quarantined = {bad["clip_id"] for bad in packed.quarantined()}
    folders = name_runs(arguments.run) if arguments.run else {name: path.parent for name, path in files.items() if path.parent.is_dir()}
    order = list(labels) if labels is not None else order
    predictions = {name: read_predictions(path, labels, packed_labels, order) for name, path in files.items()}
    if arguments.compare and not {argument.partition("=")[0] for argument in arguments.compare} & set(files):
        names = named_by_variant({name: table.constants["variant"] for name, table in predictions.items()})
        files, folders, predictions = ({names.get(name, name): value for name, value in of_run.items()} for of_run in (files, folders, predictions))
    if arguments.data:
        check_fingerprints(predictions.values(), packed.fingerprint, arguments.data)
    if arguments.compare:
        check_common(predictions)
    losses = {name: last_losses(folder) for name, folder in folders.items()}
    n_common, difference = compare_clips(predictions)
    runs = {name: score_predictions(table, arguments.threshold, arguments.seed, split, quarantined) for name, table in predictions.items()}
    for name, file in predictions_files(files, arguments.out).items():
        runs[name]["predictions_file"] = file
        runs[name]["warnings"] += [difference] if difference else []
    comparison = compare_runs(predictions, runs, arguments.seed) if arguments.compare else None
    clips = score_texts(arguments, predictions, runs, print)
    beside_paper = ablation_beside(runs) if comparison and not arguments.no_published else None
    tables = ablation_tables(comparison, not arguments.no_published) if comparison else []
    tables += [*([beside_paper] if beside_paper else ()), *explanation_tables(runs)]
    published = [] if arguments.no_published else list(filter(None, (beside_table(runs), published_rows_table(runs), texts_beside(runs))))
    page = write_html(runs, predictions, frames, reference_reader(arguments.priors), {name: row for name, row in losses.items() if row},
                      [*tables, *published], {name: found for name, (_, found) in clips.items()})
    beside = None if arguments.no_published else published_record(runs)
    written = texts(runs, scores_document(runs, n_common, comparison=comparison, published=beside), [*tables, *published], page)
    with writing("--out", arguments.out):
        arguments.out.mkdir(parents=True, exist_ok=True)
        for name, text in written.items():
            write_atomic(arguments.out / name, text.encode())
        if clips:
            write_atomic(arguments.out / TEXTS_NAME, clip_lines(clips).encode(errors="replace"))
        else:
            (arguments.out / TEXTS_NAME).unlink(missing_ok=True)
    show(runs, tables, None if arguments.no_published else published_note(runs), arguments.out / "report.html")


def texts(runs: dict[str, dict], document: dict, tables: list[TextTable], page: str) -> dict[str, str]:
    """What each file holds, by its name; document: of scores.json."""
    written = (json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n",
               "\n".join([markdown_text(runs), *(table.markdown() for table in tables)]), csv_text(runs, document.get("comparison")),
               "\n".join(table.latex() for table in (text_table(runs), *tables)), page)
    return dict(zip(WRITTEN, written, strict=True))


def show(runs: dict[str, dict], tables: list[TextTable], published: str | None, report: Path) -> None:
    """Print the runs' own tables, the paper's means in a line (None: without), and where the report is. The published rows, of other clips,
    stand in the files."""
    console = Console()
    # A table cut off at 80 columns helps nobody: a pipe or a log file has room.
    console = console if console.is_terminal else Console(width=200)
    print_scores(runs, console)
    for table in tables:
        table.show(console)
    if published:
        console.print(f"- {published}", style="dim", highlight=False)
    console.print(f"report: {report}", highlight=False, soft_wrap=True)


def main() -> int:
    """0: scored; 2: something is wrong, as one message says; 128 + the signal's number: stopped by it."""
    arguments = parse()
    return exit_status(lambda: score(arguments))


if __name__ == "__main__":
    sys.exit(main())
