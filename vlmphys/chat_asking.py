"""Many questions put to one chat: several at a time, each reply kept before it counts, stopped by signals, budgets and a server that is down."""

from __future__ import annotations

import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from vlmphys.chat_client import AskError, BudgetSpent, Names, Reply, Spending
from vlmphys.chat_journal import Journal
from vlmphys.signals import Stopped, StopRequests

# So many questions in a row without an answer mean that the server is down: asking on would take hours and give nothing.
FAILED_IN_A_ROW = 10
PROGRESS_SECONDS = 30.0
BYTES_A_TOKEN = 4          # for estimates alone: English text


class Asker(Protocol):
    """Who answers: `chat_client.ChatServer` or `judge_local.LocalChat`."""

    def ask(self, messages: Sequence[dict[str, str]]) -> Reply:
        """One answer; AskError for this question, ValueError where no other can succeed."""


class Asked(Protocol):
    """One question."""

    def messages(self) -> list[dict[str, str]]:
        """The chat that asks it."""

    def kept(self) -> dict:
        """What stands beside the reply in the file of replies; `kind` (a text) is needed."""


@dataclass
class Asking:
    """One chat and its bounds. asker None: replies come from the journal alone (offline replay). model: as the replies are kept by."""

    model: str
    journal: Journal
    asker: Asker | None
    spending: Spending
    concurrency: int = 1
    max_tokens: int = 256
    stopping: threading.Event = field(default_factory=threading.Event)
    say: Callable[[str], None] = print
    names: Names = Names()

    def answered(self, key: str) -> bool:
        """Whether a reply is kept; one that was cut off is asked for again where a longer one is allowed now."""
        row = self.journal.rows.get(key)
        cut = row is not None and row.get("finish") == "length" and row.get("max_tokens", 0) < self.max_tokens
        return row is not None and (self.asker is None or not cut)

    def ask_all(self, todo: Mapping[str, Asked]) -> dict[str, str]:
        """Ask these questions, by the key of their reply, in threads; what failed, by key.

        Raises ValueError where the server does not answer; Stopped after SIGTERM or SIGINT, once the requests in flight are answered and kept.
        """
        if not todo:
            return {}
        waiting, lock = deque(todo.items()), threading.Lock()
        problems: dict[str, str] = {}
        fatal: list[BaseException] = []
        in_a_row = [0]

        def work() -> None:
            while not self.stopping.is_set():
                with lock:
                    if not waiting:
                        return
                    key, question = waiting.popleft()
                try:
                    self._ask_one(key, question)
                    in_a_row[0] = 0
                except BudgetSpent as error:
                    problems[key] = f"not asked: {error}"
                    self.stopping.set()
                except AskError as error:
                    problems[key] = error.kind if error.kind != "stopped" else "not asked: the asking ended"
                    in_a_row[0] += error.kind != "stopped"
                    if in_a_row[0] >= FAILED_IN_A_ROW:
                        fatal.append(ValueError(f"{self.names.who} gives no answers: {in_a_row[0]} questions in a row failed (last: {error}); "
                                                f"{len(self.journal.rows)} replies are kept in {self.journal.path}: start again when it answers"))
                        self.stopping.set()
                except BaseException as error:  # raised again by the thread that started this one
                    fatal.append(error)
                    self.stopping.set()

        threads = [threading.Thread(target=work, daemon=True) for _ in range(min(self.concurrency, len(todo)))]
        who = self.names.who.removeprefix("the ")
        self._run(threads, lambda: f"{who}: {len(todo) - len(waiting)} of {len(todo)} asked, {len(problems)} without an answer")
        if fatal:
            raise fatal[0]
        problems.update({key: "not asked: the budget is spent" for key, _ in waiting})
        return problems

    def _run(self, threads: Sequence[threading.Thread], progress: Callable[[], str]) -> None:
        """Start the threads and wait, saying from time to time how far they are; a signal ends the asking, not the requests in flight."""
        watched = threading.current_thread() is threading.main_thread()
        with StopRequests() if watched else _NeverStopped() as stop:
            for thread in threads:
                thread.start()
            said = time.monotonic()
            while any(thread.is_alive() for thread in threads):
                for thread in threads:
                    thread.join(0.05)
                if stop.requested:
                    self.stopping.set()
                if time.monotonic() - said > PROGRESS_SECONDS:
                    said = time.monotonic()
                    self.say(progress())
        if stop.requested:
            raise Stopped(f"stopped: {len(self.journal.rows)} replies are kept in {self.journal.path}; start again to go on from there",
                          stop.number or signal.SIGTERM)

    def _ask_one(self, key: str, question: Asked) -> None:
        began = time.monotonic()
        reply = self.asker.ask(question.messages())
        self.journal.append({
            "key": key, "model": self.model, **question.kept(), "text": reply.text, "reply_model": reply.model, "finish": reply.finish,
            "max_tokens": self.max_tokens, "fingerprint": reply.fingerprint, "prompt_tokens": reply.prompt_tokens, "reply_tokens": reply.reply_tokens,
            "seconds": round(time.monotonic() - began, 3)})


class _NeverStopped:
    """In place of StopRequests where no handler can be set: outside the main thread."""

    requested, number = False, None

    def __enter__(self) -> _NeverStopped:
        return self

    def __exit__(self, *_: object) -> None:
        return None
