"""From predictions to scores.json: detection figures per category and their means. No torch.

An undefined figure is null, and `reasons` of the same record says why; it is never 0 and never left out of a mean in silence.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from vlmphys.calibration import calibration_record
from vlmphys.metrics import (Figure, accuracy, auroc, average_precision, bootstrap_auroc, interval95, verdict_auroc,
                             verdict_rates)
from vlmphys.predictions import Predictions
from vlmphys.records import Split, stable_int
from vlmphys.splits import SplitFile

SCORES_VERSION = 1
FIGURES = ("auroc", "auroc_verdict", "ap", "accuracy")
# Of the hard verdict: its two kinds of error, and the share of answers that could be read.
RATES = ("tpr", "fpr", "parse_rate")
# Figures of the texts: null unless they are asked for; `text_metrics` fills them then, with their means.
TEXT_FIGURES = ("sbert", "llm", "type_accuracy", "description", "explanation")
PHYS_AD_CATEGORIES = (
    "ball", "button", "car", "caster_wheel", "clip", "clock", "fan", "gear", "hinge", "liquid", "lock", "magnet", "rolling_bearing",
    "rubber_band", "screw", "servo", "slide", "spherical_bearing", "sticky_roller", "toothpaste", "usb", "zipper")
# The multi-turn paper reports all categories of Phys-AD (CVPR 2025) but this one, and gives no reason.
LEFT_OUT_OF_21 = "toothpaste"
NAMED_AT_MOST = 5
# Up to 3 clips of a class have 10 different resamples at most: too few for the ends of an interval.
FEW_CLIPS = 3


def choose_threshold(predictions: Predictions, given: float | None) -> dict:
    """The score at and above which a clip counts as anomalous, with the rule that chose it: {"value", "rule"}."""
    if given is not None:
        if not np.isfinite(given):
            raise ValueError(f"--threshold {given}: a number is needed, from which a score counts as anomalous")
        return {"value": float(given), "rule": "given"}
    if predictions.constants["data_fingerprint"] is not None:
        return {"value": 0.0, "rule": "0: the scores are log-odds of vlmphys"}
    known = predictions.scores_N[~np.isnan(predictions.scores_N)]
    if not len(known):
        return {"value": 0.0, "rule": "0: no clip has a score"}
    finite = known[np.isfinite(known)]
    if len(finite) and finite.min() >= 0 and finite.max() <= 1:
        return {"value": 0.5, "rule": "0.5: all scores lie in [0, 1]" if len(finite) == len(known) else "0.5: all finite scores lie in [0, 1]"}
    return {"value": 0.0, "rule": "0: some scores lie outside [0, 1]"}


def compare_clips(predictions: Mapping[str, Predictions]) -> tuple[int, str | None]:
    """The number of clips that all runs have, and a sentence where some are not in all of them (None where all are).

    Raises ValueError, naming the clip and both files, for a clip that has two labels.
    """
    if len(predictions) == 1:
        return len(next(iter(predictions.values()))), None
    first: dict[str, tuple[int, Path]] = {}
    for table in predictions.values():
        for clip_id, label in zip(table.clip_ids, table.labels_N.tolist()):
            known, file = first.setdefault(clip_id, (label, table.path))
            if known != label:
                raise ValueError(f"clip {clip_id!r} has label {known} in {file} and {label} in {table.path}: a clip has one label, correct "
                                 "one of them")
    common = set.intersection(*(set(table.clip_ids) for table in predictions.values()))
    if len(common) == len(first):
        return len(common), None
    counts = ", ".join(f"{name} {len(table)}" for name, table in predictions.items())
    odd = next(clip_id for clip_id in first if clip_id not in common)
    return len(common), (f"the runs are over different clips, and so are their figures: {len(common)} of {len(first)} clips are in all of "
                         f"them ({counts}; the first that is not in all is {odd})")


def score_predictions(predictions: Predictions, threshold: float | None = None, seed: int = 0, split: SplitFile | None = None,
                      quarantined: Collection[str] = ()) -> dict:
    """All figures of one predictions file, as scores.json holds them for one run.

    split: that of the packed data, for its protocol and to find clips that stand in train; quarantined: its clips that could not be
    decoded. seed: of the bootstrap. The hard verdict is the file's own where it has a verdict column, else the score at the threshold,
    and a clip without a score has none then.
    """
    chosen = choose_threshold(predictions, threshold)
    own_verdicts = predictions.anomalous_N is not None
    anomalous_N, unparsed_N, judged_N = hard_verdicts(predictions, chosen["value"])
    names, category_of_N = np.unique(np.array(predictions.categories), return_inverse=True)
    per_category, replicates, scored, tied, one_verdict = {}, {}, {}, [], []
    for index, name in enumerate(names.tolist()):
        rows = category_of_N == index
        known_N = rows & ~np.isnan(predictions.scores_N)
        known, anomalous = predictions.scores_N[known_N], int(predictions.labels_N[known_N].sum())
        scored[name] = (len(known) - anomalous, anomalous)
        if len(known) > 1 and known.min() == known.max():
            tied.append(name)
        per_category[name], replicates[name] = _score_category(
            predictions.labels_N[rows], predictions.scores_N[rows], anomalous_N[rows], unparsed_N[rows], judged_N[rows],
            chosen["value"], stable_int(seed, name), own_verdicts)
        judged = rows & judged_N
        if judged.sum() > 1 and not unparsed_N[rows].any() and len(set(anomalous_N[judged].tolist())) == 1 and (own_verdicts or name not in tied):
            one_verdict.append(name)
    published_21 = [name for name in PHYS_AD_CATEGORIES if name != LEFT_OUT_OF_21]
    average = mean_record(per_category, list(per_category), replicates, strict=False)
    warnings = [*_row_warnings(predictions, per_category), *_verdict_warnings(predictions, chosen, tied, one_verdict),
                *_interval_warnings(per_category, average, scored, tied)]
    warnings += _split_warnings(predictions, split, quarantined) if split is not None else []
    return {
        "version": SCORES_VERSION,
        **predictions.constants,
        "protocol": split.protocol if split is not None else None,
        "fingerprints": {"predictions": predictions.sha256, "data": predictions.constants["data_fingerprint"],
                         "split": split.sha256 if split is not None else None},
        "threshold": chosen,
        "verdict_source": "verdict column" if own_verdicts else "score at the threshold",
        "seed": seed,
        "n": len(predictions),
        "n_anomalous": int(predictions.labels_N.sum()),
        "warnings": warnings,
        "calibration": calibration_record(predictions),
        "per_category": per_category,
        "average": average,
        "average_21": mean_record(per_category, published_21, replicates, strict=True),
        "average_22": mean_record(per_category, list(PHYS_AD_CATEGORIES), replicates, strict=True),
    }


def hard_verdicts(predictions: Predictions, threshold: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Three bool arrays of length N: the verdict is anomalous; it could not be read; the clip has one (it has none where it would follow from a
    score that is missing)."""
    if predictions.anomalous_N is not None:
        return predictions.anomalous_N, predictions.unparsed_N, np.ones(len(predictions), dtype=bool)
    return predictions.scores_N >= threshold, np.zeros(len(predictions), dtype=bool), ~np.isnan(predictions.scores_N)


