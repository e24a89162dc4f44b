"""Validation while training: the log-odds of each val clip by teacher forcing, AUROC by category, the best step, and when to stop.

What decides (the best step, the number of validations since) follows from the rows of evaluations.jsonl alone, and these are cut back
to the checkpoint that a run resumes from: a resumed run decides as an uninterrupted one. No clip of the test split is read.
Shape suffixes: C clips, B rows of a batch (two a clip), L positions, N supervised positions.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from vlmphys import checkpoint, metrics
from vlmphys.batches import Batch, deal
from vlmphys.config import TrainConfig
from vlmphys.dialogue import verdict_continuations
from vlmphys.files import json_bytes, write_atomic
from vlmphys.model import ModelFacts, load_tokenizer
from vlmphys.records import Split, Variant, Verdict
from vlmphys.shards import Packed
from vlmphys.tracking import Tracker, keep_rows, say
from vlmphys.world import Agreed, World

EVALUATIONS, BEST = "evaluations.jsonl", "best.json"
CHANCE = 0.5        # AUROC of a verdict that knows nothing
VERDICTS = (Verdict.NORMAL, Verdict.ANOMALOUS)      # the two rows of a clip, in the order of the labels 0 and 1
NAMED_AT_MOST = 5


@dataclass(frozen=True)
class ValClip:
    """A clip of the val split; label 0 is normal, 1 anomalous."""

    clip_id: str
    category: str
    label: int


def check_val(config: TrainConfig, packed: Packed) -> list[ValClip]:
    """The val clips, sorted by id; none without `eval_steps`. Raises ValueError where they cannot give an AUROC."""
    if not config.eval_steps:
        return []
    rows = [packed.frames.row(clip_id) for clip_id in packed.clip_ids(Split.VAL)]
    clips = [ValClip(row.clip_id, row.category, int(row.label)) for row in rows]
    cure = ("hold more out with data_prep/split.py --val-share (0.1 by default; protocol 'unsupervised' holds out normal clips alone) and "
            "pack again, or set eval_steps=0")
    if not clips:
        raise ValueError(f"eval_steps is {config.eval_steps}, but {config.data} holds no clip of the val split: {cure}")
    counts = {category: [sum(clip.category == category and clip.label == label for clip in clips) for label in (0, 1)]
              for category in sorted({clip.category for clip in clips})}
    if not any(normal and anomalous for normal, anomalous in counts.values()):
        listed = [f"{category} {normal} + {anomalous}" for category, (normal, anomalous) in counts.items()]
        more = f" and {len(listed) - NAMED_AT_MOST} more" if len(listed) > NAMED_AT_MOST else ""
        raise ValueError(f"eval_steps is {config.eval_steps}, but no category of the val split of {config.data} has normal and anomalous "
                         f"clips ({', '.join(listed[:NAMED_AT_MOST])}{more}): {cure}")
    return clips


class Validator:
    """Runs the validations of a run and remembers which step was best. Every rank holds one, and all of them decide alike.

    `first_step` is the number of optimizer steps done when this process begins: rows beyond it are dropped, those up to it are taken
    as validations that were done. Raises ValueError where one of these is missing.
    """

    def __init__(self, config: TrainConfig, packed: Packed, facts: ModelFacts, world: World, first_step: int, total_steps: int,
                 steps_per_epoch: int):
        self.config, self.packed, self.facts, self.world = config, packed, facts, world
        self.total_steps, self.steps_per_epoch = total_steps, steps_per_epoch
        self.run_folder = Path(config.out)
        self.clips = check_val(config, packed)
        self.continuations = verdict_continuations(load_tokenizer(config.model)) if self.clips else {}
        self.best_step: int | None = None
        self.best_auroc: float | None = None
        self.best_loss: float | None = None     # the verdict's, at the best step
        self.lowest_loss = math.inf             # the verdict's, of all validations
        self.without_gain = 0       # validations in a row that count for early stopping
        for row in self._history(first_step):
            self._take_in(row["step"], row["auroc"], row["verdict_loss"])
        if self.world.is_first and self.clips:
            self._write_best()
        self._check_best_is_there(first_step)

    def due(self, step: int) -> bool:
        """Whether a validation follows optimizer step number `step` (counted from 1): every `eval_steps`, and after the last."""
        return bool(self.clips) and (step % self.config.eval_steps == 0 or step == self.total_steps)

    @property
    def stopped(self) -> bool:
        """Whether `early_stopping_patience` validations in a row have brought neither a better step nor a lower verdict loss, after one whose
        AUROC was above chance."""
        return 0 < self.config.early_stopping_patience <= self.without_gain

    def why_stopped(self, step: int) -> str:
        """The end of a run that `stopped`, in one line."""
        return (f"stopped early after step {step} of {self.total_steps}: {self.without_gain} validation(s) in a row brought neither a better "
                f"AUROC than {self.best_auroc:.4f} of step {self.best_step} nor a lower verdict loss (early_stopping_patience)")

    @property
    def spare(self) -> set[int]:
        """The steps whose checkpoints the rotation leaves alone."""
        return set() if self.best_step is None else {self.best_step}

    def keeps(self, step: int) -> bool:
        """Whether this step is the best so far and must be kept as a checkpoint: not where checkpoints are switched off and nothing
        will be restored, and not after the last step, whose weights become the run's model anyway."""
        return step == self.best_step and step < self.total_steps and bool(self.config.save_steps or self.config.load_best_model_at_end)

    def run(self, engine, step: int, tracker: Tracker | None = None) -> dict[str, Any]:
        """Validate after optimizer step number `step`, append the row to evaluations.jsonl and show it. Every rank must call it.

        A row: step, epoch, auroc (mean over the categories that hold both classes), per_category (null with its entry in `reasons` where
        one class is missing), verdict_loss (nats a clip; chance is ln 2), log_odds_accuracy (by their sign), clips, seconds, best_step,
        best_auroc, without_gain (what `_take_in` counts). Raises FloatingPointError, naming step and clips, for scores that are not finite.
        """
        started = time.monotonic()
        nll_C2 = self.measure(engine)
        finite_C = np.isfinite(nll_C2).all(axis=1)
        if not finite_C.all():
            wrong = [clip.clip_id for clip, finite in zip(self.clips, finite_C) if not finite]
            raise FloatingPointError(f"the validation after step {step} gave scores that are not finite; nothing was saved since the last "
                                     f"checkpoint. Clips of the batches concerned: {', '.join(wrong)}")
        figures = figures_of(self.clips, nll_C2)
        self._take_in(step, figures["auroc"], figures["verdict_loss"])
        row = {"step": step, "epoch": round(step / self.steps_per_epoch, 4), **figures, "seconds": round(time.monotonic() - started, 3),
               "best_step": self.best_step, "best_auroc": self.best_auroc, "without_gain": self.without_gain}
        if self.world.is_first:
            with open(self.run_folder / EVALUATIONS, "a", encoding="utf-8") as rows:
                rows.write(json.dumps(row) + "\n")
                rows.flush()
                os.fsync(rows.fileno())     # before the checkpoint of this step, which must not know of more than this file does
            self._write_best()
        if tracker:
            for tag, value in scalars(row).items():
                tracker.board.add_scalar(tag, value, step)
            say(tracker.console, sentence(row))
        return row

    def measure(self, engine) -> np.ndarray:
        """Negative log-likelihoods of both verdicts' tokens, nats, of `clips`: C x 2, float64, on every rank, which must all call it."""
        nll_C2 = torch.zeros(len(self.clips), 2, dtype=torch.float64)
        place = {clip.clip_id: index for index, clip in enumerate(self.clips)}
        hands = deal([clip.clip_id for clip in self.clips], self.world.rank, self.world.size, self.config.per_device_eval_batch_size)
        with exact_head(engine.module.network):
            for hand in hands:
                # A rank that has nothing left computes the first clip again for nobody: a forward pass may be a collective call.
                batch = verdict_batch(self.packed, hand or [self.clips[0].clip_id], Variant(self.config.variant), self.continuations,
                                      self.facts.pad_token_id)
                *_, nll_B = engine.evaluate(batch.to(self.world.device))
                if hand:
                    nll_C2[[place[clip_id] for clip_id in hand]] = nll_B.double().cpu().view(-1, 2)
        return self.world.sum(nll_C2).numpy()

    def restore_best(self, engine, step: int, identity: Mapping[str, str]) -> int:
        """With `load_best_model_at_end`, put the best step's weights into the engine. Returns the step whose weights it holds.

        `identity`: this run's, as `checkpoint.restore` wants it. Every rank must call it.
        """
        if not self.config.load_best_model_at_end or self.best_step in (None, step):
            return step
        checkpoint.restore(engine, self.run_folder, self.best_step, identity)
        return self.best_step

    def _take_in(self, step: int, auroc: float, loss: float) -> None:
        """Count a validation. The best step has the highest AUROC, of equals the lowest verdict loss, then it is the earliest.

        Over few clips an AUROC takes few values and says little between its jumps: a validation counts for early stopping only where the
        verdict's loss is no new low either, and not before some AUROC was above chance.
        """
        gain = loss < self.lowest_loss
        self.lowest_loss = min(loss, self.lowest_loss)
        if self.best_step is None or (auroc, -loss) > (self.best_auroc, -self.best_loss):
            self.best_step, self.best_auroc, self.best_loss, gain = step, auroc, loss, True
        self.without_gain = 0 if gain or self.best_auroc <= CHANCE else self.without_gain + 1

    def _history(self, first_step: int) -> list[dict[str, Any]]:
        """The rows up to `first_step`, as the first rank reads them; the others take its word."""
        if not self.clips:
            return []
        lines: list[str] = []
        path = self.run_folder / EVALUATIONS
        if self.world.is_first and path.is_file():
            keep_rows(path, first_step)
            lines = path.read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in self.world.gather_texts(lines)]
        done = [row["step"] for row in rows]
        expected = [step for step in range(1, first_step + 1) if self.due(step)]
        if done != expected:
            raise Agreed(f"{path} holds the validations of the steps {done}, but the checkpoint of step {first_step} came after those "
                         f"of {expected}: put the file back, or remove the run folder to train from the start")
        return rows

    def _write_best(self) -> None:
        path = self.run_folder / BEST
        if self.best_step is None:
            path.unlink(missing_ok=True)
        else:
            write_atomic(path, json_bytes({"step": self.best_step, "auroc": self.best_auroc, "verdict_loss": self.best_loss}))

    def _check_best_is_there(self, first_step: int) -> None:
        """A best checkpoint that someone removed is missed now, not after days of training."""
        if not self.config.load_best_model_at_end or self.best_step in (None, self.total_steps):
            return
        folder = checkpoint.folder_of(self.run_folder, self.best_step)
        gone = self.world.is_first and self.best_step not in checkpoint.complete(self.run_folder)
        self.world.agree([f"{folder}, the best checkpoint up to step {first_step}, is gone: put it back for load_best_model_at_end, or "
                          "remove the run folder to train from the start"] if gone else [])


