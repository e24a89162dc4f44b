"""A language model that drafts texts as a test wants them, behind a real socket: `with ChatStub(answer, asked_list) as server`."""

from __future__ import annotations

import json
import re

OUTLINE = """\
component: "A latch has a hook, a spring and a button."
dynamic: "The button moves the hook against the spring."
motion: "The hook opens when pressed and comes back at once."
"""
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")
KIND_WORDS = {"descriptions of what": "descriptions", "explanations of this": "explanations"}
SEEN = {"anomaly_free": "The hook comes back at once after press number {}.", "slow": "The hook comes back late after press number {}.",
        "stuck": "The hook stays open after press number {}."}
CAUSE = {"anomaly_free": "The spring is strong, so the hook follows at once in press number {}.",
         "slow": "The spring is weak, so the hook lags behind in press number {}.",
         "stuck": "Dirt holds the hook, so it stays open in press number {}."}


def asked_list(body: dict) -> str:
    """`slow.descriptions`: the list that a request is about."""
    asked = body["messages"][1]["content"]
    state = re.search(r"^The state to write about: (.+) \((?:normal|anomalous)\)$", asked, re.MULTILINE)[1].replace(" ", "_")
    return f"{state}.{next(kind for words, kind in KIND_WORDS.items() if words in asked)}"


def drafts(place: str, numbers: range | list[int], verdict: str | None = None) -> list[dict[str, str]]:
    """Good drafts for a list, each number its own sentence; `verdict` in place of the true one."""
    state, kind = place.split(".")
    form = (SEEN if kind == "descriptions" else CAUSE)[state]
    true = "Normal" if state == "anomaly_free" else "Anomalous"
    return [{"verdict": verdict or true, "text": form.format(ORDINALS[number])} for number in numbers]


def reply(*items: dict[str, str]) -> str:
    """The content of a reply with these drafts."""
    return json.dumps({"texts": list(items)})


def all_good(place: str, _times: int) -> str:
    """Five good drafts at once."""
    return reply(*drafts(place, range(5)))
