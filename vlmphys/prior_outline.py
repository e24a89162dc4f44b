"""The outline of a prior: the three sentences that a person wrote, and which states there are; their texts are drafted (`drafting`)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import yaml

from vlmphys.layout import scan_videos
from vlmphys.priors import (CONTROL_PATTERN, KINDS, NORMAL_STATE, PARTS, Prior, StateTexts, compose, duplicates, lint, take_mapping, take_questions,
                            take_text, take_texts)
from vlmphys.records import NORMAL_STATES, nearest
from vlmphys.splits import NORMAL_WORDS


@dataclass(frozen=True)
class StateOutline:
    """What is known of a state before anything is drafted: a hint in the person's own words, and texts that are there already."""

    hint: str = ""
    descriptions: tuple[str, ...] = ()
    explanations: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outline:
    """A category that is to have texts for each of its states. `states` begins with the normal one."""

    category: str
    component: str
    dynamic: str
    motion: str
    questions: dict[str, tuple[str, ...]] = field(default_factory=dict)
    states: dict[str, StateOutline] = field(default_factory=dict)

    def prior(self, texts: dict[str, StateTexts]) -> Prior:
        """The prior with these texts."""
        return Prior(self.category, self.component, self.dynamic, self.motion, self.questions, texts)

    def with_states(self, names: Iterable[str]) -> Outline:
        """The same with these states added. Raises ValueError for a name that no state may have."""
        states = {NORMAL_STATE: StateOutline(), **self.states, **{name: StateOutline() for name in names if name not in self.states}}
        for name in states:
            check_state(name)
        return replace(self, states=states)


def read_outline(path: Path | str) -> Outline:
    """Read a YAML file; its texts, where it has any, are kept. Raises ValueError with file, line and cure; all of a file's problems at once.

    category: latch                     # may be left out: the file's name
    component: A latch has ...          # as in a prior (`priors.read_prior`)
    dynamic: The button moves ...
    motion: The hook opens ...
    questions: ...                      # may be left out
    states:                             # may be left out, or a list of names
      anomaly_free:
      slow: The spring is weak.         # a hint for the one who drafts
      stuck:
        hint: Dirt holds the hook.
        descriptions: [...]             # texts that are there already
    """
    path = Path(path)
    problems: list[str] = []
    top = take_mapping(compose(path), f"the file (expected: {', '.join(PARTS)})", ("category", *PARTS, "questions", "states"), problems)
    sentences = {part: take_text(top[part], part, problems) for part in PARTS if part in top}
    problems += [f"{part!r} is missing: write it yourself, everything else is drafted from it" for part in PARTS if part not in top]
    category = str(top["category"].value).strip() if isinstance(top.get("category"), yaml.ScalarNode) else path.stem
    if not category or category.startswith(".") or any(sign in category for sign in "/\\") or CONTROL_PATTERN.search(category):
        problems.append(f"category {category!r} cannot be a file's name: give a plain one")
    questions = take_questions(top["questions"], problems) if "questions" in top else {}
    states = _states(top["states"], problems) if "states" in top else {}
    if problems:
        raise ValueError(f"outline {path}: " + "; ".join(problems))
    return Outline(category=category, questions=questions, states=states, **sentences).with_states(())


def _states(node: yaml.Node, problems: list[str]) -> dict[str, StateOutline]:
    if isinstance(node, yaml.SequenceNode) and all(isinstance(item, yaml.ScalarNode) for item in node.value):
        return {str(item.value): StateOutline() for item in node.value}
    states = {}
    for state, item in take_mapping(node, "states (a list of names, or names with hints or texts)", None, problems).items():
        if isinstance(item, yaml.ScalarNode):
            hint = "" if item.tag == "tag:yaml.org,2002:null" else " ".join(str(item.value).split())
            states[state] = StateOutline(hint)
            continue
        found = take_mapping(item, f"states.{state}", ("hint", *KINDS), problems)
        hint = found.pop("hint", None)
        if hint is not None and not isinstance(hint, yaml.ScalarNode):
            problems.append(f"states.{state}.hint (line {hint.start_mark.line + 1}): one text is expected")
            hint = None
        lists = {kind: take_texts(texts, f"states.{state}.{kind}", problems) for kind, texts in found.items() if not _empty(texts)}
        states[state] = StateOutline(" ".join(str(hint.value).split()) if hint is not None else "", **lists)
    return states


def _empty(node: yaml.Node) -> bool:
    """Whether nothing stands there yet: no value, or an empty list."""
    return node.tag == "tag:yaml.org,2002:null" or isinstance(node, yaml.SequenceNode) and not node.value


def check_state(name: str) -> None:
    """Raise ValueError for a name that no state may have: it is a folder's name, and says whether its clips are normal."""
    if not name.strip() or name.startswith(".") or any(sign in name for sign in "/\\") or CONTROL_PATTERN.search(name):
        raise ValueError(f"the state {name!r} cannot be a folder's name: give the names of the folders below test/")
    if name in NORMAL_STATES[1:]:
        raise ValueError(f"the state {name!r}: its clips take the texts of {NORMAL_STATE!r}; leave it out")
    if "".join(letter for letter in name.lower() if letter.isalnum()) in NORMAL_WORDS and name != NORMAL_STATE:
        raise ValueError(f"the state {name!r} would be an anomaly of that name: normal clips stand in a folder named {NORMAL_STATE!r}")


def states_below(videos: Path | str, category: str) -> list[str]:
    """The states that a category's clips have in a folder of videos, sorted. Raises ValueError where the folder has no such category."""
    clips = scan_videos(videos)
    found = {clip.state for clip in clips if clip.category == category}
    if not found:
        categories = sorted({clip.category for clip in clips})
        raise ValueError(f"--videos {videos} has no category {category!r}{nearest(category, categories)}; it has: {', '.join(categories)}")
    return sorted(found)


def faults_of(outline: Outline) -> list[str]:
    """What a person has to mend before anything is drafted: a verdict or a fault's name before the verdict, a text that stands twice."""
    prior = outline.prior({state: StateTexts(known.descriptions, known.explanations) for state, known in outline.states.items()})
    return list(dict.fromkeys([*lint(prior), *duplicates({prior.category: prior})]))
