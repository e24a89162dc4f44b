"""What a drafted text must be before a person sees it: a sentence of the right length, with the true verdict beside it, and nobody's copy.

The checks of words know English; what they let pass a person reads.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable

from vlmphys.judge_replies import unwrapped
from vlmphys.leak_words import leaks, negated
from vlmphys.priors import CONTROL_PATTERN, NORMAL_STATE, Prior, StateTexts, is_sentence
from vlmphys.prompts import VERDICT_WORDS, true_verdict
from vlmphys.records import Verdict

LEAST_WORDS, MOST_WORDS = 3, 25
SHOWN = 80  # characters of a reply in a message
# Words that tell no text from another.
FILLING = {"a", "an", "the", "this", "that", "these", "those", "it", "its", "is", "are", "was", "were", "be", "and", "so", "then", "there"}
MARKDOWN_PATTERN = re.compile(r"[*_`#~|<>\\]|\]\(|^\s*(?:[-•–]\s|\d+[.)]\s)")
# A second sentence begins: a dot between two words, not one within a number.
SECOND_SENTENCE_PATTERN = re.compile(r"[.!?][\"'”’)]*\s+\S")
ABNORMAL_PATTERN = re.compile(r"\b(?:abnormal|anomal)\w*", re.IGNORECASE)
NORMAL_PATTERN = re.compile(r"\bnormal\w*", re.IGNORECASE)
FAULT_PATTERN = re.compile(r"\b(?:fault|defect|damag|malfunction|fail|broken|wrong|problem)\w*", re.IGNORECASE)
WELL_PATTERN = re.compile(r"\bas (?:it should|they should|expected|intended|designed)\b|\b(?:correctly|properly|flawless\w*|faultless\w*)\b",
                          re.IGNORECASE)
NO_FAULT_PATTERN = re.compile(r"\b(?:nothing(?: is| was|'s)? wrong|"
                              r"(?:no|without(?: any| a)?) (?:fault|defect|damage|malfunction|failure|problem|anomal)\w*)\b", re.IGNORECASE)


def read_drafts(text: str) -> tuple[list[tuple[str, str]], str | None]:
    """(verdict, text) of each draft in a reply, or the problem of the reply as a whole. The drafts are put on one line, no more."""
    bare = unwrapped(text)
    if not bare:
        return [], "empty reply"
    try:
        value = json.loads(bare)
    except (ValueError, RecursionError):
        return [], f"no JSON object: {bare[:SHOWN]!r}"
    items = value.get("texts") if isinstance(value, dict) else value
    if not isinstance(items, list) or not items or not all(isinstance(item, dict) and isinstance(item.get("text"), str) for item in items):
        return [], f'no list "texts" of objects with "verdict" and "text": {bare[:SHOWN]!r}'
    return [(str(item.get("verdict", "")), " ".join(item["text"].split())) for item in items], None


class DraftChecks:
    """The checks for one category. `take` tells them of each text that is in, so that the next may not be its copy."""

    def __init__(self, prior: Prior, states: Iterable[str], words: tuple[int, int] = (LEAST_WORDS, MOST_WORDS),
                 unfitting: Callable[[Prior, str], list[str]] | None = None) -> None:
        self.prior, self.words, self.unfitting = prior, words, unfitting
        self.anomalies = [state for state in states if true_verdict(state) is Verdict.ANOMALOUS]
        self._places: dict[tuple[str, ...], str] = {}

    def take(self, text: str, place: str) -> None:
        """A text stands at this place."""
        self._places.setdefault(_telling(text), place)

    def problem(self, verdict: str, text: str, state: str, kind: str) -> str | None:
        """Why a draft is refused: a name to count by, and after a colon what is wrong with this one; None for a good one."""
        if not text.strip():
            return "empty text"
        least, most = self.words
        count = len(text.split())
        if control := CONTROL_PATTERN.search(text):
            return f"sign of the dialogue's format: {control.group(0)!r} may not stand in it"
        if markdown := MARKDOWN_PATTERN.search(text):
            return f"markdown: {markdown.group(0).strip()!r} may not stand in it"
        if stated := self._verdict_problem(verdict, text, state):
            return stated
        if not least <= count <= most:
            return f"length: {count} words, {least} to {most} are wanted"
        if not is_sentence(text):
            return "no sentence: it begins with a capital and ends with a full stop"
        if SECOND_SENTENCE_PATTERN.search(text):
            return "more than one sentence"
        if place := self._places.get(_telling(text)):
            return f"copy: it says what {place} says"
        if kind == "explanations" and self.unfitting is not None:
            tried = StateTexts((text,), (text,))
            if self.unfitting(Prior(self.prior.category, self.prior.component, self.prior.dynamic, self.prior.motion, self.prior.questions,
                                    {NORMAL_STATE: tried, state: tried}), state):
                return "too long for the model: a dialogue with it does not fit"
        return None

    def _verdict_problem(self, verdict: str, text: str, state: str) -> str | None:
        truth = true_verdict(state)
        word, other = VERDICT_WORDS[truth], next(word for given, word in VERDICT_WORDS.items() if given is not truth)
        given = verdict.strip().strip(".").lower()
        if given == other.lower():
            return f"wrong verdict: {verdict.strip()} stands beside it, and {word} is true"
        if given != word.lower():
            return f'no verdict: "verdict" is Normal or Anomalous, not {verdict[:SHOWN]!r}'
        claimed = stated_verdict(text)
        if claimed is not None and claimed is not truth:
            return f"wrong verdict: the text says that the clip is {claimed.value}"
        if named := leaks(text, []):
            return f"verdict in the text: {named[0]!r} may not stand in it"
        if truth is Verdict.NORMAL and (named := leaks(text, self.anomalies)):
            return f"anomaly in a normal state's text: {named[0]!r}"
        return None


def stated_verdict(text: str) -> Verdict | None:
    """The verdict that a text's words give away (`does not move as it should`, `no fault`, `anomalous`), None where they do not or contradict."""
    said = {Verdict.ANOMALOUS if negated(text, match) else Verdict.NORMAL
            for pattern in (NORMAL_PATTERN, WELL_PATTERN) for match in pattern.finditer(text)}
    without = NO_FAULT_PATTERN.sub(" ", text)
    said |= {Verdict.NORMAL} if without != text else set()
    said |= {Verdict.NORMAL if negated(without, match) else Verdict.ANOMALOUS
             for pattern in (ABNORMAL_PATTERN, FAULT_PATTERN) for match in pattern.finditer(without)}
    return said.pop() if len(said) == 1 else None


def _telling(text: str) -> tuple[str, ...]:
    """The words of a text that tell it from another, in order; all of them where it has no others."""
    words = re.findall(r"\w+", text.lower())
    return tuple(word for word in words if word not in FILLING) or tuple(words)
