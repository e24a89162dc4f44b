"""Runs on the same clips against the first of them: paired differences of the AUROC, the multi-turn paper's ablation. No torch.

Both figures are compared: that of the continuous score, and that of the hard verdict (the paper's protocol). Only clips that both runs have with a
score (or a verdict) count, so that the AUROCs here may differ a little from a run's own where clips are missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from vlmphys.metrics import auroc, interval95, verdict_scores
from vlmphys.paired import bootstrap_difference, bootstrap_p, delong
from vlmphys.predictions import Predictions
from vlmphys.published import published
from vlmphys.records import Variant, stable_int
from vlmphys.scoring import hard_verdicts
from vlmphys.text_tables import TextTable

FIGURES = {"auroc": "AUROC of the score", "auroc_verdict": "AUROC of the hard verdict, (TPR + TNR) / 2"}
UNDEFINED = "–"


def compare_runs(predictions: Mapping[str, Predictions], runs: Mapping[str, dict], seed: int = 0) -> dict:
    """The comparison of every run with the first: what scores.json holds as `comparison`.

    {"base": name, "seed", "against": {name: {"n_common", figure: {"n_left_out", "per_category": {category: record}, "mean": record}}}}. A record has
    `base`, `run` (AUROCs over the paired clips), `difference` (run minus base), `difference_ci95`, and for a category `z` and `p` of DeLong's
    test, for the mean `p` of the bootstrap; what is undefined is null, and `reasons` says why: a class of one clip cannot be resampled, so that
    neither its category nor a mean over that has an interval or a p.
    """
    base = next(iter(predictions))
    against = {}
    for name, table in predictions.items():
        if name == base:
            continue
        rows_A, rows_B = _common_rows(predictions[base], table)
        against[name] = {"n_common": len(rows_A), **{
            figure: _compare_figure(figure, predictions[base], table, runs[base], runs[name], rows_A, rows_B, seed) for figure in FIGURES}}
    return {"base": base, "seed": seed, "against": against}


def check_common(predictions: Mapping[str, Predictions]) -> None:
    """Raise ValueError where a run has no clip in common with the first: an id of each, and what would make ids equal."""
    base, *others = predictions
    for name in others:
        if not set(predictions[base].clip_ids).isdisjoint(predictions[name].clip_ids):
            continue
        ids = {run: predictions[run].clip_ids for run in (base, name)}
        cure = _what_parts(ids) or _what_parts({name: ids[name], base: ids[base]}) or "give files whose clip ids are the same"
        raise ValueError(f"no clip is common to {base} and {name}: {base} has {ids[base][0]!r:.80}, {name} has {ids[name][0]!r:.80}; {cure}")


def _what_parts(ids: Mapping[str, Sequence[str]]) -> str | None:
    """What to take off the second run's clip ids, where the first one's id stands within one of them."""
    (_, shorter), (name, longer) = ids.items()
    for clip_id in longer:
        before, found, after = clip_id.partition(shorter[0])
        if found:
            parts = [f"{part!r} at their {end}" for part, end in ((before, "beginning"), (after, "end")) if part]
            return f"the ids of {name} have {' and '.join(parts)} besides: take that off"
    return None


def _common_rows(base: Predictions, other: Predictions) -> tuple[np.ndarray, np.ndarray]:
    """Places of the clips that both have, in the order of the first file: two int64 arrays of one length."""
    if base.clip_ids == other.clip_ids:
        rows = np.arange(len(base))
        return rows, rows
    places = {clip_id: row for row, clip_id in enumerate(other.clip_ids)}
    pairs = [(row, places[clip_id]) for row, clip_id in enumerate(base.clip_ids) if clip_id in places]
    rows = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    return rows[:, 0], rows[:, 1]


def _ranked(figure: str, predictions: Predictions, threshold: float) -> np.ndarray:
    """What a figure ranks the clips by, float64 of length N, NaN where a clip has nothing: the score, or the hard verdict as 0 and 1."""
    if figure == "auroc":
        return predictions.scores_N
    anomalous_N, unparsed_N, judged_N = hard_verdicts(predictions, threshold)
    return np.where(judged_N, verdict_scores(predictions.labels_N, anomalous_N, unparsed_N), np.nan)


def _compare_figure(figure: str, base: Predictions, other: Predictions, base_scores: dict, other_scores: dict, rows_A: np.ndarray,
                    rows_B: np.ndarray, seed: int) -> dict:
    scores_A = _ranked(figure, base, base_scores["threshold"]["value"])[rows_A]
    scores_B = _ranked(figure, other, other_scores["threshold"]["value"])[rows_B]
    paired = ~np.isnan(scores_A) & ~np.isnan(scores_B)
    names, category_of = np.unique(np.array(base.categories)[rows_A], return_inverse=True)
    labels = base.labels_N[rows_A]
    per_category, replicates = {}, {}
    for index, name in enumerate(names.tolist()):
        chosen = (category_of == index) & paired
        per_category[name], replicates[name] = _compare_category(labels[chosen], scores_A[chosen], scores_B[chosen], stable_int(seed, name))
    return {"n_left_out": int((~paired).sum()), "per_category": per_category, "mean": _mean(per_category, replicates)}


def _compare_category(labels_N, scores_A_N, scores_B_N, seed: int) -> tuple[dict, np.ndarray | None]:
    """The record of one category and its bootstrap replicates; these are None where a class is missing."""
    areas = auroc(labels_N, scores_A_N), auroc(labels_N, scores_B_N)
    record = {"n": len(labels_N), "n_anomalous": int(labels_N.sum()), "base": areas[0].value, "run": areas[1].value}
    if areas[0].value is None:
        keys = ("base", "run", "difference", "difference_ci95", "z", "p")
        return {**record, **dict.fromkeys(keys), "reasons": dict.fromkeys(keys, areas[0].reason)}, None
    test = delong(labels_N, scores_A_N, scores_B_N)
    drawn = bootstrap_difference(labels_N, scores_A_N, scores_B_N, seed)
    reasons = {} if test.reason is None else {"z": test.reason, "p": test.reason}
    interval = list(interval95(drawn))
    if _has_single_clip(record):
        interval, reasons["difference_ci95"] = None, test.reason
    return {**record, "difference": test.difference, "difference_ci95": interval, "z": test.z, "p": test.p, "reasons": reasons}, drawn


def _has_single_clip(record: Mapping) -> bool:
    """Whether a class of a category has one clip alone, which every resample repeats."""
    return min(record["n_anomalous"], record["n"] - record["n_anomalous"]) == 1


def _mean(per_category: Mapping[str, dict], replicates: Mapping[str, np.ndarray | None]) -> dict:
    """The record of the mean over the categories that have a difference; the others are named in `left_out`."""
    defined = [name for name, drawn in replicates.items() if drawn is not None]
    record = {"n_categories": len(defined), "left_out": [name for name in per_category if name not in defined]}
    keys = ("base", "run", "difference")
    if not defined:
        reason = "undefined in every category"
        keys += ("difference_ci95", "p")
        return {**record, **dict.fromkeys(keys), "reasons": dict.fromkeys(keys, reason)}
    # Categories are resampled independently; a large one has fewer replicates, and the mean uses as many as all have.
    fewest = min(len(replicates[name]) for name in defined)
    drawn = np.mean([replicates[name][:fewest] for name in defined], axis=0)
    record |= {key: float(np.mean([per_category[name][key] for name in defined])) for key in keys}
    single = [name for name in defined if _has_single_clip(per_category[name])]
    reason = f"a class has one clip in {', '.join(single)}, which cannot be resampled" if single else None
    # Equal runs differ by 0 in every resample, and that is sure; any other difference that never changes is a matter of too few clips.
    if reason is None and np.ptp(drawn) < 1e-12 and abs(drawn[0]) > 1e-12:
        reason = "no variance: the difference is the same in every resample"
    if reason is not None:
        return {**record, "difference_ci95": None, "p": None, "reasons": dict.fromkeys(("difference_ci95", "p"), reason)}
    return {**record, "difference_ci95": list(interval95(drawn)), "p": bootstrap_p(drawn), "reasons": {}}


def named_by_variant(variants: Mapping[str, str | None]) -> dict[str, str]:
    """New names for runs: their variants, where each run's rows say one and no two say the same; else the names as they are."""
    said = list(variants.values())
    return dict(zip(variants, said)) if all(said) and len(set(said)) == len(said) else {name: name for name in variants}


