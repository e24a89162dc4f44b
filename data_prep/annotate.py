"""Draft a prior's texts with a language model, from what you wrote of the mechanism and the names of its states, for you to edit.

    python data_prep/annotate.py --prior latch.yaml --states anomaly_free,slow --out my_priors --api-base URL --model NAME
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from vlmphys.chat_asking import Asking
from vlmphys.chat_client import KEY_VARIABLE, MODEL_VARIABLE, URL_VARIABLE, ChatServer, Names, ServerSettings, Spending, server_from
from vlmphys.chat_journal import Journal
from vlmphys.draft_checks import LEAST_WORDS, MOST_WORDS
from vlmphys.drafting import Drafted, TextList, draft, estimate, lists_of
from vlmphys.files import check_target, write_atomic, writing
from vlmphys.prior_lint import unfitting_of
from vlmphys.prior_outline import Outline, faults_of, read_outline, states_below
from vlmphys.priors import KINDS, NOT_READ, PARTS, TEXTS_PER_STATE, prior_text, read_prior
from vlmphys.prompts import DRAFT_PROMPT_ID
from vlmphys.records import sha256_text
from vlmphys.signals import exit_status

NAMES = Names("the server", "--api-base", "--model", "--key-env", "--cache", "--max-requests")
DIGEST_PATTERN = re.compile(r"\A(?:#.*\n)*?# unedited as long as sha256 of what follows is ([0-9a-f]{64})\n", re.MULTILINE)
MOST_REFUSALS = 20  # shown


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prior", type=Path, required=True,
                        help="your YAML file: component, dynamic and motion; category, states, hints and texts where you have them")
    parser.add_argument("--out", type=Path, required=True, help="the file to write, <category>.yaml, or the folder for it")
    parser.add_argument("--states", default="", help="comma-separated names of the folders below test/, beside those of --prior")
    parser.add_argument("--videos", help="take the states from this folder of videos, too")
    parser.add_argument("--texts", type=int, default=TEXTS_PER_STATE, help="descriptions, and explanations, of each state (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=4, help="how often each list is asked for at most (default: %(default)s)")
    parser.add_argument("--max-words", type=int, default=MOST_WORDS, help="of a text (default: %(default)s)")
    parser.add_argument("--fit", default="tiny", metavar="MODEL", help="whose positions a dialogue of 8 frames must fit (default: %(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="show what would be asked, and at what cost; ask nothing")
    server = parser.add_argument_group("server", "of OpenAI's chat protocol; what is sent: your sentences, hints, texts and the states' names")
    server.add_argument("--api-base", metavar="URL", help=f"such as http://localhost:8000/v1 (default: {URL_VARIABLE} of the environment)")
    server.add_argument("--model", metavar="NAME", help=f"as the server names it (default: {MODEL_VARIABLE})")
    server.add_argument("--key-env", metavar="NAME", help=f"the variable of the environment that holds the key (default: {KEY_VARIABLE}, where set)")
    server.add_argument("--cache", type=Path, metavar="FILE", help="where replies are kept (default: <category>.drafts.jsonl beside --out)")
    server.add_argument("--max-requests", type=int, default=1000, metavar="N", help="of one run, further tries included (default: %(default)s)")
    server.add_argument("--concurrency", type=int, default=4, metavar="N", help="requests at a time (default: %(default)s)")
    server.add_argument("--rate", type=float, metavar="N", help="the most requests a minute (default: no limit)")
    server.add_argument("--timeout", type=float, default=120.0, metavar="SECONDS", help="of one request (default: %(default)s)")
    server.add_argument("--tries", type=int, default=5, metavar="N", help="of one request, after 429, 5xx, a time-out or a lost connection")
    server.add_argument("--max-tokens", type=int, default=1024, metavar="N",
                        help="of a reply; a model that thinks first needs more (default: %(default)s)")
    server.add_argument("--json", action="store_true", help="ask the server for a JSON object (response_format), where it knows that")
    return parser.parse_args(arguments)


def outline_of(options: argparse.Namespace) -> Outline:
    """The outline with its states. Raises ValueError for what would spoil every text: it is to be mended before anything is asked."""
    outline = read_outline(options.prior)
    names = [name.strip() for name in options.states.split(",") if name.strip()]
    if options.videos is not None:
        names += [name for name in states_below(options.videos, outline.category) if name not in names]
    outline = outline.with_states(names)
    if len(outline.states) == 1:
        raise ValueError(f"{outline.category}: no state but {next(iter(outline.states))!r}: name the anomalies with --states a,b, with "
                         f"--videos DIR, or in {options.prior}")
    if faults := faults_of(outline):
        raise ValueError(f"{options.prior}: " + "; ".join(faults))
    return outline


def target_of(options: argparse.Namespace, category: str) -> Path:
    """The file to write. Raises ValueError where it cannot be, or where it holds a person's edits."""
    out = options.out / f"{category}.yaml" if options.out.is_dir() or options.out.suffix not in (".yaml", ".yml") else options.out
    if out.suffix != ".yaml":
        raise ValueError(f"--out {out}: is {NOT_READ} {out.stem}.yaml")
    if out.stem != category:
        raise ValueError(f"--out {out}: a prior's file is named after its category, or pack.py does not find it: give {out.with_name(category)}.yaml")
    if out.parent == options.out and not out.parent.exists():
        with writing("--out", out.parent):
            out.parent.mkdir()
    check_target("--out", out)
    if out.exists() and (options.prior.samefile(out) or not unedited(out)):
        raise ValueError(f"--out {out} exists and holds what a person wrote or edited: it is left alone. Give another --out; with --prior {out} "
                         "its texts are kept, and only what is missing is drafted")
    return out


