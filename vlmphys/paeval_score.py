"""PAEval: how near a description or an explanation comes to the reference texts of its clip's true state, as a judge sees it (0 to 1).

Reads the benchmark's published files as they are: the reference library (`paeval` makes priors of it and back; here one of its two kinds
is enough), files of candidate texts, and files of raw replies. Two
aggregations: `published`, the mean over all clips of a category, normal ones included, then over categories; `per_state`, the mean over
the states of a category, each by its own clips, then over categories: there a state with many clips counts no more than one with few.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from vlmphys.explanations import References, collect, state_key
from vlmphys.files import read_json
from vlmphys.judge import Judge, Question
from vlmphys.judge_replies import Reading, read_number, read_reply
from vlmphys.llm_score import NO_EXPLANATIONS, failure_warnings
from vlmphys.metrics import Figure
from vlmphys.paeval import LABELS
from vlmphys.predictions import Predictions
from vlmphys.records import nearest
from vlmphys.rows import check_characters

KINDS = ("description", "explanation")
AGGREGATIONS = ("published", "per_state")
LIBRARY_KEYS = {"description": LABELS["descriptions"], "explanation": LABELS["explanations"]}
# The published scripts write `descrip` and read `describ`, so that their description score is 0: both are read here.
REPLY_KEYS = {"description": ("descrip", "describ"), "explanation": ("explain",)}
LIBRARY_FORM = '{category: {"description_label": {state: [texts]}, "explanation_label": {state: [texts]}}}'
CANDIDATES_FORM = "{category: {state: [one text a clip]}}"
REPLIES_FORM = '{category: {"descrip": {state: [one reply a clip]}, "explain": {state: [one reply a clip]}}}'

NO_DESCRIPTIONS = "predictions hold no descriptions (predict.py --describe); launch/paeval.py scores a file of them"

# category -> state -> one of something for each clip
Texts = dict[str, dict[str, list[str | None]]]
Readings = Mapping[str, Mapping[str, Sequence[Reading | None]]]


def _document(path: Path, cure: str) -> dict:
    """The object in a JSON file. Raises ValueError as `read_json`, and for texts that are no whole characters."""
    value = read_json(path, cure)
    check_characters(value, str(path))
    return value


def read_library(path: Path) -> dict[str, dict[str, dict[str, tuple[str, ...]]]]:
    """kind -> category -> state -> reference texts. Raises ValueError that names the place where the file has another form."""
    found: dict[str, dict] = {kind: {} for kind in KINDS}
    for category, entry in _document(path, f"a reference library is expected: {LIBRARY_FORM}").items():
        _is_mapping(entry, f"{path}: {category}", LIBRARY_FORM)
        for kind, key in LIBRARY_KEYS.items():
            if key in entry:
                states = _states(entry[key], f"{path}: {category}.{key}", LIBRARY_FORM)
                for state, texts in states.items():
                    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
                        raise ValueError(f"{path}: {category}.{key}.{state}: at least one text, and none empty, is expected: {LIBRARY_FORM}")
                found[kind][category] = {state: tuple(texts) for state, texts in states.items()}
    if not any(found.values()):
        raise ValueError(f"{path} holds no reference texts: {LIBRARY_FORM} is expected")
    return found


def read_candidates(path: Path) -> Texts:
    """category -> state -> one text a clip; null where a clip has none. Raises ValueError for another form."""
    found: Texts = {}
    for category, entry in _document(path, f"a file of candidate texts is expected: {CANDIDATES_FORM}").items():
        found[category] = _states(entry, f"{path}: {category}", CANDIDATES_FORM)
        for state, texts in found[category].items():
            if not all(text is None or isinstance(text, str) for text in texts):
                raise ValueError(f"{path}: {category}.{state}: texts are expected: {CANDIDATES_FORM}")
    if not any(texts for states in found.values() for texts in states.values()):
        raise ValueError(f"{path} holds no texts: {CANDIDATES_FORM} is expected")
    return found


def read_raw_replies(path: Path) -> dict[str, Readings]:
    """kind -> category -> state -> one reading a clip, by `judge_replies.read_number`. Raises ValueError for another form of file.

    A reply that cannot be read is a reading with its problem, as is one that is null; numbers of JSON are read as their text.
    """
    found: dict[str, dict] = {}
    for category, entry in _document(path, f"a file of raw replies is expected: {REPLIES_FORM}").items():
        _is_mapping(entry, f"{path}: {category}", REPLIES_FORM)
        allowed = [key for keys in REPLY_KEYS.values() for key in keys]
        for key in entry:
            if key not in allowed:
                raise ValueError(f"{path}: {category}: unknown key {key!r}{nearest(key, allowed)}; {REPLIES_FORM} is expected")
        for kind, keys in REPLY_KEYS.items():
            given = [key for key in keys if key in entry]
            if len(given) > 1:
                raise ValueError(f"{path}: {category} has both {' and '.join(given)}, which mean the same: delete one")
            for key in given:
                states = _states(entry[key], f"{path}: {category}.{key}", REPLIES_FORM)
                found.setdefault(kind, {})[category] = {state: [_raw(reply) for reply in replies] for state, replies in states.items()}
    if not found:
        raise ValueError(f"{path} holds no replies: {REPLIES_FORM} is expected")
    return found


def _raw(reply: object) -> Reading:
    if isinstance(reply, str):
        return read_reply("similarity", reply)
    if isinstance(reply, (int, float)) and not isinstance(reply, bool):
        return read_number(repr(reply))
    return Reading(None, "empty reply" if reply is None else "no single number")


def _is_mapping(value: object, where: str, form: str) -> None:
    if not isinstance(value, dict):
        raise ValueError(f"{where}: an object is expected, not a {type(value).__name__}: {form}")


def _states(value: object, where: str, form: str) -> dict[str, list]:
    _is_mapping(value, where, form)
    for state, texts in value.items():
        if not isinstance(texts, list):
            raise ValueError(f"{where}.{state}: a list is expected, not a {type(texts).__name__}: {form}")
    return value


def judge_texts(texts: Texts, references: References, judge: Judge) -> tuple[Readings, dict]:
    """A reading for each text, None where a clip has no text, and the record of the judge. ValueError for a state without references."""
    questions, places = [], []
    for category, states in texts.items():
        if category not in references:
            raise ValueError(f"category {category!r} has no reference texts{nearest(category, references)}; there are some for: "
                             f"{', '.join(references) or 'no category'}; give a library or a folder of priors that has it")
        for state, of_clips in states.items():
            key = state if state in references[category] else state_key(state)
            if key not in references[category]:
                raise ValueError(f"state {state!r} of {category!r} has no reference texts{nearest(state, references[category])}; there are "
                                 f"some for: {', '.join(references[category])}")
            for number, text in enumerate(of_clips):
                if text is not None:
                    questions.append(Question("similarity", category, key, tuple(references[category][key]), text.strip()))
                    places.append((category, state, number))
    graded, record = judge.grade(questions)
    readings = {category: {state: [None] * len(of_clips) for state, of_clips in states.items()} for category, states in texts.items()}
    for (category, state, number), reading in zip(places, graded, strict=True):
        readings[category][state][number] = reading
    return readings, record


def aggregate(readings: Readings) -> dict:
    """Both aggregations, by category and over all: {"per_category": {category: {"published", "per_state", "states", counts}}, "average"}.

    A clip without a grade is left out and counted: `n_failed` (an error), `n_without` (no text). A figure without any grade is null, and
    the average of an aggregation is over the categories that have it; `left_out` names the others.
    """
    per_category = {category: _of_category(states) for category, states in readings.items()}
    average: dict = {"n_categories": len(per_category), "left_out": {}}
    for name in AGGREGATIONS:
        values = [record[name] for record in per_category.values() if record[name] is not None]
        average[name] = statistics.fmean(values) if values else None
        if missing := [category for category, record in per_category.items() if record[name] is None]:
            average["left_out"][name] = missing
    for count in ("n", "n_failed", "n_without"):
        average[count] = sum(record[count] for record in per_category.values())
    failures = Counter(reading.problem.partition(":")[0] for states in readings.values() for of_clips in states.values()
                       for reading in of_clips if reading is not None and reading.problem is not None)
    return {"per_category": per_category, "average": average, "failures": dict(failures.most_common())}


def _of_category(states: Mapping[str, Sequence[Reading | None]]) -> dict:
    grades = {state: [reading.grades["similarity"] for reading in of_clips if reading is not None and reading.grades is not None]
              for state, of_clips in states.items()}
    every = [value for values in grades.values() for value in values]
    means = {state: statistics.fmean(values) if values else None for state, values in grades.items()}
    undefined = [state for state, mean in means.items() if mean is None]
    record = {"n": sum(map(len, states.values())),
              "n_failed": sum(reading is not None and reading.grades is None for of_clips in states.values() for reading in of_clips),
              "n_without": sum(reading is None for of_clips in states.values() for reading in of_clips),
              "published": statistics.fmean(every) if every else None,
              "per_state": None if undefined or not means else statistics.fmean(means.values()), "states": means}
    if undefined:
        record["reason"] = f"no grade for {', '.join(undefined)}"
    return record


def score_predictions_by_paeval(predictions: Predictions, references: References, judge: Judge, kind: str = "explanation") -> dict:
    """The explanations of a predictions file, or its descriptions, by PAEval: {"judge", "per_category", "average", "failures", "warnings"}."""
    found = collect(predictions, references, predictions.descriptions if kind == "description" else None)
    texts: Texts = {}
    for spoken in found.spoken:
        texts.setdefault(spoken.category, {}).setdefault(spoken.state, []).append(spoken.text)
    readings, record = judge_texts(texts, references, judge)
    result = aggregate(readings)
    for category in dict.fromkeys(predictions.categories):
        if category not in result["per_category"]:
            without = NO_EXPLANATIONS if kind == "explanation" else NO_DESCRIPTIONS
            reason = without if found.unexplained[category] else "no reference texts of its states"
            result["per_category"][category] = {"n": 0, **dict.fromkeys(AGGREGATIONS), "reason": reason}
    return {"judge": record, **result, "warnings": failure_warnings(record, f"PAEval's {kind} score")}


def paeval_figures(scored: Mapping, aggregation: str, kind: str = "explanation") -> dict[str, dict[str, Figure]]:
    """`explanation`, or `description`, by category in one aggregation, as scores.json holds it."""
    return {kind: {
        category: Figure(record[aggregation], record.get("reason", "no grade") if record[aggregation] is None else None)
        for category, record in scored["per_category"].items()}}
