"""Check packed data: read every row again, compare hashes, counts, columns, masks, split and priors. Exit status 1 on problems; hints are
none."""

from __future__ import annotations

import argparse
import sys

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vlmphys.verifying import verify


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="folder that pack.py wrote")
    parser.add_argument("--priors", help="folder with your own <category>.yaml files, where pack.py was given one")
    parser.add_argument("--model", help="compare with this model's tokenizer and image size too")
    options = parser.parse_args()
    try:
        checks = verify(options.data, options.priors, options.model)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    table = Table("check", "what", "result")
    for check in checks:
        found = "[red]" + f"{len(check.problems)} problem(s)" if check.problems else "ok"
        table.add_row(check.name, escape(check.checked), found + (f", {len(check.hints)} hint(s)" if check.hints else ""))
    console = Console(highlight=False, soft_wrap=True)
    console.print(table)
    problems = [problem for check in checks for problem in check.problems]
    for problem in problems[:50]:
        console.print(f"problem: {problem}", markup=False)
    hints = [hint for check in checks for hint in check.hints]
    for hint in hints[:50]:
        console.print(f"hint: {hint}", markup=False)
    console.print((f"{len(problems)} problem(s) found" if problems else "all is as it should be")
                  + (f"; {len(hints)} hint(s), which are no problems" if hints else ""))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
