"""Score predictions: `python launch/score.py --predictions runs/NAME/predictions.jsonl --out scores --data packed`. Needs no torch."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from rich.console import Console

from vlmphys.files import write_atomic
from vlmphys.predictions import Predictions, read_labels, read_predictions
from vlmphys.priors import known_categories, load_prior
from vlmphys.prompts import verdict_answer, true_verdict
from vlmphys.report import last_losses, write_html
from vlmphys.scoring import name_runs, score_predictions, scores_document
from vlmphys.tables import markdown_text, print_scores


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Figures per category and their means, from the predictions of vlmphys or of any other "
                                                 "program (JSONL or CSV with clip_id, label, score). "
                                                 "Writes scores.json, table.md and report.html.")
    parser.add_argument("--predictions", nargs="+", required=True, metavar="[NAME=]FILE", help="one file, or several to put side by side")
    parser.add_argument("--out", required=True, type=Path, help="folder for the results")
    parser.add_argument("--labels", type=Path, help="JSONL or CSV with clip_id and label, where the predictions have none")
    parser.add_argument("--data", type=Path, help="folder written by data_prep/pack.py: film strips, and checks against its split")
    parser.add_argument("--run", nargs="+", metavar="[NAME=]FOLDER", help="run folders, for a table of their last training losses "
                                                                          "(default: those that the predictions lie in)")
    parser.add_argument("--priors", type=Path, help="folder with further priors, for reference explanations")
    parser.add_argument("--threshold", type=float, help="score from which a clip counts as anomalous (default: 0 for log-odds, "
                                                        "0.5 where all scores of another program lie in [0, 1])")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap intervals")
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
    labels = read_labels(arguments.labels) if arguments.labels else None
    frames = split = None
    if arguments.data:
        from vlmphys.shards import open_packed
        packed = open_packed(arguments.data)
        frames, split = packed.frames, packed.split
    files = name_runs(arguments.predictions)
    folders = name_runs(arguments.run) if arguments.run else {name: path.parent for name, path in files.items() if path.parent.is_dir()}
    predictions = {name: read_predictions(path, labels) for name, path in files.items()}
    if arguments.data:
        check_fingerprints(predictions.values(), packed.fingerprint, arguments.data)
    losses = {name: last_losses(folder) for name, folder in folders.items()}
    runs = {name: score_predictions(table, arguments.threshold, arguments.seed, split) for name, table in predictions.items()}
    page = write_html(runs, predictions, frames, reference_reader(arguments.priors), {name: row for name, row in losses.items() if row})
    try:
        arguments.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--out {arguments.out} cannot be made ({error.strerror}): give a folder that you may write to") from error
    document = json.dumps(scores_document(runs), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    for name, text in (("scores.json", document), ("table.md", markdown_text(runs)), ("report.html", page)):
        write_atomic(arguments.out / name, text.encode())
    console = Console()
    # A table cut off at 80 columns helps nobody: a pipe or a log file has room.
    print_scores(runs, console if console.is_terminal else Console(width=200))
    console.print(f"report: {arguments.out / 'report.html'}", highlight=False, soft_wrap=True)


def main() -> int:
    """0: scored; 2: something is wrong, as one message says."""
    try:
        score(parse())
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
