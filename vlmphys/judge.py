"""A judge that grades texts: which questions are asked, by whom, at what cost, and what became of each.

The LLM score takes the multi-turn paper's two criteria, anomaly type and reasoning, each 0 to 1; PAEval takes the highest similarity to
the references (`paeval_score`). Equal questions are asked once. A reply that cannot be read and a question without an answer are errors, counted
beside the score and never 0.
"""

from __future__ import annotations

import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from vlmphys.judge_client import AskError, BudgetSpent, Reply, Spending
from vlmphys.judge_journal import Journal, key_of
from vlmphys.judge_replies import Reading, read_reply
from vlmphys.prompts import JUDGE_PROMPT_IDS, judge_messages
from vlmphys.signals import Stopped, StopRequests

# So many questions in a row without an answer mean that the judge is down: asking on would take hours and give nothing.
FAILED_IN_A_ROW = 10
PROGRESS_SECONDS = 30.0
BYTES_A_TOKEN = 4          # for the estimate alone: English text
TOKENS_A_REPLY = 20        # for the estimate alone: one JSON object of two grades
EMPTY_TEXT = "empty text"  # graded 0 without asking: it says nothing


class Asker(Protocol):
    """Who answers: `judge_client.ChatServer` or `judge_local.LocalChat`."""

    def ask(self, messages: Sequence[dict[str, str]]) -> Reply:
        """One answer; AskError for this question, ValueError where no other can succeed."""


@dataclass(frozen=True)
class Question:
    """One text to grade: `kind` is `llm` or `similarity`, `state` the clip's true state, `text` what is graded."""

    kind: str
    category: str
    state: str
    references: tuple[str, ...]
    text: str

    def messages(self) -> list[dict[str, str]]:
        """The chat that asks it."""
        return judge_messages(self.kind, self.category, self.state, self.references, self.text)


