"""The published tables, their means taken again from their rows, and runs of one's own beside them. No torch.

A published row and a run of ours are two experiments: other clips where the bench is simulated, another split in any case. Each row says what
its method was given, and by which figure it was measured.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np

from vlmphys.text_tables import TextTable

PUBLISHED_FILE = Path(__file__).parent / "published_tables.json"
# Tables with a row a category; table 5 of Phys-AD has a row a method, and no rows that its means could be taken from.
BY_CATEGORY = ("table1", "table2", "table3", "physad_table4_auroc")
DIGITS = 3       # of the printed means
# The multi-turn paper's protocol parses a verdict; Phys-AD's ranks by a printed or computed score.
FIGURE_OF = {"table1": "hard verdict", "table3": "hard verdict", "physad_table4_auroc": "score"}
# Which columns stand beside a run (None: all). Of table 1 only "Ours": its other columns repeat zero-shot methods of Phys-AD's table 4.
SHOWN = {"physad_table4_auroc": None, "table1": ("Ours",), "table3": ("no_physics", "single_turn")}
OWN_FIGURES = {"auroc": "score", "auroc_verdict": "hard verdict"}
# Of the multi-turn paper's table 2: its columns' ends and the runs' own keys.
TEXT_COLUMNS = {"SBERT": "sbert", "LLM": "llm"}
UNDEFINED = "–"
BY_CATEGORY_TITLE = "Published AUROC by category"


@cache
def published() -> dict:
    """The published tables by name: `source`, `metric`, `supervision` by method, `rows`, and, where rows are categories, `printed_mean` and
    `recomputed_mean` (to five places)."""
    return json.loads(PUBLISHED_FILE.read_text(encoding="utf-8"))


def mean_over(rows: Mapping[str, Mapping[str, float]], column: str, categories=None) -> float | None:
    """The mean of one column over the rows (of `categories`, those of them that are there); None where there is none."""
    values = [row[column] for name, row in rows.items() if categories is None or name in categories]
    return float(np.mean(values)) if values else None


def recomputed_means(table: str) -> dict[str, float]:
    """The mean of each column over all rows of a published table."""
    source = published()[table]
    return {column: mean_over(source["rows"], column) for column in source["printed_mean"]}


def differing_means(table: str) -> dict[str, dict[str, float]]:
    """Columns whose printed mean is not that of their rows, rounded: column -> {"printed", "recomputed"}."""
    printed = published()[table]["printed_mean"]
    # Half a unit of the last printed place, either way of rounding a tie.
    return {column: {"printed": printed[column], "recomputed": value} for column, value in recomputed_means(table).items()
            if abs(value - printed[column]) > 0.5 * 10 ** -DIGITS + 1e-9}


def difference_notes(tables: Sequence[str] = BY_CATEGORY) -> list[str]:
    """A sentence for each of these published tables whose printed means do not follow from its rows."""
    notes = []
    for table in tables:
        if differs := differing_means(table):
            named = ", ".join(f"{column} printed {pair['printed']:.3f}, recomputed {pair['recomputed']:.3f}" for column, pair in differs.items())
            notes.append(f"{published()[table]['source']}: the mean over its {len(published()[table]['rows'])} rows is not the printed one: {named}")
    return notes


def shared_categories(runs: Mapping[str, dict]) -> list[str]:
    """The categories that every run and Phys-AD's table 4 have, sorted."""
    known = set(published()["physad_table4_auroc"]["rows"])
    return sorted(known.intersection(*(scores["per_category"] for scores in runs.values())))


def published_record(runs: Mapping[str, dict]) -> dict | None:
    """What scores.json says of the published tables: for each its means, printed and recomputed, its levels of supervision, and where the two
    means differ; and the means over the categories that the runs have too. None where they share no category."""
    shared = shared_categories(runs)
    if not shared:
        return None
    tables = {}
    for name in BY_CATEGORY:
        source = published()[name]
        columns = source["printed_mean"]
        tables[name] = {
            "source": source["source"], "metric": source["metric"], "supervision": source["supervision"], "n_categories": len(source["rows"]),
            "printed_mean": columns, "recomputed_mean": recomputed_means(name), "differs": differing_means(name),
            "mean_over_shared": {column: mean_over(source["rows"], column, shared) for column in columns}}
    return {"shared_categories": shared, "tables": tables}