def verdict_batch(packed: Packed, clip_ids: Sequence[str], variant: Variant, continuations: Mapping[Verdict, Sequence[int]],
                  pad_token_id: int) -> Batch:
    """Two rows a clip, one after the other: its dialogue up to the verdict, then the tokens of Normal, or those of Anomalous.

    Only these tokens are supervised. Two rows serve verdicts of any number of tokens; the tower runs on both, which is about
    4 % of the work of the 7B model.
    """
    rows, keep, target, turn, verdict_row = [], [], [], [], []
    for clip_id in clip_ids:
        dialogue = packed.dialogues.row(clip_id, variant)
        start = dialogue.verdict_span[0]
        for verdict in VERDICTS:
            tokens = np.asarray(continuations[verdict], dtype=np.int64)
            rows.append(np.concatenate([np.asarray(dialogue.input_ids[:start], dtype=np.int64), tokens]))
            keep.append(start - 1 + np.arange(len(tokens)))
            target.append(tokens)
            turn.append(np.full(len(tokens), int(dialogue.turn[start]) - 1))
            verdict_row.append(np.full(len(tokens), len(rows) - 1))
    lengths = [len(row) for row in rows]
    ids_BL = np.full((len(rows), max(lengths)), pad_token_id, dtype=np.int64)
    for index, row in enumerate(rows):
        ids_BL[index, :len(row)] = row
        keep[index] = keep[index] + index * ids_BL.shape[1]
    video = packed.video(clip_ids).repeat(len(VERDICTS), axis=0)
    keep_N, target_N, turn_N, verdict_N = (torch.from_numpy(np.concatenate(part).astype(np.int64)) for part in
                                           (keep, target, turn, verdict_row))
    return Batch(torch.from_numpy(ids_BL), torch.from_numpy(video), keep_N, target_N, turn_N, verdict_N,
                 tuple(clip_id for clip_id in clip_ids for _ in VERDICTS), sum(lengths), False)


