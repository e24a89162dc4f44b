"""A judge that grades texts: which questions are asked, by whom, at what cost, and what became of each.

The LLM score takes the multi-turn paper's two criteria, anomaly type and reasoning, each 0 to 1; PAEval takes the highest similarity to
the references (`paeval_score`). Equal questions are asked once. A reply that cannot be read and a question without an answer are errors, counted
beside the score and never 0.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from vlmphys.chat_asking import BYTES_A_TOKEN, Asking
from vlmphys.chat_journal import key_of
from vlmphys.judge_replies import Reading, read_reply
from vlmphys.prompts import JUDGE_PROMPT_IDS, judge_messages

TOKENS_A_REPLY = 20        # for the estimate alone: one JSON object of two grades
EMPTY_TEXT = "empty text"  # graded 0 without asking: it says nothing


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

    def kept(self) -> dict:
        """What stands beside the reply in the file of replies."""
        return {"kind": self.kind, "prompt": JUDGE_PROMPT_IDS[self.kind], "category": self.category, "state": self.state, "graded": self.text}


@dataclass
class Judge(Asking):
    """A judge and its bounds. asker None: replies come from the journal alone (offline replay).

    about: what scores.json says of the judge beside the counts.
    """

    about: dict = field(default_factory=dict)

    def grade(self, questions: Sequence[Question]) -> tuple[list[Reading], dict]:
        """A reading for each question, in order, and the record of the judge for scores.json.

        Prints an estimate before the first request. Raises ValueError where that is beyond the budget, or the judge does not answer;
        Stopped after SIGTERM or SIGINT, once the requests in flight are answered and kept.
        """
        keys = [key_of(self.model, question.messages()) if question.text else EMPTY_TEXT for question in questions]
        distinct = {key: question for key, question in zip(keys, questions) if key != EMPTY_TEXT}
        todo = {key: question for key, question in distinct.items() if not self.answered(key)}
        self._announce(len(questions), len(distinct), todo)
        if self.asker is None:
            problems = dict.fromkeys(todo, "not in the file of replies")
        else:
            problems = self.ask_all(todo)
        readings = [self._reading(key, question, problems) for key, question in zip(keys, questions)]
        return readings, self._record(readings, distinct, todo)

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
