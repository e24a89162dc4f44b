"""A row of predictions.jsonl and what it says, and anyone's JSONL or CSV of scores, read back as columns. No torch.

Shape suffix: N rows of a file.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import NoneType

import numpy as np

from vlmphys.answer_files import answer_rows
from vlmphys.records import Split, Verdict, sha256_file
from vlmphys.rows import table_rows_of

LABEL_WORDS = {"0": 0, "0.0": 0, "normal": 0, "false": 0, "1": 1, "1.0": 1, "anomalous": 1, "true": 1}
QUICK_LABELS = {0: 0, 1: 1, "0": 0, "1": 1}
MISSING_SCORES = ("", "nan", "none", "null")
# Where labels beside the rows' own come from, as messages name it.
OWN, LABELS_FILE, PACKED = "its row", "the --labels file", "--data"
# A clip id that is a path: its category is the folder above the side, `videos/fan/test/stuck/0003`.
SIDES = tuple(f"{side.value}/" for side in (Split.TRAIN, Split.TEST))
SIDE_WITHIN = re.compile(r"(?:.*/)?([^/]+)/(?:train|test)/")
NO_CATEGORY = "all"     # the one category of clips that have none
CONSTANTS = ("model", "variant", "grounding", "data_fingerprint")


class Grounding(str, Enum):
    """Where the answers before the verdict come from: the prior, the model itself, or nowhere (no physics)."""

    PRIOR = "prior"
    GENERATE = "generate"
    NONE = "none"


class Explain(str, Enum):
    """Which clips get an explanation by greedy decoding."""

    ALL = "all"
    ANOMALOUS = "anomalous"
    NONE = "none"

    def wants(self, verdict: Verdict) -> bool:
        """Whether a clip of this verdict gets an explanation."""
        return self is Explain.ALL or (self is Explain.ANOMALOUS and verdict is Verdict.ANOMALOUS)


def probability_of(score: float) -> float:
    """The probability of Anomalous against Normal alone, from their log-odds (natural logarithm)."""
    return 1 / (1 + math.exp(-score)) if score >= 0 else math.exp(score) / (1 + math.exp(score))


def verdict_of(score: float, threshold: float = 0.0) -> Verdict:
    """The hard verdict of a log-odds; the threshold itself is anomalous, as in the benchmark's `score >= 0.5`."""
    return Verdict.ANOMALOUS if score >= threshold else Verdict.NORMAL


@dataclass(frozen=True)
class Calibration:
    """How a score is read: probability of Anomalous at a temperature above 0, anomalous from a threshold, a score, on."""

    temperature: float = 1.0
    threshold: float = 0.0

    def probability(self, score: float) -> float:
        """The probability of Anomalous against Normal alone."""
        return probability_of(score / self.temperature)

    def verdict(self, score: float) -> Verdict:
        """The hard verdict."""
        return verdict_of(score, self.threshold)

    @property
    def anomalous_from(self) -> float:
        """The probability from which the verdict is anomalous."""
        return self.probability(self.threshold)


UNCALIBRATED = Calibration()


@dataclass(frozen=True)
class Identity:
    """What must be the same for all rows of one file: rows of two models, variants or data folders are never mixed."""

    model: str
    variant: str
    grounding: str
    data_fingerprint: str


@dataclass(frozen=True)
class Prediction:
    """One row. `score` is the log-odds of Anomalous over Normal; `explanation` is None where none was asked for, as is `description`, which
    stands in the rows of a file with descriptions alone."""

    clip_id: str
    category: str
    state: str
    label: int
    score: float
    probability: float
    verdict: str
    explanation: str | None
    answers: list[str]
    grounding: str
    variant: str
    model: str
    data_fingerprint: str
    description: str | None = None