def ablation_tables(comparison: dict, with_published: bool = True) -> list[TextTable]:
    """One table a figure: the base's AUROC, and of every other run its AUROC, the difference with its interval, and its p. with_published: the
    paper's means are named below runs of its variants."""
    base, against = comparison["base"], comparison["against"]
    tables = []
    for figure, title in FIGURES.items():
        categories = sorted({category for compared in against.values() for category in compared[figure]["per_category"]})
        header = ["category", "clips", base, *(text for name in against for text in (name, f"{name} − {base} [95 %]", "p"))]
        rows = []
        for category in categories:
            records = [compared[figure]["per_category"].get(category) for compared in against.values()]
            rows.append([category, _differing([record and f"{record['n']:,}" for record in records]),
                         _differing([record and number(record["base"]) for record in records]),
                         *(cell for record in records for cell in _cells(record))])
        means = [compared[figure]["mean"] for compared in against.values()]
        rows.append([f"mean of {_differing([str(mean['n_categories']) for mean in means])}", "", _differing([number(mean["base"]) for mean in means]),
                     *(cell for mean in means for cell in _cells(mean))])
        tables.append(TextTable(f"Compared with {base}: {title}", header, rows, _notes(comparison, figure, with_published),
                                frozenset({len(rows) - 1})))
    return tables