def _score_category(labels_N, scores_N, anomalous_N, unparsed_N, judged_N, threshold: float, seed: int,
                    own_verdicts: bool) -> tuple[dict, np.ndarray | None]:
    """The record of one category, and its bootstrap replicates for the interval of the mean. judged_N: which clips have a verdict.
    own_verdicts: it is the file's, and may be unreadable."""
    known_N = ~np.isnan(scores_N)
    labels_known, scores_known = labels_N[known_N], scores_N[known_N]
    area = auroc(labels_known, scores_known)
    figures = {
        "auroc": area,
        "auroc_verdict": verdict_auroc(labels_N[judged_N], anomalous_N[judged_N], unparsed_N[judged_N]),
        # With anomalous clips alone it is 1 whatever the scores are.
        "ap": average_precision(labels_known, scores_known) if area.reason is None else area,
        "accuracy": accuracy(labels_known, scores_known, threshold),
        **dict(zip(("tpr", "fpr"), verdict_rates(labels_N[judged_N], anomalous_N[judged_N], unparsed_N[judged_N]))),
        "parse_rate": Figure(float(1 - unparsed_N.mean())) if own_verdicts else Figure(None, "no verdict column: nothing was parsed"),
        **{name: Figure(None, "not asked for (score.py --sbert, --judge, --paeval)") for name in TEXT_FIGURES},
    }
    record = {"n": len(labels_N), "n_anomalous": int(labels_N.sum()),
              "n_missing": int((~known_N).sum()), "n_unparsed": int(unparsed_N.sum())}
    replicates = bootstrap_auroc(labels_known, scores_known, seed) if figures["auroc"].value is not None else None
    return _with_figures(record, figures, replicates), replicates


