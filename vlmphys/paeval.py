"""Priors as PAEval reference libraries and back: the published JSON form of the texts that a judge compares with.

{category: {"description_label": {state: [texts]}, "explanation_label": {state: [texts]}}}, five texts a state. A library holds no prior
sentences (component, dynamic, motion): an import takes them from a prior of that name, or leaves them to the user.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from vlmphys.files import write_atomic
from vlmphys.priors import AROUND, CONTROL_PATTERN, ENDS, KINDS, NORMAL_STATE, PARTS, Prior, StateTexts, prior_text, read_prior, yaml_text

LABELS = {"descriptions": "description_label", "explanations": "explanation_label"}
FOLDER_NAME_FORBIDDEN = ("/", "\\", "..")


@dataclass(frozen=True)
class Imported:
    """What an import wrote: its files, those that still lack the prior sentences, and how many texts were made sentences."""

    written: tuple[Path, ...]
    to_complete: tuple[Path, ...] = ()
    mended: int = 0


def to_library(priors: dict[str, Prior], most: int | None = None) -> dict[str, dict]:
    """The library of these priors; at most `most` texts of each list (None: all), the first ones."""
    return {category: {LABELS[kind]: {state: list(getattr(texts, kind))[:most] for state, texts in prior.states.items()} for kind in KINDS}
            for category, prior in priors.items()}


def check_library(document: dict, source: str) -> dict[str, dict[str, dict[str, list[str]]]]:
    """Category -> state -> kind -> texts. Raises ValueError with all of the file's problems at once."""
    problems: list[str] = []
    found: dict[str, dict[str, dict[str, list[str]]]] = {}
    for category, labels in document.items():
        if not category.strip() or any(part in category for part in FOLDER_NAME_FORBIDDEN) or category.startswith("."):
            problems.append(f"{category!r} cannot be a category: it would be a file's name")
            continue
        if not isinstance(labels, dict) or set(labels) != set(LABELS.values()):
            problems.append(f"{category}: {' and '.join(LABELS.values())} are expected, each {{state: [texts]}}")
            continue
        states: dict[str, dict[str, list[str]]] = {}
        for kind, label in LABELS.items():
            for state, texts in _states(labels[label], f"{category}.{label}", problems).items():
                states.setdefault(state, {})[kind] = texts
        problems += [f"{category}: the state {state!r} has no {LABELS[kind]}"
                     for state, texts in states.items() for kind in KINDS if kind not in texts]
        if "train" in states:
            problems.append(f"{category}: has a state 'train', whose clips take the texts of {NORMAL_STATE!r}: remove it")
        if states and NORMAL_STATE not in states:
            problems.append(f"{category}: has no state {NORMAL_STATE!r}, which every category needs")
        found[category] = states
    if not document:
        problems.append("holds no category")
    if problems:
        raise ValueError(f"{source}: " + "; ".join(problems))
    return found


def _states(value: object, where: str, problems: list[str]) -> dict[str, list[str]]:
    if not isinstance(value, dict) or not value:
        problems.append(f"{where}: states and their texts are expected")
        return {}
    for state, texts in value.items():
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text.strip() for text in texts):
            problems.append(f"{where}.{state}: a list of texts, none of them empty, is expected")
        else:
            problems += [f"{where}.{state}: {text!r} holds {CONTROL_PATTERN.search(' '.join(text.split())).group(0)!r}, which belongs to the "
                         "dialogue's format: take it out" for text in texts if CONTROL_PATTERN.search(" ".join(text.split()))]
    return value


def sentence(text: str) -> str:
    """A text on one line that begins with a capital and ends with a full stop, as a prior's texts do; other words are left as they are.

    Quotes and brackets around it stay: the capital is the first letter within them, and a full stop before the closing ones is one.
    """
    plain = " ".join(text.split())
    start = len(plain) - len(plain.lstrip(AROUND))
    plain = plain[:start] + plain[start:start + 1].upper() + plain[start + 1:]
    return plain if plain.rstrip(AROUND).endswith(ENDS) else plain + "."


def write_priors(library: dict[str, dict[str, dict[str, list[str]]]], known: dict[str, Prior], folder: Path) -> Imported:
    """One YAML file a category, with the sentences and questions of the known prior of that name; without one, with places to fill in.

    Raises ValueError, with nothing written, where a file of that name is there, and for texts of which no prior can be made; OSError from the
    disk.
    """
    paths = {category: folder / f"{category}.yaml" for category in library}
    there = [path for path in paths.values() if path.exists()]
    if there:
        raise ValueError(f"{there[0]} exists{f', and {len(there) - 1} more' if len(there) > 1 else ''}: give another --out, or move it away")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: give a folder as --out")
    mended, to_complete, content, problems = 0, [], {}, []
    for category, states in library.items():
        texts = {state: {kind: [sentence(text) for text in lists[kind]] for kind in KINDS} for state, lists in states.items()}
        mended += sum(new != old for state, lists in states.items() for kind in KINDS for new, old in zip(texts[state][kind], lists[kind]))
        if category in known:
            prior = known[category]
            filled = {state: StateTexts(**{kind: tuple(lists[kind]) for kind in KINDS}) for state, lists in texts.items()}
            content[category] = whole = prior_text(replace(prior, states=filled))
        else:
            to_complete.append(paths[category])
            asked = {"component": "A ... has a ... and a ...", "dynamic": "The ... moves the ...", "motion": "The ... moves ... and ..."}
            whole = yaml_text({**{part: "A sentence." for part in PARTS}, "states": texts})
            content[category] = "# to complete: take the # away and write one sentence each, without a verdict\n" \
                + "".join(f'# {part}: "{example}."\n' for part, example in asked.items()) + yaml_text({"states": texts})
        problems += _unreadable(category, whole)
    if problems:
        raise ValueError("; ".join(problems))
    _write_all({paths[category]: text for category, text in content.items()}, folder)
    return Imported(tuple(paths.values()), tuple(to_complete), mended)


def _unreadable(category: str, text: str) -> list[str]:
    """What `read_prior` finds in a file of this text (a sentence, or nothing): what it refuses must not be written."""
    with TemporaryDirectory() as aside:
        path = Path(aside) / f"{category}.yaml"
        path.write_text(text, encoding="utf-8")
        try:
            read_prior(path)
        except ValueError as error:
            return [str(error).replace(str(path), category)]
    return []


def _write_all(files: dict[Path, str], folder: Path) -> None:
    """Write all files, or none: they get their names when every one is whole."""
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with TemporaryDirectory(prefix=".import-", dir=folder) as aside:
            for path, text in files.items():
                write_atomic(Path(aside) / path.name, text.encode())
            for path in files:
                os.replace(Path(aside) / path.name, path)
    except OSError:
        if made and not any(folder.iterdir()):
            folder.rmdir()
        raise
