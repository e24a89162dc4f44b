"""The table of scores, for the terminal, as Markdown, LaTeX and CSV: one row a category, one group of columns a run. No torch."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass, replace

from rich.console import Console
from rich.table import Table
from rich.text import Text

from vlmphys.scoring import TEXT_FIGURES
from vlmphys.text_tables import TextTable

COLUMNS = {"auroc": "AUROC", "auroc_verdict": "balanced acc.", "tpr": "TPR", "fpr": "FPR", "parse_rate": "read", "ap": "AP", "accuracy": "acc."}
COLUMN_HELP = {
    "auroc": "area under the ROC curve of the continuous score",
    "auroc_verdict": "balanced accuracy of the hard verdict, (TPR + TNR) / 2, which the multi-turn paper calls AUROC",
    "tpr": "share of the anomalous clips whose hard verdict is anomalous",
    "fpr": "share of the normal clips that the hard verdict does not clear: called anomalous, or not to be read",
    "parse_rate": "share of the verdicts that could be read",
    "ap": "average precision, positive class: anomalous",
    "accuracy": "share of clips on the right side of the threshold",
}
RATES = ("tpr", "fpr", "parse_rate")
UNDEFINED = "–"
WIDE = 125        # columns of a terminal that has room for every figure
# Of a terminal, for several runs with their intervals: before the first run, and a run.
FIRST_COLUMNS, RUN_COLUMNS = 40, 44
COMPARED = ("auroc", "auroc_verdict")
PHYS_AD_MEANS = {"average_21": 21, "average_22": 22}    # key of the record -> its number of categories


@dataclass(frozen=True)
class TableRow:
    """A category, or a mean; `records` holds each run's record by its name, None where the run has none. `counted`: the columns cover
    different numbers of categories, so that each figure says its own."""

    label: str
    is_mean: bool
    records: dict[str, dict | None]
    counted: bool = False

    def count(self, key: str) -> str:
        """`n` or `n_anomalous`, of the runs that have the row; "a / b" where they differ."""
        counts = dict.fromkeys(record[key] for record in self.records.values() if record is not None)
        return " / ".join(f"{count:,}" for count in counts)

    def text(self, name: str, key: str, with_interval: bool = False) -> str:
        """The cell of one run and figure: "0.812", or "0.812 (1 of 2)" where a mean does not cover the same categories everywhere."""
        record = self.records[name]
        text = figure_text(record, key, with_interval)
        return f"{text} ({covered(record, key)} of {record['n_categories']})" if self.counted and text != UNDEFINED else text


def columns_of(runs: Mapping[str, dict], rates: bool = True) -> dict[str, str]:
    """The columns of these runs, key -> title: all of COLUMNS but the parse rate where nothing was parsed, and without the hard verdict's
    rates where there is no room for them (`rates`)."""
    parsed = any(record.get("parse_rate") is not None for scores in runs.values() for record in scores["per_category"].values())
    return {key: title for key, title in COLUMNS.items() if (rates or key not in RATES) and (parsed or key != "parse_rate")}


def covered(mean: dict, key: str) -> int:
    """Over how many categories a mean's figure is taken; 0 where it is undefined."""
    return mean["n_categories"] - len(mean.get("left_out", {}).get(key, ())) if mean[key] is not None else 0


def table_rows(runs: Mapping[str, dict]) -> list[TableRow]:
    """Categories in alphabetical order, then the means: over those present, and over 21 and 22 where a run has them all and more."""
    categories = sorted({name for scores in runs.values() for name in scores["per_category"]})
    rows = [TableRow(category, False, {name: scores["per_category"].get(category) for name, scores in runs.items()})
            for category in categories]
    # Runs over other categories get rows of their own: means over different sets must not stand side by side.
    for present in dict.fromkeys(tuple(scores["average"]["categories"]) for scores in runs.values()):
        rows.append(_mean_row(len(present), {
            name: scores["average"] if tuple(scores["average"]["categories"]) == present else None for name, scores in runs.items()}))
    for key, label in ((key, f"mean of the {number}") for key, number in PHYS_AD_MEANS.items()):
        shown = all(set(scores[key]["categories"]) == set(scores["average"]["categories"]) for scores in runs.values())
        records = {name: scores[key] if _has_a_mean(scores[key]) else None for name, scores in runs.items()}
        if not shown and any(records.values()):
            rows.append(TableRow(label, True, records))
    return rows