def number(value: float | None) -> str:
    """A figure to three places; a dash where there is none."""
    return UNDEFINED if value is None else f"{value:.3f}"


def _cells(record: dict | None) -> list[str]:
    """AUROC, difference with its interval, and p of one run in one row."""
    if record is None or record["difference"] is None:
        return [UNDEFINED] * 3
    interval = " [{:+.3f}, {:+.3f}]".format(*record["difference_ci95"]) if record["difference_ci95"] is not None else ""
    p = UNDEFINED if record["p"] is None else "< 0.001" if record["p"] < 0.001 else f"{record['p']:.3f}"
    return [number(record["run"]), f"{record['difference']:+.3f}{interval}", p]


def _differing(texts: list[str | None]) -> str:
    """One text where all are equal, else each of them: with other clips missing in each run, the base has an AUROC beside each."""
    return " / ".join(dict.fromkeys(text for text in texts if text is not None))


def _notes(comparison: dict, figure: str, with_published: bool) -> list[str]:
    base, against = comparison["base"], comparison["against"]
    notes = ["paired over the clips that both runs have; intervals: bootstrap within each class, the same resampled clips for both, seed "
             f"{comparison['seed']}; p of a category: DeLong's test, of the mean: bootstrap over independent categories; two-sided, not corrected "
             "for the number of categories"]
    for name, compared in against.items():
        part = compared[figure]
        if part["n_left_out"]:
            notes.append(f"{name}: {part['n_left_out']} of the {compared['n_common']} common clips lack a score in one of the two and are left out")
        if part["mean"]["left_out"]:
            notes.append(f"{name}: no difference in {', '.join(part['mean']['left_out'])}, which the mean leaves out")
        if part["mean"]["difference"] is not None and part["mean"]["p"] is None:
            notes.append(f"{name}: the mean has neither interval nor p ({part['mean']['reasons']['p']})")
        without_p: dict[str, list[str]] = {}
        for category, record in part["per_category"].items():
            if record["difference"] is not None and record["p"] is None:
                without_p.setdefault(record["reasons"]["p"], []).append(category)
        notes += [f"{name}: no p in {', '.join(categories)} ({reason})" for reason, categories in without_p.items()]
    if with_published and figure == "auroc_verdict" and {base, *against} & {variant.value for variant in Variant}:
        table = published()["table3"]
        printed = ", ".join(f"{variant} {value:.3f}" for variant, value in table["printed_mean"].items())
        notes.append(f"{table['source']}, prints as means over 21 categories: {printed} (its split is not published)")
    return notes
