"""Tables 1 to 3 of the multi-turn paper (ICASSP 2026), in its form, with runs of one's own beside the published figures. No torch.

A row of the paper and a row of ours are two experiments: other clips where the bench is simulated, another split in any case (the paper
publishes none), and another metric where ours ranks by a continuous score. Each column therefore says its supervision and its metric.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from vlmphys.files import logged_rows, read_json
from vlmphys.published import difference_notes, published
from vlmphys.records import MAX_TURNS, Variant
from vlmphys.text_tables import TextTable

# What each method of table 1 was given of Phys-AD (CVPR 2025, section 5): nothing, or anomalous clips with their explanations.
SUPERVISION = published()["table1"]["supervision"]
FINE_TUNED = SUPERVISION["Ours"]
# The ablation's order in table 3.
VARIANTS = (Variant.NO_PHYSICS, Variant.SINGLE_TURN, Variant.MULTI_TURN)
METRICS = {"auroc_verdict": "verdict", "auroc": "score"}
METRIC_HELP = ("verdict: AUROC of the hard verdict, (TPR + TNR) / 2, as the published columns of this paper have it; "
               "score: AUROC of the continuous log-odds, not to be compared with the published columns")
MEAN = "mean"
LOSSES = ("loss", *(f"loss_turn_{turn}" for turn in range(1, MAX_TURNS + 1)), "verdict_loss")
LAST_ROWS = 5               # of metrics.jsonl, whose mean is the loss at the end
FIGURES = (*METRICS, "sbert", "llm")
SCORE_AGAIN = "score again with launch/score.py"


@dataclass(frozen=True)
class SeedResult:
    """What one seed gave: record of scores.json by variant and category, and the last losses by variant (of each model, where there are many)."""

    name: str
    records: dict[str, dict[str, dict]]
    losses: dict[str, dict[str, float]]
    protocols: frozenset[str]


def read_seed(folder: Path) -> SeedResult:
    """The results below one seed's folder, as launch/reproduce_paper.sh lays them: one scores.json, or one for each category's own model.

    Raises ValueError where there is none, for one that launch/score.py did not write, and where two of them score the same variant of the
    same category.
    """
    files = sorted(folder.glob("scores/scores.json")) or sorted(folder.glob("*/scores/scores.json"))
    if not files:
        raise ValueError(f"{folder} holds no scores/scores.json: let launch/reproduce_paper.sh finish this seed, or give its own folder")
    records: dict[str, dict[str, dict]] = {}
    losses: dict[str, list[dict[str, float]]] = {}
    protocols = set()
    for file in files:
        for scores in _runs_of(file):
            variant = str(scores.get("variant"))
            if variant not in [known.value for known in VARIANTS]:
                raise ValueError(f"{file}: a run's variant is {variant!r}, which the paper's tables do not have: score predictions of vlmphys")
            of_variant = records.setdefault(variant, {})
            if twice := sorted(of_variant.keys() & scores["per_category"].keys()):
                raise ValueError(f"{folder} holds two scores of {variant} on {twice[0]}, the second in {file}: keep one")
            of_variant.update(scores["per_category"])
            protocols.add(str(scores.get("protocol")))
            row = _last_losses(file.parent.parent / variant / "metrics.jsonl")
            losses.setdefault(variant, []).extend([row] if row else [])
    means = {variant: {name: statistics.fmean(row[name] for row in rows if name in row) for name in LOSSES if any(name in row for row in rows)}
             for variant, rows in losses.items()}
    return SeedResult(folder.name, records, means, frozenset(protocols))


def _runs_of(file: Path) -> list[dict]:
    """The scores of each run in a scores.json. Raises ValueError, naming the file and what it lacks."""
    document = read_json(file, SCORE_AGAIN)
    runs = document.get("runs", {"": document})
    if not isinstance(runs, dict) or not runs:
        raise ValueError(f"{file}: 'runs' must map each run's name to its scores; {SCORE_AGAIN}")
    for name, scores in runs.items():
        of_run = f"the run {name!r}" if name else "it"
        rows = scores.get("per_category") if isinstance(scores, dict) else None
        if not isinstance(rows, dict) or not all(isinstance(row, dict) for row in rows.values()):
            raise ValueError(f"{file}: {of_run} lacks 'per_category', the figures by category; {SCORE_AGAIN}")
        for category, row in rows.items():
            wrong = next((figure for figure in FIGURES if row.get(figure) is not None and not _is_number(row[figure])), None)
            if wrong or not isinstance(row.get("reasons", {}), dict):
                what = f"{wrong} of {category} is {row[wrong]!r}, no number" if wrong else f"reasons of {category} are no mapping"
                raise ValueError(f"{file}: {of_run}: {what}; {SCORE_AGAIN}")
    return list(runs.values())


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _last_losses(metrics: Path) -> dict[str, float]:
    """Means of the last logged losses of a run; nothing where it has no such file. Raises ValueError, naming the file, for a broken one."""
    rows = logged_rows(metrics)[-LAST_ROWS:]
    found = {name: [row[name] for row in rows if row.get(name) is not None] for name in LOSSES}
    for name, values in found.items():
        if wrong := [value for value in values if not _is_number(value)]:
            raise ValueError(f"{metrics}: {name} is {wrong[0]!r}, where a number is expected; train the run anew")
    return {name: statistics.fmean(values) for name, values in found.items() if values}


def categories_of(seeds: Iterable[SeedResult]) -> list[str]:
    """Every category that the paper or a seed has, sorted."""
    own = {category for seed in seeds for rows in seed.records.values() for category in rows}
    return sorted(own | published()["table1"]["rows"].keys())


def values_of(seeds: Iterable[SeedResult], variant: Variant, figure: str, category: str) -> list[float]:
    """A figure of one category, or of `mean` (over the seed's own categories, none left out), one value a seed; undefined ones are not there."""
    found = []
    for seed in seeds:
        rows = seed.records.get(variant.value, {})
        values = [row.get(figure) for row in rows.values()] if category == MEAN else [rows[category].get(figure)] if category in rows else []
        if values and None not in values:
            found.append(statistics.fmean(values))
    return found


def spread(values: list[float]) -> str:
    """Mean and sample standard deviation over seeds: "0.967 ± 0.004", without the second for one seed, a dash for none."""
    if not values:
        return "–"
    return f"{statistics.fmean(values):.3f}" + (f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else "")


def tables(seeds: list[SeedResult]) -> list[TextTable]:
    """The three tables and the losses. Raises ValueError for no seed at all, and for two of one folder name, which names the rows."""
    if not seeds:
        raise ValueError("no seed's folder was given: give those that launch/reproduce_paper.sh wrote, seed_0 and so on")
    names = [seed.name for seed in seeds]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"two of the seeds' folders are named {twice[0]!r}, which could not be told apart: rename one of them, or give it once")
    return [_detection(seeds), _texts(seeds), _ablation(seeds), _losses(seeds)]