def figures_of(clips: Sequence[ValClip], nll_C2: np.ndarray) -> dict[str, Any]:
    """The figures of a validation from both verdicts' negative log-likelihoods, C x 2; at least one category has both classes."""
    labels_C = np.array([clip.label for clip in clips])
    scores_C = nll_C2[:, 0] - nll_C2[:, 1]      # log-odds of Anomalous over Normal
    per_category, reasons = {}, {}
    for category in sorted({clip.category for clip in clips}):
        of_it = np.array([clip.category == category for clip in clips])
        figure = metrics.auroc(labels_C[of_it], scores_C[of_it])
        per_category[category] = figure.value
        if figure.reason:
            reasons[category] = figure.reason
    defined = [value for value in per_category.values() if value is not None]
    return {"auroc": sum(defined) / len(defined), "per_category": per_category, "reasons": reasons,
            "verdict_loss": float(nll_C2[np.arange(len(clips)), labels_C].mean()),
            "log_odds_accuracy": metrics.accuracy(labels_C, scores_C, 0.0).value, "clips": len(clips)}


def sentence(row: Mapping[str, Any]) -> str:
    """A validation in one line for the terminal."""
    defined = sum(value is not None for value in row["per_category"].values())
    best = "the best so far" if row["best_step"] == row["step"] else f"best {row['best_auroc']:.4f} at step {row['best_step']}"
    return (f"validation after step {row['step']}: AUROC {row['auroc']:.4f} over {defined} of {len(row['per_category'])} categories "
            f"({best}), verdict loss {row['verdict_loss']:.4f}, right by the log-odds {row['log_odds_accuracy']:.0%}, "
            f"{row['clips']} clips in {row['seconds']:.1f} s")


def scalars(row: Mapping[str, Any]) -> dict[str, float]:
    """The same for TensorBoard: tag -> value."""
    return {**{f"eval/{name}": row[name] for name in ("auroc", "verdict_loss", "log_odds_accuracy", "seconds")},
            **{f"eval/auroc_{category}": value for category, value in row["per_category"].items() if value is not None}}


@contextmanager
def exact_head(network) -> Iterator[None]:
    """The head in float32 while inside, as in `vlmphys.inference`: two verdicts' bf16 logits are often equal, and ties spoil a ranking.

    Its forward method is replaced, and not called around, so that an engine that shards weights has gathered this one by then.
    """
    head = network.lm_head

    def in_float32(hidden: torch.Tensor) -> torch.Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            return functional.linear(hidden.float(), head.weight.float(), None if head.bias is None else head.bias.float())

    before = vars(head).get("forward")      # what another library put there; usually nothing
    head.forward = in_float32
    try:
        yield
    finally:
        del head.forward
        if before is not None:
            head.forward = before
