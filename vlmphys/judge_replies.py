"""What a judge replied, read strictly: a grade, or the reason why there is none. No reply is ever read as 0 because it could not be read.

Grades of the LLM score are one JSON object, {"type": 0.8, "reasoning": 0.5}. A similarity (PAEval) is {"similarity": 0.35} or a number:

| reply | read as |
|---|---|
| `0.35`, `.35`, `1`, `0`, `1.0`, `0.35.`, `Similarity: 0.35`, `**0.35**` | itself |
| `0.85 (out of 1.0)`, `0.9/1.0`, `0.85 out of 1` | 0.85, 0.9, 0.85: the scale is named and is 1 |
| `8/10`, `8 out of 10`, `85/100` | 0.8, 0.8, 0.85: the scale is named, and is 10 or 100 |
| `85%` | 0.85 |
| `10`, `85`, `1.5`, `-0.1` | an error: outside 0 to 1, and no scale is named |
| `0.3 or 0.4`, `The similarity is about 0.4`, `high` | an error: no single number in one of these forms |
| nothing | an error |
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass

LLM_KEYS = ("type", "reasoning")
SIMILARITY_KEYS = ("similarity",)
KEYS_OF_KIND = {"llm": LLM_KEYS, "similarity": SIMILARITY_KEYS}
SHOWN = 60  # characters of a reply in a message
SCALES = (1, 10, 100)
# Some models write their thoughts first and mark them; what counts comes after.
THOUGHT_PATTERN = re.compile(r"\A\s*<think>.*?</think>", re.DOTALL)
FENCE_PATTERN = re.compile(r"\A```(?:json)?\s*\n(.*?)\n?\s*```\Z", re.DOTALL | re.IGNORECASE)
NUMBER = r"(?P<number>[+-]?(?:\d+(?:\.\d*)?|\.\d+))"
NUMBER_PATTERN = re.compile(
    rf"(?:(?:similarity|score)(?: score)?\s*[:=]\s*)?{NUMBER}"
    r"\s*(?:(?P<percent>%)|\(?\s*(?:/|out of)\s*(?P<scale>\d+(?:\.\d+)?)\s*\)?)?\.?", re.IGNORECASE)


@dataclass(frozen=True)
class Reading:
    """Grades from 0 to 1 by name, or the problem; one of them is None."""

    grades: dict[str, float] | None
    problem: str | None = None


def read_reply(kind: str, text: str) -> Reading:
    """Read the reply to a question of this kind, `llm` or `similarity`."""
    bare = unwrapped(text)
    if not bare:
        return Reading(None, "empty reply")
    if kind == "similarity" and not bare.startswith("{"):
        return read_number(bare)
    return _read_object(bare, KEYS_OF_KIND[kind])


def unwrapped(text: str) -> str:
    """A reply without the thoughts before it and the fence around it."""
    bare = THOUGHT_PATTERN.sub("", text).strip()
    fenced = FENCE_PATTERN.match(bare)
    return fenced.group(1).strip() if fenced else bare


def read_number(text: str) -> Reading:
    """A similarity given as a plain number, by the table above."""
    bare = text.strip().strip("*`\"'").strip()
    if not bare:
        return Reading(None, "empty reply")
    match = NUMBER_PATTERN.fullmatch(bare)
    if match is None:
        return Reading(None, f"no single number: {_shown(text)}")
    number, scale = float(match["number"]), 100.0 if match["percent"] else float(match["scale"] or 1)
    if scale not in SCALES:
        return Reading(None, f"a scale of {scale:g}: {_shown(text)}")
    if not 0 <= number <= scale:
        return Reading(None, f"outside 0 to {scale:g}: {_shown(text)}")
    return Reading({"similarity": number / scale})


def _read_object(text: str, keys: tuple[str, ...]) -> Reading:
    wanted = ", ".join(f'"{key}"' for key in keys)
    try:
        value = json.loads(text, object_pairs_hook=_once, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return Reading(None, f"no JSON object: {_shown(text)}")
    if not isinstance(value, dict):
        return Reading(None, f"no JSON object: {_shown(text)}")
    for key in keys:
        if key not in value:
            return Reading(None, f"{key!r} is missing ({wanted} are asked for): {_shown(text)}")
        grade = value[key]
        if isinstance(grade, bool) or not isinstance(grade, (int, float)):
            return Reading(None, f"{key!r} is no number: {_shown(text)}")
        if not math.isfinite(grade) or not 0 <= grade <= 1:
            return Reading(None, f"{key!r} is outside 0 to 1: {_shown(text)}")
    return Reading({key: float(value[key]) for key in keys})


def _once(pairs: list[tuple[str, object]]) -> dict:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice")
    return found


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _shown(text: str) -> str:
    return repr(text if len(text) <= SHOWN else text[:SHOWN] + "...")
