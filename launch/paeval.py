"""PAEval on files in the published form: `python launch/paeval.py --explanations texts.json --library library.json --judge openai --out paeval`,
or `--replies raw.json`, whose replies are read and aggregated and for which nobody is asked. Needs no torch unless --judge local:DIR is given."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from vlmphys.explanations import References, prior_references, state_key
from vlmphys.files import json_bytes, read_json, write_atomic, writing
from vlmphys.judge_options import JOURNAL_NAME, NONE, add_judge_arguments, open_judge
from vlmphys.llm_score import failure_warnings
from vlmphys.paeval_score import AGGREGATIONS, KINDS, Readings, aggregate, judge_texts, read_candidates, read_library, read_raw_replies
from vlmphys.priors import known_categories, load_prior
from vlmphys.records import nearest, sha256_file
from vlmphys.signals import exit_status

RESULT_NAME = "paeval.json"
PAEVAL_VERSION = 1


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="PAEval: descriptions and explanations against the reference texts of each clip's true state. "
                                                 f"Writes {RESULT_NAME}.")
    parser.add_argument("--descriptions", type=Path, metavar="FILE", help="candidate texts: {category: {state: [one text a clip]}}")
    parser.add_argument("--explanations", type=Path, metavar="FILE", help="the same for explanations")
    parser.add_argument("--replies", type=Path, metavar="FILE",
                        help='a judge\'s raw replies instead: {category: {"descrip": {state: [reply]}, "explain": {state: [reply]}}}')
    parser.add_argument("--library", type=Path, metavar="FILE",
                        help='references: {category: {"description_label": {state: [texts]}, "explanation_label": ...}} (default: the priors)')
    parser.add_argument("--priors", type=Path, help="folder with further priors, for references where no library is given")
    parser.add_argument("--out", required=True, type=Path, help="folder for the results, of their own")
    parser.add_argument("--overwrite", action="store_true", help="write although --out holds the results of other texts or replies, which are lost")
    add_judge_arguments(parser)
    return parser.parse_args(arguments)


def check(arguments: argparse.Namespace) -> dict[str, Path]:
    """The files of candidate texts by kind. Raises ValueError for flags that do not go together."""
    files = {kind: file for kind, file in zip(KINDS, (arguments.descriptions, arguments.explanations)) if file is not None}
    if bool(files) == (arguments.replies is not None):
        raise ValueError("give --descriptions FILE, --explanations FILE or both, to be judged; or --replies FILE, which was judged before")
    if files and arguments.judge == NONE:
        raise ValueError("candidate texts need a judge: give --judge openai, local:DIR or replay; or --replies FILE, which was judged before")
    if not files and (arguments.judge != NONE or arguments.library is not None):
        raise ValueError("--replies are grades already: leave --judge and --library out")
    if arguments.out.exists() and not arguments.out.is_dir():
        raise ValueError(f"--out {arguments.out} is a file: give a folder")
    if arguments.out.exists() and (others := sorted({path.name for path in arguments.out.iterdir()} - {RESULT_NAME, JOURNAL_NAME})):
        raise ValueError(f"--out {arguments.out} holds {others[0]}, which paeval.py did not write: give another --out")
    return files


def references_of(kind: str, library: Path | None, priors: Path | None, categories: list[str]) -> References:
    """The reference texts of one kind. Raises ValueError for a library that has none of it."""
    if library is None:
        return prior_references(categories, priors, f"{kind}s")
    found = read_library(library)[kind]
    if not found:
        raise ValueError(f"--library {library} holds no {kind}s: give one that does, or leave --{kind}s out")
    return found


def check_earlier(out: Path, files: dict[str, str]) -> None:
    """Refuse to write over the results of another file of the same kind. files: the kind of each file -> its digest."""
    if not (out / RESULT_NAME).exists():
        return
    cure = "give another --out, or --overwrite"
    earlier = read_json(out / RESULT_NAME, cure).get("files")
    earlier = earlier if isinstance(earlier, dict) else {}
    if others := [kind for kind, digest in files.items() if kind in earlier and earlier[kind] != digest]:
        raise ValueError(f"--out {out} holds the results of another file of {others[0]}: {cure}")


def unknown_states(judged: dict[str, tuple[Readings, dict | None]], priors: Path | None) -> list[str]:
    """A sentence for each state of raw replies that the prior of its category does not have; other categories have no prior to ask."""
    known, found = set(known_categories(priors)), []
    for category, state in dict.fromkeys((category, state) for readings, _ in judged.values() for category, states in readings.items()
                                         for state in states):
        if category in known and state_key(state) not in (states := load_prior(category, priors).states):
            found.append(f"{category}: its prior has no state {state!r}{nearest(state, states)}; it counts as a state of its own")
    return found


def score(arguments: argparse.Namespace, console: Console) -> None:
    """Read, ask, aggregate, write and print."""
    files = check(arguments)
    result: dict = {"version": PAEVAL_VERSION}
    judged: dict[str, tuple[Readings, dict | None]] = {}
    if arguments.replies is not None:
        judged = {kind: (readings, None) for kind, readings in read_raw_replies(arguments.replies).items()}
        result["files"] = {"replies": sha256_file(arguments.replies)}
        if not arguments.overwrite:
            check_earlier(arguments.out, result["files"])
        for note in unknown_states(judged, arguments.priors):
            console.print(f"- {note}", highlight=False, soft_wrap=True, markup=False)
    else:
        texts = {kind: read_candidates(file) for kind, file in files.items()}
        references = {kind: references_of(kind, arguments.library, arguments.priors, list(texts[kind])) for kind in texts}
        result["files"] = {f"{kind}s": sha256_file(file) for kind, file in files.items()}
        if not arguments.overwrite:
            check_earlier(arguments.out, result["files"])
        result["references"] = sha256_file(arguments.library) if arguments.library else "priors"
        with open_judge(arguments, lambda line: console.print(line, highlight=False, soft_wrap=True, markup=False)) as judge:
            judged = {kind: judge_texts(texts[kind], references[kind], judge) for kind in texts}
        records = [record for _, record in judged.values() if record["n_texts"]]
        if records and all(record["n_failed"] == record["n_texts"] for record in records):
            problems = ", ".join(f"{count} {problem}" for problem, count in records[0]["failures"].items())
            raise ValueError(f"the judge graded no text at all ({problems}): see that --judge-url and --judge-model are those of a server that "
                             "answers; nothing was written")
    for kind, (readings, record) in judged.items():
        result[kind] = {**({"judge": record} if record else {}), **aggregate(readings)}
        for warning in failure_warnings(record, f"the {kind} score") if record else []:
            console.print(f"- {warning}", highlight=False, soft_wrap=True, markup=False)
    with writing("--out", arguments.out):
        arguments.out.mkdir(parents=True, exist_ok=True)
        write_atomic(arguments.out / RESULT_NAME, json_bytes(result))
    show(result, console if console.is_terminal else Console(width=200))


def show(result: dict, console: Console) -> None:
    """The table: both aggregations of each kind, by category and their means, and what could not be read."""
    kinds = [kind for kind in KINDS if kind in result]
    table = Table(title="PAEval")
    table.add_column("category")
    for kind in kinds:
        for aggregation in AGGREGATIONS:
            table.add_column(f"{kind}, {aggregation.replace('_', ' ')}", justify="right")
        table.add_column("graded", justify="right")
    categories = list(dict.fromkeys(category for kind in kinds for category in result[kind]["per_category"]))
    for category in categories:
        table.add_row(Text(category), *(cell for kind in kinds for cell in _cells(result[kind]["per_category"].get(category))))
    table.add_section()
    table.add_row("mean", *(cell for kind in kinds for cell in _cells(result[kind]["average"])))
    console.print(table)
    for kind in kinds:
        for name, missing in result[kind]["average"]["left_out"].items():
            console.print(f"- {kind}, {name.replace('_', ' ')}: the mean leaves out {', '.join(missing)}", highlight=False, markup=False)
        if result[kind]["failures"]:
            problems = ", ".join(f"{count} {problem}" for problem, count in result[kind]["failures"].items())
            console.print(f"- {kind}: replies that are no grade are left out: {problems}", highlight=False, markup=False)


def _cells(record: dict | None) -> list[str]:
    if record is None:
        return ["–"] * 3
    figures = ["–" if record[name] is None else f"{record[name]:.3f}" for name in AGGREGATIONS]
    return [*figures, f"{record['n'] - record['n_failed'] - record['n_without']} of {record['n']}"]


def main() -> int:
    """0: scored; 2: something is wrong, as one message says; 128 + the signal's number: stopped by it."""
    arguments = parse()
    return exit_status(lambda: score(arguments, Console()))


if __name__ == "__main__":
    sys.exit(main())
