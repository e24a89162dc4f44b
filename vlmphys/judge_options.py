"""The flags of a judge, the same for launch/score.py and launch/paeval.py, and the judge that they name."""

from __future__ import annotations

import argparse
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from vlmphys.chat_client import KEY_VARIABLE, MODEL_VARIABLE, URL_VARIABLE, ChatServer, Names, Spending, server_from
from vlmphys.chat_journal import Journal
from vlmphys.judge import Judge

NONE, OPENAI, REPLAY, LOCAL = "none", "openai", "replay", "local:"
DEFAULT_BUDGET = "10000"
JOURNAL_NAME = "judge.jsonl"
NAMES = Names("the judge", "--judge-url", "--judge-model", "--judge-key-env", "--judge-cache", "--judge-budget")


def add_judge_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    group = parser.add_argument_group("judge", "a language model that grades the texts; what is sent to it: launch/README.md")
    group.add_argument("--judge", default=NONE, metavar="none|openai|local:DIR|replay",
                       help="openai: a server of that protocol (DeepSeek, vLLM, Ollama, ...); local: a chat model's folder; "
                            "replay: kept replies alone, nothing is asked")
    group.add_argument("--judge-url", metavar="URL", help=f"such as https://api.deepseek.com/v1 (default: {URL_VARIABLE} of the environment)")
    group.add_argument("--judge-model", metavar="NAME", help=f"as the server names it, with its version (default: {MODEL_VARIABLE})")
    group.add_argument("--judge-key-env", metavar="NAME", help=f"the variable of the environment that holds the key (default: {KEY_VARIABLE}, "
                                                               "where it is set)")
    group.add_argument("--judge-cache", type=Path, metavar="FILE", help=f"where replies are kept (default: {JOURNAL_NAME} in --out)")
    group.add_argument("--judge-budget", default=DEFAULT_BUDGET, metavar="REQUESTS[,TOKENS]",
                       help="the most that one run may ask, further tries included (default: %(default)s)")
    group.add_argument("--judge-concurrency", type=int, default=4, metavar="N", help="requests at a time (default: %(default)s)")
    group.add_argument("--judge-rate", type=float, metavar="N", help="the most requests a minute (default: no limit)")
    group.add_argument("--judge-timeout", type=float, default=120.0, metavar="SECONDS", help="of one request (default: %(default)s)")
    group.add_argument("--judge-tries", type=int, default=5, metavar="N",
                       help="of one question, after 429, 5xx, a time-out or a lost connection (default: %(default)s)")
    group.add_argument("--judge-max-tokens", type=int, default=256, metavar="N",
                       help="of a reply; a model that thinks first needs more (default: %(default)s)")
    group.add_argument("--judge-json", action="store_true", help="ask the server for a JSON object (response_format), where it knows that")


def budget_of(text: str) -> tuple[int, int | None]:
    """Requests, and tokens or None. Raises ValueError for anything else."""
    parts = text.replace("_", "").split(",")
    if len(parts) > 2 or not all(part.strip().isdecimal() for part in parts):
        raise ValueError(f"--judge-budget {text}: REQUESTS or REQUESTS,TOKENS is expected, such as 5000 or 5000,2000000")
    return int(parts[0]), int(parts[1]) if len(parts) == 2 else None


@contextmanager
def open_judge(arguments: argparse.Namespace, say: Callable[[str], None]) -> Iterator[Judge | None]:
    """The judge of the flags with its file of replies, closed at the end; None for `--judge none`."""
    kind = arguments.judge
    if kind == NONE:
        yield None
        return
    if kind not in (OPENAI, REPLAY) and not (kind.startswith(LOCAL) and kind != LOCAL):
        raise ValueError(f"--judge {kind}: allowed are {NONE}, {OPENAI}, {LOCAL}DIR and {REPLAY}")
    if arguments.judge_concurrency < 1:
        raise ValueError(f"--judge-concurrency {arguments.judge_concurrency}: at least 1 is needed")
    spending, stopping = Spending(*budget_of(arguments.judge_budget)), threading.Event()
    path = arguments.judge_cache or arguments.out / JOURNAL_NAME
    common = {"spending": spending, "max_tokens": arguments.judge_max_tokens, "stopping": stopping, "say": say,
              "names": NAMES}
    if kind == REPLAY:
        with Journal(path, writable=False, flag=NAMES.cache) as journal:
            model = arguments.judge_model or _only_model(journal)
            yield Judge(model, journal, None, about={"provider": REPLAY}, **common)
    elif kind == OPENAI:
        settings = server_from(arguments.judge_url, arguments.judge_model, arguments.judge_key_env, NAMES,
                               timeout_seconds=arguments.judge_timeout, tries=arguments.judge_tries,
                               requests_per_minute=arguments.judge_rate, max_tokens=arguments.judge_max_tokens, json_mode=arguments.judge_json)
        with Journal(path, flag=NAMES.cache) as journal:
            yield Judge(settings.model, journal, ChatServer(settings, spending, stopping), concurrency=arguments.judge_concurrency,
                        about={"provider": OPENAI, "base_url": settings.base_url}, **common)
    else:
        from vlmphys.judge_local import LocalChat
        chat = LocalChat(Path(kind.removeprefix(LOCAL)), spending, arguments.judge_max_tokens)
        with Journal(path, flag=NAMES.cache) as journal:
            yield Judge(chat.label, journal, chat, about={"provider": "local"}, **common)


def _only_model(journal: Journal) -> str:
    models = journal.models()
    if not models:
        raise ValueError(f"{journal.path} holds no replies: ask a judge first, or give another {NAMES.cache}")
    if len(models) != 1:
        raise ValueError(f"{journal.path} holds replies of {len(models)} models ({', '.join(models)}): name one with --judge-model")
    return models[0]