@dataclass
class Judge:
    """A judge and its bounds. asker None: replies come from the journal alone (offline replay).

    model: as the replies are kept by; about: what scores.json says of the judge beside the counts.
    """

    model: str
    journal: Journal
    asker: Asker | None
    spending: Spending
    concurrency: int = 1
    max_tokens: int = 256
    about: dict = field(default_factory=dict)
    stopping: threading.Event = field(default_factory=threading.Event)
    say: Callable[[str], None] = print

    def grade(self, questions: Sequence[Question]) -> tuple[list[Reading], dict]:
        """A reading for each question, in order, and the record of the judge for scores.json.

        Prints an estimate before the first request. Raises ValueError where that is beyond the budget, or the judge does not answer;
        Stopped after SIGTERM or SIGINT, once the requests in flight are answered and kept.
        """
        keys = [key_of(self.model, question.messages()) if question.text else EMPTY_TEXT for question in questions]
        distinct = {key: question for key, question in zip(keys, questions) if key != EMPTY_TEXT}
        todo = {key: question for key, question in distinct.items() if not self._answered(key)}
        self._announce(len(questions), len(distinct), todo)
        if self.asker is None:
            problems = dict.fromkeys(todo, "not in the file of replies")
        else:
            problems = self._ask_all(todo) if todo else {}
        readings = [self._reading(key, question, problems) for key, question in zip(keys, questions)]
        return readings, self._record(readings, distinct, todo)

    def _answered(self, key: str) -> bool:
        """Whether a reply is kept; one that was cut off is asked for again where a longer one is allowed now."""
        row = self.journal.rows.get(key)
        cut = row is not None and row.get("finish") == "length" and row.get("max_tokens", 0) < self.max_tokens
        return row is not None and (self.asker is None or not cut)

    def _announce(self, count: int, distinct: int, todo: Mapping[str, Question]) -> None:
        tokens = sum(len(message["content"].encode()) for question in todo.values() for message in question.messages()) // BYTES_A_TOKEN
        asked = 0 if self.asker is None else len(todo)
        self.say(f"judge {self.model}: {count} texts, {distinct} different questions, {distinct - len(todo)} answered before, {asked} to ask"
                 + (f": about {tokens + TOKENS_A_REPLY * asked} tokens ({tokens} in, {TOKENS_A_REPLY * asked} out)" if asked else ""))
        if self.asker is None:
            return
        for name, needed, most, spent in (
                ("requests", asked, self.spending.most_requests, self.spending.requests),
                ("tokens", tokens + TOKENS_A_REPLY * asked, self.spending.most_tokens, self.spending.prompt_tokens + self.spending.reply_tokens)):
            if asked and most is not None and needed > most - spent:
                raise ValueError(f"the judge needs about {needed} {name}, and --judge-budget leaves {max(most - spent, 0)}: nothing was asked; "
                                 "raise the budget, or score fewer clips")

    def _ask_all(self, todo: Mapping[str, Question]) -> dict[str, str]:
        """Ask what is not answered yet, in threads; what failed, by key."""
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
                        fatal.append(ValueError(f"the judge gives no answers: {in_a_row[0]} questions in a row failed (last: {error}); "
                                                f"{len(self.journal.rows)} replies are kept in {self.journal.path}: start again when it answers"))
                        self.stopping.set()
                except BaseException as error:  # raised again by the thread that started this one
                    fatal.append(error)
                    self.stopping.set()

        threads = [threading.Thread(target=work, daemon=True) for _ in range(min(self.concurrency, len(todo)))]
        self._run(threads, lambda: f"judge: {len(todo) - len(waiting)} of {len(todo)} asked, {len(problems)} without an answer")
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

    def _ask_one(self, key: str, question: Question) -> None:
        began = time.monotonic()
        reply = self.asker.ask(question.messages())
        self.journal.append({
            "key": key, "model": self.model, "kind": question.kind, "prompt": JUDGE_PROMPT_IDS[question.kind], "category": question.category,
            "state": question.state, "graded": question.text, "text": reply.text, "reply_model": reply.model, "finish": reply.finish,
            "max_tokens": self.max_tokens, "fingerprint": reply.fingerprint, "prompt_tokens": reply.prompt_tokens, "reply_tokens": reply.reply_tokens,
            "seconds": round(time.monotonic() - began, 3)})

    def _reading(self, key: str, question: Question, problems: Mapping[str, str]) -> Reading:
        if key == EMPTY_TEXT:
            return Reading({name: 0.0 for name in (("type", "reasoning") if question.kind == "llm" else ("similarity",))})
        row = self.journal.rows.get(key)
        if row is None:
            return Reading(None, problems.get(key, "not asked"))
        reading = read_reply(question.kind, row["text"])
        if reading.problem is not None and row.get("finish") == "length":
            return Reading(None, f"cut off by --judge-max-tokens: {reading.problem}")
        return reading

    def _record(self, readings: Sequence[Reading], distinct: Mapping[str, Question], todo: Mapping[str, Question]) -> dict:
        """What scores.json says of the judge: requests of this run; tokens of all replies that were used, whenever they were asked for."""
        used = [self.journal.rows[key] for key in distinct if key in self.journal.rows]
        failures = Counter(reading.problem.partition(":")[0] for reading in readings if reading.problem is not None)
        return {"model": self.model, **self.about, "temperature": 0, "max_tokens": self.max_tokens,
                "prompts": sorted({JUDGE_PROMPT_IDS[question.kind] for question in distinct.values()}),
                "reply_models": sorted({row["reply_model"] for row in used if row.get("reply_model")}),
                "n_texts": len(readings), "n_questions": len(distinct), "n_from_file": len(distinct) - len(todo),
                "n_failed": sum(failures.values()), "failures": dict(failures.most_common()),
                "requests": self.spending.requests, **{name: sum(row.get(name, 0) for row in used) for name in ("prompt_tokens", "reply_tokens")}}


class _NeverStopped:
    """In place of StopRequests where no handler can be set: outside the main thread."""

    requested, number = False, None

    def __enter__(self) -> _NeverStopped:
        return self

    def __exit__(self, *_: object) -> None:
        return None
