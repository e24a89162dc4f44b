"""What can be said of a run folder or a packed folder in no time, before anything heavy is imported: whether it is one, and what its training
said of the verdict. No torch."""

from __future__ import annotations

from pathlib import Path

from vlmphys.files import logged_rows

NEAR_CHANCE = 0.6     # of a verdict_loss whose chance is ln 2 = 0.693
CHANCE_AUROC = 0.5


def one_below(folder: Path, mark: str) -> str:
    """` (did you mean runs/q/multi_turn?)` where folders right below `folder` hold a `mark`, else nothing: for the message that refuses it."""
    found = sorted(str(path).removesuffix(f"/{mark}") for path in Path(folder).glob(f"*/{mark}"))
    return f" (did you mean {' or '.join(found)}?)" if found else ""


def is_finished(folder: str | Path) -> bool:
    """Whether a run has written its model; the folder gets its name only when it is whole."""
    return (Path(folder) / "model").is_dir()


def check_run(folder: str | Path) -> None:
    """Raise ValueError where a folder is no run folder, or its training has not ended."""
    folder = Path(folder)
    if not (folder / "config.yaml").is_file():
        raise ValueError(f"{folder} is no run folder: it has no config.yaml{one_below(folder, 'config.yaml')}; give the --out of launch/train.py")
    if not is_finished(folder):
        raise ValueError(f"{folder} has no model yet: its training has not ended; run launch/train.py with --resume auto")


def check_packed(folder: str | Path) -> None:
    """Raise ValueError where there is no such folder, or data_prep/pack.py wrote one of those right below it and not this."""
    folder, mark = Path(folder), "frames/manifest.json"
    if not folder.is_dir():
        raise ValueError(f"packed data {folder}: no such folder; write it with data_prep/pack.py")
    if not (folder / mark).exists() and (below := one_below(folder, mark)):
        raise ValueError(f"{folder} is no packed data: it has no {mark}{below}; give the --out of data_prep/pack.py")


def chance_text(verdict_loss: float | None) -> str | None:
    """`near chance (verdict_loss 0.71; ...)` for a verdict that was not learnt, None for another one; nats a clip."""
    if verdict_loss is None or verdict_loss < NEAR_CHANCE:
        return None
    return f"{'near' if verdict_loss < 0.8 else 'worse than'} chance (verdict_loss {verdict_loss:.2f}; ln 2 = 0.693 is chance)"


def chance_note(run: str | Path) -> str | None:
    """A sentence where the training of a run ended with a verdict near chance, or its last validation with an AUROC of chance or below."""
    trained, validated = (next(iter(logged_rows(Path(run) / name)[-1:]), {}) for name in ("metrics.jsonl", "evaluations.jsonl"))
    said = chance_text(trained.get("verdict_loss"))
    auroc = validated.get("auroc")
    if said is None and auroc is not None and auroc <= CHANCE_AUROC:
        said = f"no better than chance (AUROC {auroc:.3f} in its last validation)"
    return None if said is None else f"the training of {run} ended with a verdict {said}: its verdicts may mean nothing; train longer"