@dataclass(frozen=True, eq=False)
class Predictions:
    """The rows of one file as columns, in the file's order.

    scores_N: float64, NaN where the score is missing. labels_N: int8, 0 or 1. anomalous_N, unparsed_N: bool, from the
    verdict column; both are None where the file has no such column. The constants are None where the file does not say, or
    says several things; `data_fingerprints` are all that its rows carry. absent: clips of --labels without a row; duplicates: rows left
    out because they repeat another one. probabilities_N: float64, of Anomalous, NaN where there is none; None where the rows are not ours, whose
    `probability` might be of something else. uncategorised: no clip has a category, and all of them are of one, NO_CATEGORY; without_category:
    where others have one. infinite_lines: of scores that are infinite.
    """

    path: Path
    sha256: str
    clip_ids: list[str]
    categories: list[str]
    states: list[str]
    labels_N: np.ndarray
    scores_N: np.ndarray
    anomalous_N: np.ndarray | None
    unparsed_N: np.ndarray | None
    explanations: list[str | None]
    constants: dict[str, str | None]
    data_fingerprints: frozenset[str] = frozenset()
    absent: int = 0
    duplicates: int = 0
    probabilities_N: np.ndarray | None = None
    uncategorised: bool = False
    descriptions: list[str | None] | None = None    # None where no row has one
    without_category: tuple[str, ...] = ()
    infinite_lines: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.clip_ids)


def read_predictions(path: Path, labels: dict[str, int] | None = None, packed_labels: dict[str, int] | None = None,
                     order: Sequence[str] | None = None) -> Predictions:
    """Read a JSONL or CSV file with `clip_id, label, score`, from any program; our own columns are used where they are there. Files of texts
    (LLaMA-Factory, lmms-eval, Phys-AD) are read as `answer_files` says; `order` names their clips where they do not, by default those of `labels`.

    The category is the first part of the clip id, or the folder above `train` or `test` where these stand deeper in a path, and the state the
    part before the last, where the file has no such column; where no clip id has parts either, all clips are of one category.
    `labels` (of `read_labels`) stand in for the column, and then those of the packed data. Raises ValueError with file and line for a
    row without clip id, label or score column, a label that another source contradicts, a score that is no number, or a clip that
    stands there twice with different figures or texts; a row that repeats another one is counted and left out. A score that is empty, null or NaN is
    missing, not 0.
    """
    path = Path(path)
    sources = {name: found for name, found in ((LABELS_FILE, labels), (PACKED, packed_labels)) if found is not None}
    read = _Columns(path, sources)
    rows = answer_rows(path, list(labels) if order is None and labels is not None else order)
    for number, row in table_rows_of(path, ("clip_id", "score")) if rows is None else rows:
        read.add(number, row)
    return read.predictions(absent=sum(clip_id not in read.places for clip_id in labels) if labels else 0)


