"""The annotation agent of the multi-turn paper: texts for each state, drafted by a language model from what a person wrote of the mechanism.

In rounds: each list that lacks texts is asked for at once, then all drafts are checked in the order of the states, so that which of two alike is
taken does not hang on which came first. What is refused is told to the model with the reason, and asked for again in the next round.
A conversation follows from its replies, and these are in the journal: a run that was killed goes on where it was.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from vlmphys.chat_asking import BYTES_A_TOKEN, Asking
from vlmphys.chat_journal import key_of
from vlmphys.draft_checks import DraftChecks, read_drafts
from vlmphys.judge_replies import unwrapped
from vlmphys.prior_outline import Outline
from vlmphys.priors import KINDS, PARTS, Prior, StateTexts
from vlmphys.prompts import DRAFT_PROMPT_ID, draft_again, draft_messages

TOKENS_A_TEXT = 40  # for the estimate alone: a sentence and its verdict as JSON
NO_TEXT = "(the whole reply)"


@dataclass
class TextList:
    """One list of one state, which is to have `wanted` texts: what is taken, what was refused and why, and the conversation so far."""

    outline: Outline
    state: str
    kind: str
    wanted: int
    words: tuple[int, int]
    taken: list[str] = field(default_factory=list)
    drafted: int = 0
    refused: list[tuple[str, str]] = field(default_factory=list)
    problem: str | None = None
    reply_models: set[str] = field(default_factory=set)
    _chat: list[dict[str, str]] = field(default_factory=list)

    @property
    def place(self) -> str:
        """As problems name it."""
        return f"states.{self.state}.{self.kind}"

    @property
    def missing(self) -> int:
        """How many texts it lacks."""
        return max(self.wanted - len(self.taken), 0)

    def messages(self) -> list[dict[str, str]]:
        """The chat that asks for the missing texts."""
        if not self._chat:
            self._chat = draft_messages(self.outline.prior({}), list(self.outline.states), self.state, self.kind,
                                        self.outline.states[self.state].hint, self.taken, self.missing, self.words)
        return self._chat

    def kept(self) -> dict:
        """What stands beside the reply in the file of replies."""
        return {"kind": self.kind, "prompt": DRAFT_PROMPT_ID, "category": self.outline.category, "state": self.state}

    def read(self, row: dict, checks: DraftChecks) -> None:
        """Take the good drafts of a reply, and go on with the conversation about the others."""
        drafts, problem = read_drafts(row["text"])
        if problem is not None and row.get("finish") == "length":
            problem = f"cut off by --max-tokens: {problem}"
        refused = [(NO_TEXT, problem)] if problem is not None else []
        before = len(self.taken)
        for verdict, text in drafts:
            if not self.missing:
                break
            fault = checks.problem(verdict, text, self.state, self.kind)
            if fault is None:
                checks.take(text, self.place)
                self.taken.append(text)
            else:
                refused.append((text, fault))
        taken = len(self.taken) - before
        self.drafted += taken
        self.refused += refused
        self.reply_models |= {row["reply_model"]} if row.get("reply_model") else set()
        self._chat = [*self.messages(), {"role": "assistant", "content": unwrapped(row["text"]) or NO_TEXT},
                      {"role": "user", "content": draft_again(taken, refused, self.missing)}]


@dataclass(frozen=True)
class Drafted:
    """What came of a run."""

    outline: Outline
    lists: tuple[TextList, ...]
    requests: int

    def prior(self) -> Prior:
        """The texts that are there; a list may be empty."""
        texts: dict[str, dict[str, tuple[str, ...]]] = {state: {} for state in self.outline.states}
        for item in self.lists:
            texts[item.state][item.kind] = tuple(item.taken)
        return self.outline.prior({state: StateTexts(**kinds) for state, kinds in texts.items()})

    @property
    def drafted(self) -> int:
        """How many of the texts a language model wrote."""
        return sum(item.drafted for item in self.lists)

    @property
    def texts(self) -> int:
        """How many texts there are."""
        return sum(len(item.taken) for item in self.lists)

    @property
    def refusals(self) -> dict[str, int]:
        """How many drafts (or whole replies) were refused, by reason."""
        return dict(Counter(why.partition(":")[0] for item in self.lists for _, why in item.refused).most_common())

    @property
    def short(self) -> list[str]:
        """A sentence for each list that lacks texts."""
        return [f"{item.place}: {len(item.taken)} of {item.wanted} texts"
                + (f" ({item.problem})" if item.problem else f" ({len(item.refused)} drafts were refused)") for item in self.lists if item.missing]

    @property
    def reply_models(self) -> list[str]:
        """The models that the server says it used, sorted."""
        return sorted({model for item in self.lists for model in item.reply_models})


def lists_of(outline: Outline, wanted: int, words: tuple[int, int]) -> list[TextList]:
    """Every list of every state with the texts that are there already."""
    return [TextList(outline, state, kind, wanted, words, list(getattr(known, kind))) for state, known in outline.states.items() for kind in KINDS]


def estimate(lists: Iterable[TextList]) -> tuple[int, int]:
    """(requests, tokens in and out) of the first round of these lists."""
    asked = [item for item in lists if item.missing]
    sent = sum(len(message["content"].encode()) for item in asked for message in item.messages()) // BYTES_A_TOKEN
    return len(asked), sent + TOKENS_A_TEXT * sum(item.missing for item in asked)


def draft(outline: Outline, lists: list[TextList], asking: Asking, rounds: int, unfitting: Callable[[Prior, str], list[str]] | None = None,
          elsewhere: Iterable[tuple[str, str]] = ()) -> Drafted:
    """Fill the lists in at most `rounds` rounds. elsewhere: (text, where it stands), which no draft may repeat.

    Raises ValueError where the first round is beyond the budget, or the server does not answer; Stopped after SIGTERM or SIGINT.
    """
    checks = DraftChecks(outline.prior({}), outline.states, lists[0].words, unfitting)
    here = [*((getattr(outline, part), part) for part in PARTS), *((text, item.place) for item in lists for text in item.taken)]
    for text, place in [*elsewhere, *here]:
        checks.take(text, place)
    for number in range(1, rounds + 1):
        waiting = {key_of(asking.model, item.messages()): item for item in lists if item.missing and item.problem is None}
        if not waiting:
            break
        todo = {key: item for key, item in waiting.items() if not asking.answered(key)}
        requests, tokens = estimate(todo.values())
        asking.say(f"round {number} of {rounds}: {sum(item.missing for item in waiting.values())} texts are missing in {len(waiting)} lists, "
                   f"{len(waiting) - len(todo)} replies are kept, {requests} to ask" + (f": about {tokens} tokens" if requests else ""))
        left = None if asking.spending.most_requests is None else asking.spending.most_requests - asking.spending.requests
        if number == 1 and left is not None and requests > left:
            raise ValueError(f"the first round needs {requests} requests, and {asking.names.budget} leaves {left}: nothing was asked; raise it")
        problems = asking.ask_all(todo)
        for key, item in waiting.items():
            if key in problems:
                item.problem = problems[key]
            else:
                item.read(asking.journal.rows[key], checks)
    return Drafted(outline, tuple(lists), asking.spending.requests)