def _with_figures(record: dict, figures: Mapping[str, Figure], replicates: np.ndarray | None) -> dict:
    """Add the figures, the AUROC's interval and the reasons of what is undefined."""
    for name, figure in figures.items():
        record[name] = figure.value
        if name == "auroc":
            record["auroc_ci95"] = list(interval95(replicates)) if replicates is not None else None
    record["reasons"] = {name: figure.reason for name, figure in figures.items() if figure.value is None}
    if "auroc" in record["reasons"]:
        record["reasons"]["auroc_ci95"] = record["reasons"]["auroc"]
    return record


def mean_record(per_category: Mapping[str, dict], names: Sequence[str], replicates: Mapping[str, np.ndarray | None] | None = None,
                strict: bool = True) -> dict:
    """The mean of each figure over the categories `names`, with the number of categories that it is a mean over.

    strict: a figure is null, with the reason, unless every category is there and has it. Otherwise the mean is over those that
    have it, and `left_out` names the rest for each figure.
    """
    present = [name for name in names if name in per_category]
    absent = [name for name in names if name not in per_category]
    record = {"n_categories": len(present), "categories": present,
              **{key: sum(per_category[name][key] for name in present) for key in ("n", "n_anomalous")}}
    figures, left_out = {}, {}
    for key in (*FIGURES, *RATES):
        values = {name: per_category[name][key] for name in present if per_category[name][key] is not None}
        undefined = [name for name in present if name not in values]
        if strict and absent:
            figures[key] = Figure(None, f"{len(present)} of {len(names)} categories are there; absent: {_named(absent)}")
        elif strict and undefined:
            figures[key] = Figure(None, f"undefined in {_named(undefined)}")
        elif not values:
            figures[key] = Figure(None, "undefined in every category")
        else:
            figures[key] = Figure(float(np.mean(list(values.values()))))
            if undefined:
                left_out[key] = undefined
    averaged = None
    if figures["auroc"].value is not None and replicates is not None:
        drawn = [replicates[name] for name in present if replicates[name] is not None]
        # Categories are resampled independently; a large one has fewer replicates, and the mean uses as many as all have.
        averaged = np.mean([values[:min(map(len, drawn))] for values in drawn], axis=0)
    record = _with_figures(record, figures, averaged)
    if not strict:
        record["left_out"] = left_out
    return record