def unedited(path: Path) -> bool:
    """Whether a file is as this command wrote it."""
    text = path.read_text(encoding="utf-8", errors="replace")
    match = DIGEST_PATTERN.match(text)
    return match is not None and sha256_text(text[match.end():]) == match[1]


def beside(out: Path) -> list[tuple[str, str]]:
    """Every text of the other priors in a folder, with its place: verify.py refuses texts that stand twice in any of its files."""
    found = []
    for path in sorted(out.parent.glob("*.yaml")):
        if path.stem == out.stem:
            continue
        try:
            prior = read_prior(path)
        except ValueError:  # verify.py tells of it; nothing of it can be packed, or repeated
            continue
        found += [(getattr(prior, part), f"{path.name}: {part}") for part in PARTS]
        found += [(text, f"{path.name}: states.{state}.{kind}") for state, texts in prior.states.items() for kind in KINDS
                  for text in getattr(texts, kind)]
    return found


def file_text(drafted: Drafted, model: str) -> str:
    """The file: what a person must know of it, and the prior."""
    body = prior_text(drafted.prior())
    named = ", ".join(drafted.reply_models) or model
    lines = [f"Drafted by {named} ({DRAFT_PROMPT_ID}): {drafted.drafted} of the {drafted.texts} texts of the states. "
             "Read and edit them before training."]
    lines += [f"To write: {line}" for line in drafted.short]
    lines.append(f"unedited as long as sha256 of what follows is {sha256_text(body)}")
    return "".join(f"# {' '.join(line.split())}\n" for line in lines) + body


