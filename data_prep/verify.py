"""Check packed data: read every row again, compare hashes, counts, columns, masks, split and priors; or, without --data, lint priors alone.
Exit status 1 on problems; hints are none."""

from __future__ import annotations

import argparse
import sys

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vlmphys.prior_lint import PACKAGE, PriorsReport, lint_priors
from vlmphys.records import counted
from vlmphys.signals import exit_status
from vlmphys.verifying import Check, verify

MOST_LINES = 50


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--data", help="folder that pack.py wrote")
    parser.add_argument("--priors", help="folder with your own <category>.yaml files, where pack.py was given one; without --data: the folder to "
                        f"lint, or {PACKAGE!r} for the files that ship with vlmphys")
    parser.add_argument("--model", help="compare with this model's tokenizer and image size too; without --data: whose positions a dialogue of 8 "
                        "frames, the system sentence included, must fit (default: tiny)")
    options = parser.parse_args()
    return exit_status(lambda: run(options, Console(highlight=False, soft_wrap=True)))


def run(options: argparse.Namespace, console: Console) -> int:
    """Check and show; 1 where there is a problem."""
    if options.data is None and options.priors is None:
        raise ValueError(f"nothing to check: give --data DIR, or --priors DIR (or {PACKAGE}) to lint priors alone")
    if options.data is None:
        return show_priors(lint_priors(options.priors, options.model or "tiny"), console)
    return show_checks(verify(options.data, None if options.priors == PACKAGE else options.priors, options.model), console)


def show_checks(checks: list[Check], console: Console) -> int:
    """A table of checks, then problems and hints; returns the exit status."""
    table = Table("check", "what", "result")
    for check in checks:
        found = f"[red]{len(check.problems)} problem(s)[/]" if check.problems else "ok"
        table.add_row(check.name, escape(check.checked), found + (f", {len(check.hints)} hint(s)" if check.hints else ""))
    console.print(table)
    problems = [problem for check in checks for problem in check.problems]
    hints = [hint for check in checks for hint in check.hints]
    return conclude(problems, hints, "all is as it should be", console)


def show_priors(report: PriorsReport, console: Console) -> int:
    """Problems and hints of priors, and what was read; returns the exit status."""
    counts = f"{counted(report.files, 'file')}, {counted(report.states, 'state')}, {counted(report.texts, 'text')}"
    return conclude(report.problems, report.hints, f"clean: {counts}", console, f" in {counts}")


def conclude(problems: list[str], hints: list[str], all_well: str, console: Console, place: str = "") -> int:
    """The first problems and hints, a line each, then how many there are; 1 where there is a problem, else 0."""
    for word, lines in (("problem", problems), ("hint", hints)):
        for line in lines[:MOST_LINES]:
            console.print(f"{word}: {line}", markup=False)
    console.print((f"{len(problems)} problem(s) found{place}" if problems else all_well)
                  + (f"; {len(hints)} hint(s), which are no problems" if hints else ""))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