def beside_table(runs: Mapping[str, dict]) -> TextTable | None:
    """The runs beside the published methods, over the categories that they share; None where there is none."""
    shared = shared_categories(runs)
    if not shared:
        return None
    rows = []
    for name, scores in runs.items():
        given = f"split protocol {scores['protocol']}" if scores["protocol"] else "not stated"
        for figure, word in OWN_FIGURES.items():
            values = [scores["per_category"][category][figure] for category in shared]
            defined = [value for value in values if value is not None]
            rows.append([f"{name} (this run)", given, word, _mean_text(float(np.mean(defined)) if defined else None, len(defined), len(shared)),
                         UNDEFINED, UNDEFINED])
    for table, columns in SHOWN.items():
        source = published()[table]
        known = [category for category in shared if category in source["rows"]]
        for column in columns or source["printed_mean"]:
            rows.append([f"{column}, {source['source']}", source["supervision"][column], FIGURE_OF[table],
                         _mean_text(mean_over(source["rows"], column, shared), len(known), len(shared)),
                         f"{mean_over(source['rows'], column):.4f} ({len(source['rows'])})", f"{source['printed_mean'][column]:.3f}"])
    header = ["method", "given of Phys-AD", "AUROC of the", f"mean over the {_count(shared)}", "mean over all its rows", "as printed"]
    notes = ["published rows are other experiments: other clips where the bench is simulated, and another split in any case; compare a level of "
             "supervision with its own kind", f"shared: {', '.join(shared)}; in brackets over how many categories, where it is not all of them",
             *difference_notes()]
    return TextTable("Beside the published methods", header, rows, notes, frozenset())


def published_rows_table(runs: Mapping[str, dict]) -> TextTable | None:
    """The published AUROCs of each shared category beside the runs' own; None where no category is shared."""
    shared = shared_categories(runs)
    if not shared:
        return None
    columns = [(table, column) for table, chosen in SHOWN.items() for column in chosen or published()[table]["printed_mean"]]
    header = ["category", *(f"{name}: {word} (this run)" for name in runs for word in OWN_FIGURES.values()),
              *(f"{column} ({published()[table]['supervision'][column]})" for table, column in columns)]
    rows = []
    for category in shared:
        own = [scores["per_category"][category][figure] for scores in runs.values() for figure in OWN_FIGURES]
        theirs = [published()[table]["rows"].get(category, {}).get(column) for table, column in columns]
        rows.append([category, *(UNDEFINED if value is None else f"{value:.3f}" for value in (*own, *theirs))])
    return TextTable(BY_CATEGORY_TITLE, header, rows, ["AUROC; which of them is of a hard verdict stands in the table above"])


def published_note(runs: Mapping[str, dict]) -> str | None:
    """The multi-turn paper's means of its variants in one sentence, for the terminal; None where the runs share no category with it."""
    source = published()["table3"]
    shared = [category for category in shared_categories(runs) if category in source["rows"]]
    if not shared:
        return None
    given = ", ".join(dict.fromkeys(source["supervision"].values()))
    means = ", ".join(f"{variant} {mean_over(source['rows'], variant, shared):.3f} ({printed:.3f})"
                      for variant, printed in source["printed_mean"].items())
    return (f"{source['source']}, AUROC of the {FIGURE_OF['table3']}, {given}: mean over the {_count(shared)} (as printed, over "
            f"{len(source['rows'])}): {means}; other clips than these; the report has all published rows")