def show(drafted: Drafted, console: Console) -> None:
    """What was taken and refused, and why."""
    table = Table("state", *(f"{kind}: drafted + yours" for kind in KINDS), "refused")
    for state in drafted.outline.states:
        lists = {item.kind: item for item in drafted.lists if item.state == state}
        table.add_row(state, *(f"{lists[kind].drafted} + {len(lists[kind].taken) - lists[kind].drafted}" for kind in KINDS),
                      str(sum(len(item.refused) for item in lists.values())))
    console.print(table)
    refused = [(item, text, why) for item in drafted.lists for text, why in item.refused]
    for item, text, why in refused[:MOST_REFUSALS]:
        console.print(f"refused: {item.place}: {text!r}: {why}", markup=False)
    if len(refused) > MOST_REFUSALS:
        console.print(f"and {len(refused) - MOST_REFUSALS} more")
    reasons = ", ".join(f"{why} {count}" for why, count in drafted.refusals.items())
    console.print(f"{drafted.drafted} drafts taken, {len(refused)} refused" + (f" ({reasons})" if reasons else "")
                  + f"; {drafted.requests} requests", markup=False)


def dry_run(lists: list[TextList], rounds: int, console: Console) -> int:
    """Say what would be asked, and show the first question."""
    requests, tokens = estimate(lists)
    console.print(f"{len(lists)} lists, {sum(len(item.taken) for item in lists)} texts are there, {sum(item.missing for item in lists)} to draft: "
                  f"{requests} to {requests * rounds} requests, about {tokens} tokens for the first {requests}; nothing was asked")
    for message in next((item.messages() for item in lists if item.missing), ()):
        console.print(f"[{message['role']}] {message['content']}", markup=False)
    return 0


def run(options: argparse.Namespace, console: Console) -> int:
    """Draft and write; 1 where a list lacks texts."""
    for flag, value, least in (("--texts", options.texts, 1), ("--rounds", options.rounds, 1), ("--max-words", options.max_words, LEAST_WORDS),
                               ("--concurrency", options.concurrency, 1), ("--max-requests", options.max_requests, 0)):
        if value < least:
            raise ValueError(f"{flag} {value}: at least {least} is needed")
    outline = outline_of(options)
    lists = lists_of(outline, options.texts, (LEAST_WORDS, options.max_words))
    if options.dry_run:
        return dry_run(lists, options.rounds, console)
    settings = server_from(options.api_base, options.model, options.key_env, NAMES, timeout_seconds=options.timeout, tries=options.tries,
                           requests_per_minute=options.rate, max_tokens=options.max_tokens, json_mode=options.json)
    out = target_of(options, outline.category)
    drafted = ask(options, outline, lists, settings, out, console)
    show(drafted, console)
    if not drafted.texts:
        raise ValueError(f"no draft was good enough, and nothing was written: {drafted.short[0]}; give another --model, or write the texts yourself")
    if out.exists() and not unedited(out):
        raise ValueError(f"--out {out} was written by another meanwhile, and is left alone: give another --out; the replies are kept")
    with writing("--out", out, "file"):
        write_atomic(out, file_text(drafted, settings.model).encode())
    for line in drafted.short:
        console.print(f"short: {line}", markup=False)
    console.print(f"{out}: {drafted.texts} texts, {drafted.drafted} of them drafts: read and edit them before training"
                  + ("; run it again, or write what is missing yourself" if drafted.short else ""), markup=False)
    return 1 if drafted.short else 0


def ask(options: argparse.Namespace, outline: Outline, lists: list[TextList], settings: ServerSettings, out: Path, console: Console) -> Drafted:
    """Fill the lists, with every reply kept beside the file to write."""
    unfitting, spending = unfitting_of(options.fit), Spending(options.max_requests)
    cache = options.cache or out.with_name(f"{outline.category}.drafts.jsonl")
    with Journal(cache, flag=NAMES.cache) as journal:
        server = ChatServer(settings, spending)
        asking = Asking(settings.model, journal, server, spending, options.concurrency, settings.max_tokens, server.stopping,
                        lambda line: console.print(line, markup=False), NAMES)
        return draft(outline, lists, asking, options.rounds, unfitting, beside(out))


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    return exit_status(lambda: run(options, Console(highlight=False, soft_wrap=True)))


if __name__ == "__main__":
    sys.exit(main())
