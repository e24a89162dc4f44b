"""What the quickstart learns, with its controls: three seeds, all variants, the untrained base, shuffled labels, wild appearance, a yardstick.

    python tests/bench/quality.py --out runs/quality --seeds 0,1,2

Every figure comes from the real commands' files under --out; an interrupted run goes on where it stopped.
The yardstick is a logistic regression on temporal statistics of the same frozen tower's features.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
VARIANTS = ("multi_turn", "single_turn", "no_physics")


def command(*words: object) -> None:
    """Run one of the project's commands from the repository's root; a failure ends the benchmark."""
    print("$", *words, flush=True)
    subprocess.run([str(word) for word in words], cwd=ROOT, check=True)


def quickstart(out: Path, seed: int, variants: str, *more: str) -> None:
    command("bash", "launch/quickstart.sh", "--out", out, "--seed", seed, "--variants", variants, *more)


def aurocs(scores: Path, variant: str | None = None) -> dict[str, float]:
    """Category -> AUROC from a scores.json; `variant` picks a run where it holds several."""
    document = json.loads(scores.read_text())
    if "runs" in document:
        names = [name for name in document["runs"] if variant and variant in name]
        assert len(names) == 1, (variant, list(document["runs"]))
        document = document["runs"][names[0]]
    return {category: row["auroc"] for category, row in document["per_category"].items()}


def score_predictions(predictions: Path, out: Path) -> dict[str, float]:
    command(sys.executable, "launch/score.py", "--predictions", predictions, "--out", out)
    return aurocs(out / "scores.json")


def untrained(out: Path, packed: Path) -> dict[str, float]:
    """The base as it ships, asked in the multi-turn dialogue."""
    command(sys.executable, "launch/predict.py", "--model", "tiny", "--variant", "multi_turn", "--data", packed, "--split", "test",
            "--explain", "none", "--out", out / "predictions.jsonl")
    return score_predictions(out / "predictions.jsonl", out / "scores")


def shuffled(out: Path, packed: Path, seed: int) -> dict[str, float]:
    """The same training on states permuted among the train clips of each category."""
    data = out / "packed"
    if not data.exists():
        out.mkdir(parents=True, exist_ok=True)
        partial = out / "packed.partial"
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(packed, partial)
        partial.rename(data)
    command(sys.executable, "data_prep/pack.py", "--only", "dialogues", "--model", "tiny", "--out", data, "--seed", seed,
            "--shuffle-labels", seed + 1)
    command("deepspeed", "--num_gpus", 1, "launch/train.py", "--config", "launch/recipes/quickstart.yaml", "--data", data,
            "--variant", "multi_turn", "--out", out / "run", "--set", f"seed={seed}")
    command(sys.executable, "launch/predict.py", "--run", out / "run", "--data", data, "--split", "test", "--explain", "none",
            "--out", out / "predictions.jsonl")
    return score_predictions(out / "predictions.jsonl", out / "scores")


def yardstick(packed_folder: Path) -> dict[str, float]:
    """Logistic regression, one a category, on mean, spread and steps over time of class token and mean patch of each frame."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from vlmphys.model import load_model
    from vlmphys.pretrain.tower import frame_features
    from vlmphys.records import Split
    from vlmphys.shards import open_packed

    packed = open_packed(packed_folder)
    tower = load_model("tiny").model.video_tower.eval()

    def side(split: Split):
        rows = [packed.frames.row(clip_id) for clip_id in packed.clip_ids(split)]
        tokens = frame_features(tower, np.stack([row.frames_THWC for row in rows])).float()
        frames = packed.frames.meta["frames"]
        tokens = tokens.view(len(rows), frames, -1, tokens.shape[-1])
        places = np.concatenate([tokens[:, :, 0].numpy(), tokens[:, :, 1:].mean(2).numpy()], -1)
        steps = np.diff(places, axis=1)
        statistics_ND = np.concatenate([places.mean(1), places.std(1), np.abs(steps).mean(1), steps.std(1), np.abs(steps).max(1),
                                        places[:, -1] - places[:, 0]], 1)
        return statistics_ND, np.array([row.category for row in rows]), np.array([row.label for row in rows])

    (train_x, train_c, train_y), (test_x, test_c, test_y) = side(Split.TRAIN), side(Split.TEST)
    result = {}
    for category in sorted(set(test_c)):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
        model.fit(train_x[train_c == category], train_y[train_c == category])
        result[category] = float(roc_auc_score(test_y[test_c == category], model.decision_function(test_x[test_c == category])))
    return result


def last_losses(metrics: Path, rows: int = 5) -> str:
    """Losses of each turn and of the verdict, mean of the last logged rows."""
    logged = [json.loads(line) for line in metrics.read_text().splitlines()][-rows:]
    names = [name for name in logged[-1] if name.startswith("loss") or name == "verdict_loss"]
    return "  ".join(f"{name} {np.mean([row[name] for row in logged if row.get(name) is not None]):.4f}" for name in names
                     if any(row.get(name) is not None for row in logged))


def show(title: str, rows: list[dict[str, float]]) -> None:
    """A table row: the median over seeds for each category, and the median, lowest and highest of the seeds' means."""
    categories = sorted(rows[0])
    medians = {category: statistics.median(row[category] for row in rows) for category in categories}
    means = [statistics.fmean(row.values()) for row in rows]
    cells = "  ".join(f"{category} {value:.3f}" for category, value in medians.items())
    print(f"{title:28s} mean {statistics.median(means):.3f} [{min(means):.3f}, {max(means):.3f}] over {len(rows)} seed(s)   {cells}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/quality"))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--controls", default="untrained,shuffled,wild", help="which of untrained, shuffled, wild to add; may be empty")
    parser.add_argument("--full-seeds", type=int, default=3, metavar="N",
                        help="the first N seeds train all three variants, the others multi_turn alone")
    options = parser.parse_args()
    out, seeds, controls = options.out.resolve(), [int(seed) for seed in options.seeds.split(",")], options.controls.split(",")
    full = seeds[:max(1, options.full_seeds)]
    for seed in seeds:
        quickstart(out / f"seed_{seed}", seed, ",".join(VARIANTS if seed in full else VARIANTS[:1]))
    first = out / f"seed_{seeds[0]}"
    lines = [(f"{variant}, trained", [aurocs(out / f"seed_{seed}" / "scores" / "scores.json", variant)
                                      for seed in (seeds if variant == VARIANTS[0] else full)]) for variant in VARIANTS]
    if "untrained" in controls:
        lines.append(("untrained base", [untrained(out / f"untrained_{seed}", out / f"seed_{seed}" / "packed") for seed in seeds]))
    if "shuffled" in controls:
        lines.append(("trained on shuffled labels", [shuffled(out / "shuffled", first / "packed", seeds[0])]))
    if "wild" in controls:
        quickstart(out / "wild", seeds[0], "multi_turn", "--appearance", "wild")
        lines.append(("multi_turn, wild appearance", [aurocs(out / "wild" / "scores" / "scores.json", "multi_turn")]))
    lines.append(("yardstick: logistic", [yardstick(out / f"seed_{seed}" / "packed") for seed in seeds]))
    print("\nAUROC on held-out test clips")
    for title, rows in lines:
        show(title, rows)
    print("\nlosses at the end of training, seed", seeds[0])
    for variant in VARIANTS:
        print(f"{variant:12s} {last_losses(first / variant / 'metrics.jsonl')}")


if __name__ == "__main__":
    main()