def _named(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    more = len(names) - NAMED_AT_MOST
    return ", ".join(names[:NAMED_AT_MOST]) + (f" and {more} more" if more > 0 else "")


def _row_warnings(predictions: Predictions, per_category: Mapping[str, dict]) -> list[str]:
    """What the rows lack or have too much of, one sentence each."""
    found = []
    lost = "AUROC, AP and accuracy" if predictions.anomalous_N is not None else "all figures"
    for key, text in (("n_missing", f"clips have no score (null, empty or NaN) and are left out of {lost}"),
                      ("n_unparsed", "verdicts could not be read and count as wrong in the balanced accuracy")):
        if total := sum(record[key] for record in per_category.values()):
            found.append(f"{total} of {len(predictions)} {text}")
    if np.isnan(predictions.scores_N).all():
        found[0] = (f"no clip has a score (all {len(predictions)} are null, empty or NaN): give numbers in the score column, "
                    "higher where a clip is more likely anomalous")
    for name, record in per_category.items() if not np.isnan(predictions.scores_N).all() else ():
        if "auroc" in record["reasons"]:
            found.append(f"{name}: {record['reasons']['auroc']}, so its AUROC is undefined")
    if predictions.uncategorised:
        found.append("no clip has a category, and all of them are scored as one: add a category column, or begin the clip ids with it "
                     "(fan/test/stuck/0003)")
    elif predictions.without_category:
        bare = predictions.without_category
        found.append(f"{len(bare)} of {len(predictions)} clips {'has' if len(bare) == 1 else 'have'} no category, and each counts as one of its own "
                     f"in the means (first {bare[0]}): begin the clip ids with it (fan/test/stuck/0003), or add a category column")
    if predictions.infinite_lines:
        places = ", ".join(str(line) for line in predictions.infinite_lines[:NAMED_AT_MOST])
        more = len(predictions.infinite_lines) - NAMED_AT_MOST
        found.append(f"infinite scores stand in line{'s' if len(predictions.infinite_lines) > 1 else ''} {places}"
                     + (f" and {more} more" if more > 0 else "") + ": they count as the highest or lowest")
    if predictions.duplicates:
        found.append(f"{_many(predictions.duplicates, 'row', 'repeat')} another one word for word and "
                     f"{'was' if predictions.duplicates == 1 else 'were'} counted once")
    if predictions.absent:
        found.append(f"{_many(predictions.absent, 'clip', 'have')} no prediction, though the labels file names them")
    return found


def _verdict_warnings(predictions: Predictions, threshold: Mapping, tied: Sequence[str], one_verdict: Sequence[str]) -> list[str]:
    """Scores and verdicts that tell nothing apart, and verdicts that are not those of the threshold."""
    found = []
    if tied:
        found.append(f"all scores are equal in {_named(tied)}: an AUROC of 0.5 says nothing there")
    if one_verdict:
        by, cure = "", ""
        if predictions.anomalous_N is None:
            by, cure = f" at the threshold {threshold['value']:g}", "" if threshold["rule"] == "given" else "; give --threshold"
        found.append(f"all verdicts are the same{by} in {_named(one_verdict)}: a balanced accuracy of 0.5 says nothing there{cure}")
    known = predictions.scores_N[~np.isnan(predictions.scores_N)]
    if len(known) > 2 and not tied and known.min() < known.max() and ((known == known.min()) | (known == known.max())).all():
        found.append(f"the scores take two values only ({known.min():g} and {known.max():g}): their AUROC is that of a hard verdict")
    if predictions.anomalous_N is not None:
        read_N = ~predictions.unparsed_N & ~np.isnan(predictions.scores_N)
        if other := int((read_N & (predictions.anomalous_N != (predictions.scores_N >= threshold["value"]))).sum()):
            found.append(f"{other} of {int(read_N.sum())} verdicts of the verdict column are not those of the scores at {threshold['value']:g}: "
                         "accuracy is of the scores, balanced accuracy, TPR and FPR of the column (a calibrated run has a threshold of its own: give "
                         "it as --threshold)")
    return found


def _interval_warnings(per_category: Mapping[str, dict], average: Mapping, scored: Mapping[str, tuple[int, int]],
                       tied: Sequence[str]) -> list[str]:
    """Intervals that are too narrow to be believed, and a mean AUROC that is surely worse than chance. scored: normal and anomalous clips with a
    score, by category."""
    found, few, sharp = [], [], []
    for name, (normal, anomalous) in scored.items():
        if not min(normal, anomalous) or name in tied:
            continue
        low, high = per_category[name]["auroc_ci95"]
        named = f"{name} ({normal} normal, {anomalous} anomalous)"
        if min(normal, anomalous) <= FEW_CLIPS:
            few.append(named)
        elif low == high:
            sharp.append(named)
    if few:
        found.append(f"few clips of a class make the bootstrap's interval too narrow in {_named(few)}")
    if sharp:
        found.append(f"the AUROC's interval has width 0 in {_named(sharp)}: all resamples of these clips are ordered alike, which "
                     "other clips need not be")
    if average["auroc_ci95"] is not None and average["auroc_ci95"][1] < 0.5:
        found.append("the AUROC's interval lies below 0.5: a high score must mean anomalous; if it means normal here, give the "
                     "scores with the other sign")
    return found


def _many(count: int, noun: str, verb: str) -> str:
    """A count with its noun and verb: "1 clip has", "2 clips have"."""
    singular = {"have": "has", "are": "is", "stand": "stands", "repeat": "repeats"}
    return f"{count} {noun} {singular[verb]}" if count == 1 else f"{count} {noun}s {verb}"


def _split_warnings(predictions: Predictions, split: SplitFile, quarantined: Collection[str]) -> list[str]:
    """Clips that the split puts on another side than a test, and test clips without a prediction."""
    sides: dict[Split | None, list[str]] = {}
    for clip_id in predictions.clip_ids:
        sides.setdefault(split.clips.get(clip_id), []).append(clip_id)
    found = []
    if trained := sides.get(Split.TRAIN):
        found.append(f"{_many(len(trained), 'clip', 'stand')} in the train split: such scores are not held out (first {trained[0]})")
    if chosen := sides.get(Split.VAL):
        found.append(f"{_many(len(chosen), 'clip', 'stand')} in the val split: such scores are not those of a test (first {chosen[0]})")
    if unknown := sides.get(None):
        found.append(f"{_many(len(unknown), 'clip', 'are')} not in the split (first {unknown[0]})")
    if Split.TEST in sides:
        tests, predicted = [clip_id for clip_id, side in split.clips.items() if side is Split.TEST], set(predictions.clip_ids)
        absent = set(tests) - predicted
        if bad := sorted(absent.intersection(quarantined)):
            found.append(f"{len(bad)} of {len(tests)} test clips could not be read and {'is' if len(bad) == 1 else 'are'} not scored (first "
                         f"{bad[0]}; frames/quarantine.jsonl of the packed data says why)")
        if lacking := len(absent) - len(bad):
            found.append(f"{_many(lacking, 'test clip', 'have')} no prediction")
    return found


def name_runs(arguments: Sequence[str]) -> dict[str, Path]:
    """Names for predictions files: `NAME=FILE` as given, else the shortest that tells them apart: the file's stem, its folder, its path.

    Raises ValueError for two equal names.
    """
    pairs = []
    for argument in arguments:
        name, separator, file = argument.partition("=")
        pairs.append((name, Path(file)) if separator and name and not Path(argument).exists() else (None, Path(argument)))
    unnamed = [path for name, path in pairs if name is None]
    shortest = Path.as_posix
    for short in (lambda path: path.stem, lambda path: path.absolute().parent.name):
        if len({short(path) for path in unnamed}) == len(unnamed):
            shortest = short
            break
    named: dict[str, Path] = {}
    for name, path in pairs:
        name = name or shortest(path)
        if name in named:
            raise ValueError(f"two predictions files are named {name!r}: name them with NAME=FILE")
        named[name] = path
    return named


def scores_document(runs: Mapping[str, dict], n_common: int | None = None, **parts: dict | None) -> dict:
    """What scores.json holds: the one run itself, or {"version", "n_common", "runs": {name: run}} for several, `n_common` as counted by
    `compare_clips`; and beside them what else was computed of all runs together (`published`, `comparison`), where it is not None."""
    document = next(iter(runs.values())) if len(runs) == 1 else {"version": SCORES_VERSION, "n_common": n_common, "runs": dict(runs)}
    return {**document, **{name: part for name, part in parts.items() if part is not None}}
