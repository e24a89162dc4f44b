"""The LLM score of predictions: a judge's grades for anomaly type and reasoning (multi-turn paper, its metrics), by category."""

from __future__ import annotations

from collections.abc import Mapping

from vlmphys.explanations import References, Spoken, collect
from vlmphys.judge import Judge, Question
from vlmphys.judge_replies import Reading
from vlmphys.metrics import Figure
from vlmphys.predictions import Predictions

NO_EXPLANATIONS = "the predictions hold no explanations of it (predict.py --explain all)"


def score_llm(predictions: Predictions, references: References, judge: Judge) -> dict:
    """{"judge", "per_category", "clips", "warnings"}: `llm` is the mean of `llm_type` and `llm_reasoning`, each the mean over graded clips.

    A clip whose reply is an error is left out and counted in `n_failed`; a category without a single grade is null with a reason.
    """
    found = collect(predictions, references)
    readings, record = judge.grade([Question("llm", spoken.category, spoken.state, tuple(references[spoken.category][spoken.state]), spoken.text)
                                    for spoken in found.spoken])
    by_category: dict[str, list[tuple[Spoken, Reading]]] = {category: [] for category in dict.fromkeys(predictions.categories)}
    for spoken, reading in zip(found.spoken, readings, strict=True):
        by_category[spoken.category].append((spoken, reading))
    per_category, clips = {}, {}
    for category, rows in by_category.items():
        graded = [reading.grades for _, reading in rows if reading.grades is not None]
        counts = {"n": len(rows), "n_failed": len(rows) - len(graded), "n_unexplained": found.unexplained[category],
                  "n_no_reference": found.no_reference[category], "n_empty": sum(not spoken.text for spoken, _ in rows)}
        if graded:
            kinds = [sum(grades[name] for grades in graded) / len(graded) for name in ("type", "reasoning")]
            figures = {"llm": sum(kinds) / 2, "llm_type": kinds[0], "llm_reasoning": kinds[1]}
        else:
            figures = {"llm": None, "llm_type": None, "llm_reasoning": None, "reason": _reason(counts)}
        per_category[category] = {**counts, **figures}
        clips.update({spoken.row: {"llm_type": reading.grades["type"], "llm_reasoning": reading.grades["reasoning"]} if reading.grades
                      else {"llm_problem": reading.problem} for spoken, reading in rows})
    return {"judge": record, "per_category": per_category, "clips": clips, "warnings": failure_warnings(record, "the LLM score")}


def _reason(counts: Mapping[str, int]) -> str:
    if counts["n_failed"]:
        return f"the judge gave no readable grade for any of its {counts['n_failed']} texts"
    return NO_EXPLANATIONS if counts["n_unexplained"] and not counts["n_no_reference"] else "no reference texts of its states"


def failure_warnings(record: Mapping, figure: str) -> list[str]:
    """What a reader of the figure must know of the judge, one sentence each."""
    found = []
    if record["n_failed"]:
        kinds = ", ".join(f"{count} {kind}" for kind, count in record["failures"].items())
        found.append(f"{record['n_failed']} of {record['n_texts']} texts have no grade and are left out of {figure} ({kinds})")
    if len(record["reply_models"]) > 1:
        found.append(f"{figure} mixes replies of several models: {', '.join(record['reply_models'])}")
    return found


def llm_figures(scored: Mapping) -> dict[str, dict[str, Figure]]:
    """`llm` by category, as scores.json holds it."""
    return {"llm": {category: Figure(record["llm"], record.get("reason")) for category, record in scored["per_category"].items()}}
