"""What an explanation is worth without a judge: how near it is to the reference texts of the clip's state, and which state it names.

`sbert` is the cosine of sentence embeddings with the nearest reference explanation of the clip's true state (the multi-turn paper's SBERT
score does not say which of several references counts); `sbert_mean` takes the mean over them. `type_accuracy`: the nearest reference of
the whole category belongs to the true state. Both are given also for two parrots, which say the same of every clip. No torch here: the
embeddings come from an encoder (`sentences.SentenceEncoder`). Shape suffixes: N clips, R references of a category, D width.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vlmphys.metrics import Figure
from vlmphys.predictions import Predictions
from vlmphys.priors import NORMAL_STATE, known_categories, load_priors
from vlmphys.prompts import VERDICT_PATTERN, reason_of
from vlmphys.records import NORMAL_STATES

UNDECIDED = "undecided"  # an empty text, or one that two states' references are equally near to
TIE = 1e-6               # cosines nearer than this are equal: float32 sums differ by as much with the order of a batch
SBERT_FIGURES = ("sbert", "sbert_mean", "type_accuracy")
NORMAL_PARROT, ANOMALY_PARROT = "always_normal", "always_most_frequent_anomaly"

# category -> state -> its reference texts
References = Mapping[str, Mapping[str, Sequence[str]]]


@dataclass(frozen=True)
class Spoken:
    """One explanation that has references: the row of its clip, its true state, and its text without the form of a verdict."""

    row: int
    category: str
    state: str
    text: str


@dataclass(frozen=True)
class Collected:
    """The explanations of a predictions file, and how many rows of each category had none, or had no reference to compare with."""

    spoken: list[Spoken]
    unexplained: Counter[str]
    no_reference: Counter[str]
    unknown_states: list[str]


def state_key(state: str) -> str:
    """The state by which references are found: clips of the folder `train` are as normal as those of `anomaly_free`."""
    return NORMAL_STATE if state in NORMAL_STATES else state


def plain_text(explanation: str) -> str:
    """An explanation without "Verdict: ... Reason:", so that the form alone makes no two texts alike."""
    reason = reason_of(explanation)
    return reason or " ".join(VERDICT_PATTERN.sub(" ", explanation).removesuffix("Reason:").split()).lstrip(". ")


def prior_references(categories: Iterable[str], priors: Path | None, kind: str = "explanations") -> dict[str, dict[str, tuple[str, ...]]]:
    """The texts of the priors, `explanations` or `descriptions`, for those categories that have one."""
    known = set(known_categories(priors)).intersection(categories)
    return {category: {state: getattr(texts, kind) for state, texts in prior.states.items()}
            for category, prior in load_priors(known, priors).items()}


def collect(predictions: Predictions, references: References, texts: Sequence[str | None] | None = None) -> Collected:
    """Which explanations (or `texts`, one a row) can be compared. A null one was never asked for; an empty one was, and says nothing."""
    spoken, unexplained, no_reference, unknown = [], Counter(), Counter(), []
    for row, text in enumerate(predictions.explanations if texts is None else texts):
        category, state = predictions.categories[row], state_key(predictions.states[row])
        if text is None:
            unexplained[category] += 1
        elif state not in references.get(category, {}):
            no_reference[category] += 1
            unknown.append(f"{category}/{state}")
        else:
            spoken.append(Spoken(row, category, state, plain_text(str(text))))
    return Collected(spoken, unexplained, no_reference, sorted(set(unknown)))


def score_similarity(predictions: Predictions, references: References, encode: Callable[[Sequence[str]], np.ndarray], model: str) -> dict:
    """{"model", "per_category": {category: record}, "clips": {row: {...}}, "warnings"}.

    encode: texts -> (N, D) of unit length. A record holds n (compared), n_unexplained, n_no_reference, n_empty, the three figures (null
    with a reason where nothing can be compared), `confusion` (true state -> state of the nearest reference -> clips) and `controls`. An
    empty explanation says nothing: its cosine counts as 0 and its type as wrong.
    """
    found = collect(predictions, references)
    by_category: dict[str, list[Spoken]] = {category: [] for category in dict.fromkeys(predictions.categories)}
    for spoken in found.spoken:
        by_category[spoken.category].append(spoken)
    vectors = _embed([spoken.text for spoken in found.spoken], references, [name for name, rows in by_category.items() if rows], encode)
    per_category, clips = {}, {}
    for category, rows in by_category.items():
        counts = {"n": len(rows), "n_unexplained": found.unexplained[category], "n_no_reference": found.no_reference[category],
                  "n_empty": sum(not spoken.text for spoken in rows)}
        if rows:
            figures, of_clips = _score_category(rows, references[category], vectors)
            clips.update(of_clips)
        else:
            figures = _nothing(counts, category in references)
        per_category[category] = {**counts, **figures}
    warnings = []
    if found.unknown_states:
        warnings.append(f"{sum(found.no_reference.values())} explanations have no reference texts and are left out of the text figures "
                        f"(first state without any: {found.unknown_states[0]})")
    return {"model": model, "per_category": per_category, "clips": clips, "warnings": warnings}


def _nothing(counts: Mapping[str, int], known: bool) -> dict:
    """The record of a category without anything to compare."""
    if counts["n_unexplained"] and not counts["n_no_reference"]:
        reason = "the predictions hold no explanations of it (predict.py --explain all)"
    elif known:
        reason = "no explanation is of a state with reference texts"
    else:
        reason = "no reference texts: no prior has this name"
    return {**{name: None for name in SBERT_FIGURES}, "reason": reason}


def _embed(texts: Sequence[str], references: References, categories: Sequence[str], encode) -> dict[str, np.ndarray]:
    """Text -> vector, for all texts and references at once, so that batches are full and equal texts are embedded once."""
    wanted = dict.fromkeys([text for text in texts if text]
                           + [text for category in categories for kept in references[category].values() for text in kept])
    return dict(zip(wanted, encode(list(wanted)), strict=True))


def _score_category(rows: Sequence[Spoken], references: Mapping[str, Sequence[str]], vectors: Mapping[str, np.ndarray]) -> tuple[dict, dict]:
    """The figures of one category, and what is said of each clip: {row: {"sbert", "sbert_mean", "nearest"}}."""
    states = list(references)
    reference_RD = np.stack([vectors[text] for state in states for text in references[state]])
    state_R = np.repeat(np.arange(len(states)), [len(references[state]) for state in states])
    width = reference_RD.shape[1]
    text_ND = np.stack([vectors[spoken.text] if spoken.text else np.zeros(width, reference_RD.dtype) for spoken in rows])
    best_NS, mean_NS = _by_state(text_ND @ reference_RD.T, state_R, len(states))
    best_RS, mean_RS = _by_state(reference_RD @ reference_RD.T, state_R, len(states))
    nearest_N, nearest_R = _nearest(best_NS), _nearest(best_RS)
    nearest_N[[not spoken.text for spoken in rows]] = len(states)
    true_N = np.array([states.index(spoken.state) for spoken in rows])
    each = np.arange(len(rows))
    names = [*states, UNDECIDED]
    confusion = {states[true]: {} for true in sorted(set(true_N.tolist()))}
    for (true, said), count in sorted(Counter(zip(true_N.tolist(), nearest_N.tolist())).items()):
        confusion[states[true]][names[said]] = count
    counts_S = np.bincount(true_N, minlength=len(states))
    record = {"sbert": float(best_NS[each, true_N].mean()), "sbert_mean": float(mean_NS[each, true_N].mean()),
              "type_accuracy": float((nearest_N == true_N).mean()), "confusion": confusion,
              "controls": _controls(states, counts_S, state_R, best_RS, mean_RS, nearest_R)}
    clips = {spoken.row: {"sbert": float(best_NS[index, true_N[index]]), "sbert_mean": float(mean_NS[index, true_N[index]]),
                          "nearest": names[nearest_N[index]]} for index, spoken in enumerate(rows)}
    return record, clips


def _by_state(cosine_NR: np.ndarray, state_R: np.ndarray, n_states: int) -> tuple[np.ndarray, np.ndarray]:
    """The highest and the mean cosine with each state's references: two arrays (N, states)."""
    of_states = [cosine_NR[:, state_R == state] for state in range(n_states)]
    return np.stack([part.max(1) for part in of_states], 1), np.stack([part.mean(1) for part in of_states], 1)


