"""Priors to and from PAEval reference libraries, in the published JSON form.

    python data_prep/priors.py export --out library.json [--priors DIR]
    python data_prep/priors.py import library.json --out my_priors
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from vlmphys.files import check_target, json_bytes, read_json, write_atomic, writing
from vlmphys.paeval import check_library, to_library, write_priors
from vlmphys.priors import KINDS, TEXTS_PER_STATE, few_texts, known_categories, load_priors
from vlmphys.records import counted
from vlmphys.signals import exit_status


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    out = commands.add_parser("export", help="write the texts of priors as a library", allow_abbrev=False)
    out.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    out.add_argument("--priors", help="folder with your own <category>.yaml files, beside or in place of those that ship")
    out.add_argument("--categories", help="comma-separated names (default: all)")
    out.add_argument("--texts", type=int, default=TEXTS_PER_STATE, help=f"at most so many of each list, 0 for all (default: {TEXTS_PER_STATE}, "
                     "the published form)")
    into = commands.add_parser("import", help="write a library as priors, one YAML file a category", allow_abbrev=False)
    into.add_argument("library", type=Path, help="a JSON file in the published form")
    into.add_argument("--out", type=Path, required=True, help="folder to write the YAML files into")
    into.add_argument("--priors", help="folder whose priors give the component, dynamic and motion sentences, before those that ship")
    return parser.parse_args(arguments)


def export(options: argparse.Namespace) -> int:
    """Write the library; says how many texts it holds and what falls short of the published form."""
    if options.texts < 0:
        raise ValueError(f"--texts is {options.texts}: give 0 for all, or a number above it")
    check_target("--out", options.out)
    known = known_categories(options.priors)
    names = known if options.categories is None else [name.strip() for name in options.categories.split(",") if name.strip()]
    priors = load_priors(names, options.priors)
    library = to_library(priors, options.texts or None)
    with writing("--out", options.out, "file"):
        write_atomic(options.out, json_bytes(library))
    for prior in priors.values():
        for line in few_texts(prior):
            print(f"hint: {line}")
    held = sum(len(texts) for labels in library.values() for states in labels.values() for texts in states.values())
    total = sum(len(getattr(texts, kind)) for prior in priors.values() for texts in prior.states.values() for kind in KINDS)
    print(f"{options.out}: {counted(len(library), 'category', 'categories')}, {counted(held, 'text')}"
          + (f", {total - held} left out (--texts 0 takes all)" if held < total else ""))
    return 0


def load(options: argparse.Namespace) -> int:
    """Write the YAML files; status 1 where one still has to be completed by hand."""
    library = check_library(read_json(options.library, "give a PAEval reference library"), str(options.library))
    known = load_priors(set(known_categories(options.priors)) & set(library), options.priors)
    with writing("--out", options.out):
        done = write_priors(library, known, options.out)
    mended = f"; {counted(done.mended, 'text was made a sentence', 'texts were made sentences')}" if done.mended else ""
    print(f"{options.out}: {counted(len(done.written), 'file')} written{mended}")
    for path in done.to_complete:
        print(f"to complete: {path} needs its three sentences, component, dynamic and motion (as comments at its top): "
              "no prior of that name is known")
    return 1 if done.to_complete else 0


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    return exit_status(lambda: export(options) if options.command == "export" else load(options))


if __name__ == "__main__":
    sys.exit(main())