def _published_cell(table: str, category: str, column: str) -> str:
    source = published()[table]
    row = source["printed_mean"] if category == MEAN else source["rows"].get(category)
    return f"{row[column]:.3f}" if row else "–"


def _rows(seeds: list[SeedResult], cells: Callable[[str], list[str]]) -> list[list[str]]:
    return [[category, *cells(category)] for category in (*categories_of(seeds), MEAN)]


def _shared_notes(seeds: list[SeedResult]) -> list[str]:
    own = sorted({category for seed in seeds for rows in seed.records.values() for category in rows})
    protocols = sorted(set().union(*(seed.protocols for seed in seeds)))
    over = f"{len(seeds)} seeds: mean ± standard deviation over the seeds" if len(seeds) > 1 else "one seed"
    return [f"columns of this run: {over}; split protocol {', '.join(protocols)}", *_partial_notes(seeds),
            f"row {MEAN}: this run's columns are over the {len(own)} categories that it has, the published ones as printed, over 21 "
            "(all of Phys-AD but toothpaste), except LAVAD, Video-ChatGPT and Video-LLaMA in table 1, whose printed means are those over 22"]


def _partial_notes(seeds: list[SeedResult]) -> list[str]:
    """Of each variant that some of the seeds have and others have not, a sentence that names those its figures are of."""
    having = {variant.value: [seed.name for seed in seeds if seed.records.get(variant.value)] for variant in VARIANTS}
    return [f"{variant}: figures of {', '.join(names)} alone" for variant, names in having.items() if 0 < len(names) < len(seeds)]