class _Columns:
    """The rows of a file as they are read, column by column; a million of them must take seconds, so that each row costs little."""

    def __init__(self, path: Path, sources: dict[str, dict[str, int]]) -> None:
        self.path, self.sources = path, sources
        self.clip_ids, self.categories, self.states, self.explanations, self.descriptions = [], [], [], [], []
        self.labels, self.scores, self.verdicts, self.lines, self.probabilities = [], [], [], [], []
        self.places: dict[str, int] = {}
        self.constants: dict[str, set] = {key: set() for key in CONSTANTS}
        self.duplicates = 0
        self.bare: list[str] = []     # ids that name no category, where no column does
        self._any_plain = self._any_category = False
        self._words: dict[str, str] = {}     # one object for all equal categories and states

    def add(self, number: int, row: dict) -> None:
        """Check and keep one row."""
        path = self.path
        clip_id = _clip_id(row, path, number)
        label, score, verdict = _label(row, path, number, self.sources, clip_id), _score(row, path, number), None
        category, state = row.get("category"), row.get("state")
        explanation = description = probability = None
        plain = len(row) == 3 and "label" in row     # clip, label and score, and nothing else to look for
        if not plain:
            verdict, probability = _verdict(row, path, number), _probability(row, path, number)
            explanation, description = row.get("explanation"), row.get("description")
            _check_texts(row, path, number)
        if (place := self.places.setdefault(clip_id, len(self.clip_ids))) != len(self.clip_ids):
            # NaN, a missing score, equals itself here.
            if (label, repr(score), verdict) != (self.labels[place], repr(self.scores[place]), self.verdicts[place]):
                raise ValueError(f"{path}:{number}: clip {clip_id!r:.80} stands already in line {self.lines[place]}, with other figures: "
                                 "give each clip one row")
            if (explanation, description) != (self.explanations[place], self.descriptions[place]):
                raise ValueError(f"{path}:{number}: clip {clip_id!r:.80} stands already in line {self.lines[place]}, with another text: "
                                 "give each clip one row")
            self.duplicates += 1
            return
        head, _, rest = clip_id.partition("/")
        self._any_category |= bool(category)
        if not category:
            if not rest:
                self.bare.append(clip_id)
            elif not rest.startswith(SIDES) and (side := SIDE_WITHIN.match(rest)):
                head = side.group(1)
            if not head or head in (".", ".."):
                raise ValueError(f"{path}:{number}: clip_id {clip_id!r:.80} begins with {repr(head) if head else 'a slash'}, and its first part "
                                 "is its category: take the folders before that away, as in 'fan/test/stuck/0003', or add a category column")
        category = str(category) if category else head
        state = str(state) if state else rest.rpartition("/")[0].rpartition("/")[2]
        self.clip_ids.append(clip_id)
        self.categories.append(self._words.setdefault(category, category))
        self.states.append(self._words.setdefault(state, state))
        self.labels.append(label)
        self.scores.append(score)
        self.verdicts.append(verdict)
        self.explanations.append(explanation)
        self.descriptions.append(description)
        self.probabilities.append(probability)
        self.lines.append(number)
        if not plain:
            for key, values in self.constants.items():
                value = row.get(key)
                values.add(value if value is None or isinstance(value, str) else str(value))
        self._any_plain |= plain

    def predictions(self, absent: int) -> Predictions:
        """All rows. Raises ValueError where there is none."""
        path, clip_ids, categories = self.path, self.clip_ids, self.categories
        if not clip_ids:
            raise ValueError(f"{path} holds no predictions: one row a clip is expected, with clip_id, label, score")
        uncategorised = not self._any_category and not any("/" in clip_id for clip_id in clip_ids)
        if uncategorised:
            categories = [NO_CATEGORY] * len(clip_ids)
        has_verdicts = any(verdict is not None for verdict in self.verdicts)
        for values in self.constants.values() if self._any_plain else ():
            values.add(None)
        return Predictions(
            path=path, sha256=sha256_file(path), clip_ids=clip_ids, categories=categories, states=self.states,
            labels_N=np.array(self.labels, dtype=np.int8), scores_N=np.array(self.scores, dtype=np.float64),
            anomalous_N=np.array([verdict is Verdict.ANOMALOUS for verdict in self.verdicts]) if has_verdicts else None,
            unparsed_N=np.array([verdict in (None, Verdict.UNPARSED) for verdict in self.verdicts]) if has_verdicts else None,
            explanations=self.explanations,
            constants={key: next(iter(values)) if len(values) == 1 else None for key, values in self.constants.items()},
            data_fingerprints=frozenset(str(value) for value in self.constants["data_fingerprint"] if value),
            absent=absent, duplicates=self.duplicates, uncategorised=uncategorised, without_category=() if uncategorised else tuple(self.bare),
            infinite_lines=tuple(line for line, score in zip(self.lines, self.scores) if math.isinf(score)),
            descriptions=self.descriptions if any(text is not None for text in self.descriptions) else None,
            probabilities_N=(np.array(self.probabilities, dtype=np.float64) if any(value is not None for value in self.probabilities) else None))


def read_labels(path: Path) -> dict[str, int]:
    """Labels by clip id from a JSONL or CSV file with `clip_id, label`. Raises ValueError as `read_predictions` does."""
    found: dict[str, int] = {}
    for number, row in table_rows_of(Path(path), ("clip_id", "label")):
        clip_id = _clip_id(row, path, number)
        label = _label(row, path, number, {}, clip_id)
        if found.setdefault(clip_id, label) != label:
            raise ValueError(f"{path}:{number}: clip {clip_id!r} has two labels: give each clip one")
    if not found:
        raise ValueError(f"{path} holds no labels: one row a clip is expected, with clip_id, label")
    return found