def _has_a_mean(record: dict) -> bool:
    """Whether a mean of Phys-AD's categories is there, of the score or, where a file holds verdicts alone, of these."""
    return record["auroc"] is not None or record["auroc_verdict"] is not None


def _mean_row(present: int, records: dict[str, dict | None]) -> TableRow:
    """The row of a mean over `present` categories; categories whose figure is undefined are not counted as if it covered them."""
    counts = {covered(record, key) for record in records.values() if record is not None for key in COLUMNS if record.get(key) is not None}
    if len(counts) > 1:
        return TableRow("mean", True, records, counted=True)
    count = counts.pop() if counts else 0
    return TableRow(f"mean of {present}" if count == present else f"mean of {count} of {present}", True, records)


def figure_text(record: dict | None, key: str, with_interval: bool = False) -> str:
    """A figure to three places, with its 95 % interval where asked for; a dash where it is undefined."""
    if record is None or record[key] is None:
        return UNDEFINED
    text = f"{record[key]:.3f}"
    if with_interval and key == "auroc" and record["auroc_ci95"] is not None:
        text += " [{:.3f}, {:.3f}]".format(*record["auroc_ci95"])
    return text


def notes(runs: Mapping[str, dict], warnings: bool = True) -> list[str]:
    """What a reader of the table must know: thresholds, the verdicts' source, split, warnings (unless left out), undefined means."""
    of_run: dict[str, list[str]] = {}
    for name, scores in runs.items():
        threshold = scores["threshold"]
        rule = f"{threshold['value']:g}, as given" if threshold["rule"] == "given" else threshold["rule"]
        protocol = f"; split protocol {scores['protocol']}" if scores["protocol"] else ""
        terms = f"accuracy at threshold {rule}; verdicts from the {scores['verdict_source']}{protocol}"
        found = scores["calibration"]
        error = (f"expected calibration error {found['ece']:.3f} over {found['n']:,} {'clip' if found['n'] == 1 else 'clips'} "
                 f"({found['source']})",) if found["ece"] is not None else ()
        for note in (terms, *error, *(scores["warnings"] if warnings else ())):
            of_run.setdefault(note, []).append(name)
    found = [note if len(names) == len(runs) else f"{', '.join(names)}: {note}" for note, names in of_run.items()]
    for key, number in PHYS_AD_MEANS.items():
        # With fewer categories nobody expects these means.
        if max(len(scores["per_category"]) for scores in runs.values()) < number:
            continue
        if not any(_has_a_mean(scores[key]) for scores in runs.values()):
            reasons = dict.fromkeys(scores[key]["reasons"]["auroc"] for scores in runs.values())
            found.append(f"mean of the {number} of Phys-AD undefined: {'; '.join(reasons)}")
    return found


def rich_table(runs: Mapping[str, dict], width: int = WIDE) -> Table:
    """The table for a terminal of `width` columns: a narrow one has no room for the rates."""
    table = Table(title="Anomaly detection by category", title_justify="left", header_style="bold", row_styles=("", "dim"))
    table.add_column("category", no_wrap=True)
    table.add_column("clips", justify="right", no_wrap=True)
    table.add_column("anom.", justify="right", no_wrap=True)
    alone = len(runs) == 1
    # Several runs must fit a terminal: the two figures that are compared with the paper; the files have all of them.
    keys = ["auroc", "auroc_verdict"]
    if alone:
        keys = list(columns_of(runs, rates=width >= WIDE))
    with_interval = alone or width >= FIRST_COLUMNS + RUN_COLUMNS * len(runs)
    for name in runs:
        for key in keys:
            title = COLUMNS[key] if alone else f"{name if key == keys[0] else ''}\n{COLUMNS[key]}"
            table.add_column(Text(title), justify="right", no_wrap=True)
    rows = table_rows(runs)
    for number, row in enumerate(rows):
        cells = [row.text(name, key, with_interval) for name in runs for key in keys]
        next_is_mean = number + 1 < len(rows) and rows[number + 1].is_mean
        table.add_row(Text(row.label), row.count("n"), row.count("n_anomalous"), *cells,
                      style="bold" if row.is_mean else None, end_section=next_is_mean and not row.is_mean)
    return table