def _detection(seeds: list[SeedResult]) -> TextTable:
    methods = list(published()["table1"]["printed_mean"])
    header = ["category", *(f"{name} ({SUPERVISION[name]})" for name in methods),
              *(f"this run, {short} ({FINE_TUNED})" for short in METRICS.values())]
    rows = _rows(seeds, lambda category: [*(_published_cell("table1", category, name) for name in methods),
                                          *(spread(values_of(seeds, Variant.MULTI_TURN, figure, category)) for figure in METRICS)])
    return TextTable("Table 1: detection, AUROC", header, rows,
                     [METRIC_HELP, *_shared_notes(seeds)], frozenset({len(rows) - 1}))


def _texts(seeds: list[SeedResult]) -> TextTable:
    columns = list(published()["table2"]["printed_mean"])
    own = {"sbert": "SBERT", "llm": "LLM"}
    rows = _rows(seeds, lambda category: [*(_published_cell("table2", category, name) for name in columns),
                                          *(spread(values_of(seeds, Variant.MULTI_TURN, figure, category)) for figure in own)])
    records = [row for seed in seeds for row in seed.records.get(Variant.MULTI_TURN.value, {}).values()]
    reasons = {figure: sorted({str(row.get("reasons", {}).get(figure)) for row in records if row.get(figure) is None}) for figure in own}
    notes = [f"this run has no {own[figure]} in some categories, or in all: {'; '.join(found)}" for figure, found in reasons.items() if found]
    return TextTable("Table 2: explanation", ["category", *columns, *(f"this run, {name}" for name in own.values())], rows,
                     [*notes, *difference_notes(("table2",)), *_shared_notes(seeds)], frozenset({len(rows) - 1}))


def _ablation(seeds: list[SeedResult]) -> TextTable:
    header = ["category", *(f"{variant.value}, published" for variant in VARIANTS),
              *(f"{variant.value}, this run, {short}" for short in METRICS.values() for variant in VARIANTS)]
    rows = _rows(seeds, lambda category: [*(_published_cell("table3", category, variant.value) for variant in VARIANTS),
                                          *(spread(values_of(seeds, variant, figure, category)) for figure in METRICS for variant in VARIANTS)])
    return TextTable("Table 3: ablation of the physics, AUROC", header, rows, [METRIC_HELP, *_ordering(seeds), *_shared_notes(seeds)],
                     frozenset({len(rows) - 1}))


def _ordering(seeds: list[SeedResult]) -> list[str]:
    """Whether the paper's order (multi-turn, no physics, single turn: .967, .925, .787) is that of the runs, seed by seed."""
    order = (Variant.MULTI_TURN, Variant.NO_PHYSICS, Variant.SINGLE_TURN)
    said = []
    for figure, short in METRICS.items():
        complete = [means for means in ([values_of([seed], variant, figure, MEAN) for variant in order] for seed in seeds) if all(means)]
        if complete:
            kept = sum(first[0] > second[0] > third[0] for first, second, third in complete)
            said.append(f"the paper's order, multi_turn above no_physics above single_turn, holds in {kept} of {len(complete)} "
                        f"{'seed' if len(complete) == 1 else 'seeds'} by the mean of the columns '{short}'")
    return said


def _losses(seeds: list[SeedResult]) -> TextTable:
    names = [name for name in LOSSES if any(name in row for seed in seeds for row in seed.losses.values())]

    def cells(losses: Mapping[str, float]) -> list[str]:
        return [f"{losses[name]:.4f}" if name in losses else "–" for name in names]

    rows = [[f"{variant.value}, {seed.name}", *cells(seed.losses[variant.value])]
            for variant in VARIANTS for seed in seeds if seed.losses.get(variant.value)]
    return TextTable("Losses at the end of training", ["run", *names], rows,
                      [f"nats a token, over the last {LAST_ROWS} logged rows of metrics.jsonl; with a model a category, the mean over the models"])


def summary(seeds: list[SeedResult]) -> dict:
    """The figures behind the tables, for programs: by variant, figure and category, one value a seed."""
    return {"seeds": [seed.name for seed in seeds],
            "figures": {variant.value: {figure: {category: values_of(seeds, variant, figure, category) for category in (*categories_of(seeds), MEAN)}
                                        for figure in METRICS} for variant in VARIANTS},
            "losses": {seed.name: seed.losses for seed in seeds}}
