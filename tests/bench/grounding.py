"""How often a model's own grounding answers are those of the prior, and what they do to AUROC.

    python launch/predict.py --run RUN --data packed --out p.jsonl --ground prior generate
    python tests/bench/grounding.py --prior p.prior.jsonl --generate p.generate.jsonl [--sbert minilm]

For each category and all together: the share of clips whose written answer is the prior's word for word, for each answer before the verdict;
with --sbert the mean cosine of their sentence embeddings; AUROC of both files on the clips that are in both, and the difference of their means.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path

import numpy as np
from rich.console import Console

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
PARTS = ("component", "dynamic", "motion")


def rows_of(path: Path, grounding: str) -> dict[str, dict]:
    """The rows by clip id. Raises SystemExit for rows of another grounding."""
    rows = {row["clip_id"]: row for row in map(json.loads, path.read_text(encoding="utf-8").splitlines())}
    others = {row.get("grounding") for row in rows.values()} - {grounding}
    if others or not rows:
        raise SystemExit(f"{path}: rows with grounding {grounding!r} are expected, it holds {sorted(map(str, others)) or 'none'}")
    return rows


def before_verdict(row: dict) -> list[str]:
    """The answers before the verdict; of a single-turn row, whose one answer ends with it, what stands before."""
    return row["answers"][:-1] or [row["answers"][0].partition("Verdict:")[0].strip()]


def figures(given: list[dict], written: list[dict], cosine) -> dict:
    """Of the same clips in both ways: exact matches and cosines by answer, AUROC of both."""
    from vlmphys.metrics import auroc
    pairs = [list(zip(before_verdict(one), before_verdict(other), strict=True)) for one, other in zip(given, written)]
    labels = [row["label"] for row in given]
    return {"n": len(given),
            "exact": [statistics.fmean(one == other for one, other in answers) for answers in zip(*pairs)],
            "cosine": [statistics.fmean(cosine(one, other) for one, other in answers) for answers in zip(*pairs)] if cosine else None,
            "auroc": [auroc(np.array(labels), np.array([row["score"] for row in rows])).value for rows in (given, written)]}


def cosines(texts: set[str], model: str):
    """The cosine of two of these texts."""
    from vlmphys.sentences import SentenceEncoder
    wanted = sorted(text for text in texts if text)
    vectors = dict(zip(wanted, SentenceEncoder(model).encode(wanted), strict=True))
    return lambda one, other: float(vectors[one] @ vectors[other]) if one and other else 0.0


def main() -> int:
    from vlmphys.text_tables import TextTable
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prior", type=Path, required=True, help="rows of predict.py --ground prior")
    parser.add_argument("--generate", type=Path, required=True, help="rows of predict.py --ground generate, of the same model")
    parser.add_argument("--sbert", help="sentence-transformers model: minilm, a folder, or a name of the hub")
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    options = parser.parse_args()
    given, written = rows_of(options.prior, "prior"), rows_of(options.generate, "generate")
    clips = sorted(given.keys() & written.keys())
    if not clips:
        raise SystemExit("the two files have no clip in common")
    texts = {text for rows in (given, written) for clip in clips for text in before_verdict(rows[clip])}
    cosine = cosines(texts, options.sbert) if options.sbert else None
    categories = sorted({given[clip]["category"] for clip in clips})
    of_clips = {category: [clip for clip in clips if given[clip]["category"] == category] for category in categories}
    found = {name: figures([given[clip] for clip in chosen], [written[clip] for clip in chosen], cosine)
             for name, chosen in (*of_clips.items(), ("all clips", clips))}
    parts = PARTS if len(found["all clips"]["exact"]) == len(PARTS) else ("answer",)
    # The paper's mean is over categories; one AUROC over all clips would compare scores of different mechanisms.
    means = [[found[name]["auroc"][side] for name in categories if None not in found[name]["auroc"]] for side in (0, 1)]
    found["all clips"]["auroc"] = [statistics.fmean(values) if values else None for values in means]
    header = ["category", "clips", *(f"{part} exact" for part in parts), *(f"{part} cosine" for part in parts if cosine),
              "AUROC prior", "AUROC generate", "difference"]
    rows = [[name, str(one["n"]), *(f"{value:.3f}" for value in [*one["exact"], *(one["cosine"] or [])]),
             *(["–"] * 3 if None in one["auroc"] else [*(f"{value:.3f}" for value in one["auroc"]), f"{one['auroc'][1] - one['auroc'][0]:+.3f}"])]
            for name, one in found.items()]
    TextTable("Grounding answers of the model beside the prior's", header, rows, ["AUROC of all clips: the mean over the categories that have one"],
              frozenset([len(rows) - 1])).show(Console(width=200))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