def console_text(runs: Mapping[str, dict], width: int = 100) -> str:
    """The table and its notes as plain text."""
    stream = io.StringIO()
    print_scores(runs, Console(file=stream, width=width, color_system=None))
    return stream.getvalue()


def print_scores(runs: Mapping[str, dict], console: Console) -> None:
    """Print the table and its notes."""
    console.print(rich_table(runs, console.width))
    for note in notes(runs):
        console.print(Text(f"- {note}"), style="dim")


def text_table(runs: Mapping[str, dict]) -> TextTable:
    """The table with all its figures, and its notes."""
    alone = len(runs) == 1
    columns = columns_of(runs)
    header = ["category", "clips", "anomalous", *(title if alone else f"{name} {title}" for name in runs for title in columns.values())]
    rows = table_rows(runs)
    lines = [[row.label, row.count("n"), row.count("n_anomalous"), *(row.text(name, key, with_interval=True) for name in runs for key in columns)]
             for row in rows]
    explained = "; ".join(f"{title}: {COLUMN_HELP[key]}" for key, title in columns.items())
    return TextTable("Anomaly detection by category", header, lines,
                     [f"{explained}; in brackets the 95 % bootstrap interval", *notes(runs)],
                     frozenset(place for place, row in enumerate(rows) if row.is_mean))


def markdown_text(runs: Mapping[str, dict]) -> str:
    """The table and its notes as Markdown."""
    table = text_table(runs)
    bold = [[f"**{line[0]}**", *line[1:]] if place in table.means else line for place, line in enumerate(table.rows)]
    return replace(table, rows=bold).markdown()


def csv_text(runs: Mapping[str, dict], comparison: dict | None = None) -> str:
    """All figures for programs, unrounded: one row a run and category (or mean), with the interval's ends in columns of their own; an undefined
    figure is an empty field. `kind` is `category`, or the key of the mean in scores.json. With a `comparison` (of `compare_runs`) four columns more
    for each of its figures: a run's difference from the first one, the ends of its interval, and p."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    counts = ("n", "n_anomalous", "n_missing", "n_unparsed")
    others = [*(key for key in COLUMNS if key != "auroc"), *TEXT_FIGURES]
    differences = [f"{figure}_{part}" for figure in COMPARED for part in ("difference", "difference_ci95_low", "difference_ci95_high", "p")]
    writer.writerow(["run", "kind", "category", *counts, "auroc", "auroc_ci95_low", "auroc_ci95_high", *others, *(differences if comparison else ())])
    for name, scores in runs.items():
        records = [("category", category, record) for category, record in scores["per_category"].items()]
        records += [(key, "", scores[key]) for key in ("average", *PHYS_AD_MEANS)]
        for kind, category, record in records:
            low, high = record["auroc_ci95"] or (None, None)
            writer.writerow([name, kind, category, *(record.get(key) for key in counts), record["auroc"], low, high,
                             *(record.get(key) for key in others), *(_differences(comparison, name, kind, category) if comparison else ())])
    return stream.getvalue()


def _differences(comparison: dict, name: str, kind: str, category: str) -> list[float | None]:
    """The cells of one row of the CSV: None for the first run, and for means over Phys-AD's categories, which are not compared."""
    cells: list[float | None] = []
    for figure in COMPARED:
        compared = comparison["against"].get(name, {}).get(figure, {"per_category": {}, "mean": {}})
        record = compared["per_category"].get(category, {}) if kind == "category" else compared["mean"] if kind == "average" else {}
        low, high = record.get("difference_ci95") or (None, None)
        cells += [record.get("difference"), low, high, record.get("p")]
    return cells