def _clip_id(row: dict, path: Path, number: int) -> str:
    clip_id = row.get("clip_id")
    if not isinstance(clip_id, str) or not clip_id or clip_id.isspace():
        raise ValueError(f"{path}:{number}: no clip_id: each row needs one, such as 'fan/test/stuck/0003'")
    return clip_id


def _check_texts(row: dict, path: Path, number: int) -> None:
    """Raise ValueError for texts of a row that are none."""
    for key in ("explanation", "description"):
        if not isinstance(row.get(key), (str, NoneType)):
            raise ValueError(f"{path}:{number}: {key} {_shown(row[key])}: a text is allowed, or null where there is none")
    for key in ("category", "state"):
        if isinstance(row.get(key), (list, dict)):
            raise ValueError(f"{path}:{number}: {key} {_shown(row[key])}: a name is allowed")


def _shown(value: object) -> str:
    """A value as a message shows it, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


def _label(row: dict, path: Path, number: int, sources: dict[str, dict[str, int]], clip_id: str) -> int:
    """The row's own label, else that of the first source that knows the clip; ValueError where two of them contradict each other."""
    stored = row.get("label")
    if not sources and type(stored) in (int, str) and stored in QUICK_LABELS:
        return QUICK_LABELS[stored]
    own = None if stored is None or stored == "" else LABEL_WORDS.get(str(stored).strip().lower())
    if own is None and stored is not None and stored != "":
        raise ValueError(f"{path}:{number}: label {_shown(stored)} of clip {clip_id!r}: allowed are 0, normal or false, and 1, anomalous or true")
    known = [(OWN, own)] if own is not None else []
    known += [(name, found[clip_id]) for name, found in sources.items() if clip_id in found]
    if not known:
        cure = f"it is not in {' or '.join(sources)} either"
        if not sources:
            cure = "add a label column (0 normal, 1 anomalous), give --labels FILE, or --data FOLDER where its clips are packed"
        raise ValueError(f"{path}:{number}: clip {clip_id!r} has no label: {cure}")
    for name, label in known[1:]:
        if label != known[0][1]:
            raise ValueError(f"{path}:{number}: clip {clip_id!r} has label {known[0][1]} by {known[0][0]}, {name} says {label}: "
                             "correct one of them")
    return known[0][1]


def _score(row: dict, path: Path, number: int) -> float:
    if "score" not in row:
        raise ValueError(f"{path}:{number}: no score: each row needs one (higher means more anomalous; null where it is missing)")
    score = row["score"]
    if type(score) is float:
        return score
    if score is None or (isinstance(score, str) and score.strip().lower() in MISSING_SCORES):
        return math.nan
    if isinstance(score, bool) or not isinstance(score, (int, float, str)):
        raise ValueError(f"{path}:{number}: score {_shown(score)} is no number")
    try:
        # Python's own digit groups, 1_000, are nobody's scores.
        value = float(score if isinstance(score, int) or "_" not in score else "")
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{path}:{number}: score {_shown(score)} is no number, or one that no float holds") from error
    return value


def _probability(row: dict, path: Path, number: int) -> float | None:
    """The probability of Anomalous of a row of ours, None where it has none."""
    stored = row.get("probability")
    if stored is None or not row.get("data_fingerprint"):
        return None
    try:
        value = float(stored)
    except (TypeError, ValueError):
        value = math.nan
    if not 0 <= value <= 1:
        raise ValueError(f"{path}:{number}: probability {_shown(stored)}: a number from 0 to 1 is allowed, or none")
    return value


def _verdict(row: dict, path: Path, number: int) -> Verdict | None:
    stored = row.get("verdict")
    if stored is None or stored == "":
        return None
    try:
        return Verdict(str(stored).strip().lower())
    except ValueError as error:
        raise ValueError(f"{path}:{number}: verdict {_shown(stored)}: {', '.join(verdict.value for verdict in Verdict)} are allowed") from error