def ablation_beside(runs: Mapping[str, dict]) -> TextTable | None:
    """The multi-turn paper's ablation (its table 3) with the runs of its variants beside it, by the hard verdict; None where no run is of one of
    them, or no category is shared."""
    source = published()["table3"]
    of_variant: dict[str, list[str]] = {variant: [] for variant in source["printed_mean"]}
    for name, scores in runs.items():
        variant = scores["variant"] or name
        if variant in of_variant:
            of_variant[variant].append(name)
    own = [(variant, name) for variant, names in of_variant.items() for name in names]
    shared = [category for category in shared_categories(runs) if category in source["rows"]]
    if not own or not shared:
        return None
    header, rows = ["category"], []
    columns = []     # (variant, run's name, or None for the paper's own)
    for variant, names in of_variant.items():
        columns += [*((variant, name) for name in names), (variant, None)]
        header += [*(name if name == variant else f"{name} ({variant})" for name in names), f"{variant}, paper"]
    values = [[source["rows"][category][variant] if name is None else runs[name]["per_category"][category]["auroc_verdict"] for category in shared]
              for variant, name in columns]
    rows += [[category, *map(_figure, row)] for category, row in zip(shared, zip(*values))]
    rows.append([f"mean of these {len(shared)}", *(_figure(None if None in column else float(np.mean(column))) for column in values)])
    rows.append([f"as printed, of {len(source['rows'])}",
                 *(_figure(source["printed_mean"][variant] if name is None else None) for variant, name in columns)])
    notes = [f"AUROC of the hard verdict, (TPR + TNR) / 2; paper: {source['source']}, {source['supervision']['multi_turn']}; its clips are others, "
             "and its split is not published"]
    return TextTable("The ablation beside the paper's", header, rows, notes, frozenset({len(rows) - 2, len(rows) - 1}))


def texts_beside(runs: Mapping[str, dict]) -> TextTable | None:
    """SBERT and LLM scores beside those of the multi-turn paper's table 2, over the shared categories; None where no run has them."""
    source = published()["table2"]
    shared = [category for category in shared_categories(runs) if category in source["rows"]]
    asked = [title for title, key in TEXT_COLUMNS.items() if any(scores["average"].get(key) is not None for scores in runs.values())]
    if not shared or not asked:
        return None
    header = ["category", *(f"{name}: {title} (this run)" for name in runs for title in asked)]
    methods = [column for column in source["printed_mean"] if column.rpartition(".")[2] in asked]
    header += [f"{column.replace('.', ': ')} ({source['supervision'][column]})" for column in methods]
    rows = []
    for category in shared:
        own = [scores["per_category"][category][TEXT_COLUMNS[title]] for scores in runs.values() for title in asked]
        rows.append([category, *map(_figure, own), *(_figure(source["rows"][category][column]) for column in methods)])
    means = []
    for scores in runs.values():
        for title in asked:
            values = [scores["per_category"][category][TEXT_COLUMNS[title]] for category in shared]
            means.append(_figure(None if None in values else float(np.mean(values))))
    rows.append([f"mean of these {len(shared)}", *means, *(_figure(mean_over(source["rows"], column, shared)) for column in methods)])
    printed = [_figure(source["printed_mean"][column]) for column in methods]
    rows.append([f"as printed, of {len(source['rows'])}", *([UNDEFINED] * len(means)), *printed])
    notes = [f"published: {source['source']}; neither its sentence model nor its judge's prompt is published, so that figures of this scorer are not "
             "on its scale", *difference_notes(("table2",))]
    return TextTable("Explanations beside the published ones", header, rows, notes, frozenset({len(rows) - 2, len(rows) - 1}))


def _count(shared: Sequence[str]) -> str:
    return "one shared category" if len(shared) == 1 else f"{len(shared)} shared categories"


def _figure(value: float | None) -> str:
    return UNDEFINED if value is None else f"{value:.3f}"


def _mean_text(value: float | None, count: int, of: int) -> str:
    return UNDEFINED if value is None else f"{value:.3f}" + (f" ({count})" if count != of else "")