def _nearest(best_NS: np.ndarray) -> np.ndarray:
    """The state with the nearest reference, or the number of states where several are equally near."""
    tied_N = (best_NS >= best_NS.max(1, keepdims=True) - TIE).sum(1) > 1
    return np.where(tied_N, best_NS.shape[1], best_NS.argmax(1))


def _controls(states: Sequence[str], counts_S: np.ndarray, state_R: np.ndarray, best_RS: np.ndarray, mean_RS: np.ndarray,
              nearest_R: np.ndarray) -> dict[str, dict]:
    """What two parrots would score on the same clips: the mean over all references of the state that they always name.

    They say a reference text word for word, so that a model's lead over them is not one of style. counts_S: clips of each true state.
    """
    anomalies = [index for index, state in enumerate(states) if state not in NORMAL_STATES and counts_S[index]]
    said = {NORMAL_PARROT: states.index(NORMAL_STATE) if NORMAL_STATE in states else None,
            ANOMALY_PARROT: max(anomalies, key=lambda index: counts_S[index]) if anomalies else None}
    weight_S = counts_S / counts_S.sum()
    controls = {}
    for name, state in said.items():
        if state is None:
            controls[name] = {"state": None, **{key: None for key in SBERT_FIGURES}}
            continue
        texts_R = state_R == state
        right_S = np.array([(nearest_R[texts_R] == index).mean() for index in range(len(states))])
        controls[name] = {"state": states[state], "sbert": float(best_RS[texts_R].mean(0) @ weight_S),
                          "sbert_mean": float(mean_RS[texts_R].mean(0) @ weight_S), "type_accuracy": float(right_S @ weight_S)}
    return controls


def similarity_figures(scored: Mapping) -> dict[str, dict[str, Figure]]:
    """`sbert` and `type_accuracy` by category, as scores.json holds them."""
    return {name: {category: Figure(record[name], record.get("reason")) for category, record in scored["per_category"].items()}
            for name in ("sbert", "type_accuracy")}
