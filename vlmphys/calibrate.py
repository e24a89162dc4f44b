"""`vlmphys calibrate`: the val split's scores, by a pass of its own or from rows that stand in a file, to the run's calibration.json."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from vlmphys.calibration import fit, write_calibration
from vlmphys.files import logged_rows
from vlmphys.predict import PredictOptions, find_source, predict
from vlmphys.predictions import Explain, Predictions, read_predictions
from vlmphys.records import Split, counted, label_of
from vlmphys.runs import folder_fingerprint, open_run
from vlmphys.shards import Packed, open_packed

OWN_PASS = "val_scores.jsonl"


def calibrate(run_folder: Path, data: Path, predictions: Path | None = None, target_fpr: float | None = None, device: str = "auto",
              console: Console | None = None) -> dict[str, Any]:
    """Fit temperature and threshold on the val split of `data`, write them into the run folder, and return what was written.

    `predictions`: rows of launch/predict.py --split val; without them the clips are scored now, into val_scores.jsonl of the run, where an
    interrupted pass goes on. Raises ValueError for rows of another side, model or data, and for a val split that is empty or too poor.
    """
    run, packed = open_run(run_folder), open_packed(data)
    source = find_source(PredictOptions(data, Path(), run=run.folder, calibrated=False))
    side = packed.clip_ids(Split.VAL)
    if not side:
        raise ValueError(f"{data} holds no packed clip of the val split: split again with data_prep/split.py --val-share 0.1, pack, and train "
                         "again; test clips are never calibrated on")
    own = predictions is None
    path = run.folder / OWN_PASS if own else Path(predictions)
    if own:
        _forget_other_rows(path, source.label, packed.fingerprint)
        predict(PredictOptions(Path(data), path, run=run.folder, split=Split.VAL, explain=Explain.NONE, device=device, calibrated=False),
                console or Console(quiet=True))
    table = read_predictions(path)
    check_rows(table, packed, side, source.label)
    states = packed.frames.states()
    labels_N = np.array([label_of(states[clip_id][1]) for clip_id in table.clip_ids])
    _, facts = fit(labels_N, table.scores_N, target_fpr)
    if len(table) < len(side):
        facts["notes"].append(f"{path} has {len(table)} of the {len(side)} val clips")
    if run.data_fingerprint != packed.fingerprint:
        facts["notes"].append("the run was trained on other packed data than this: val clips of this one may have been in its training")
    write_calibration(run.folder, facts, {
        "data_fingerprint": packed.fingerprint, "model_fingerprint": folder_fingerprint(run.model_folder), "model": source.label,
        "variant": run.variant.value, "split": Split.VAL.value, "protocol": packed.split.protocol, "clips": len(table),
        "normal": int((labels_N == 0).sum()), "anomalous": int((labels_N == 1).sum()), "categories": sorted(set(table.categories)),
        "predictions_sha256": table.sha256})
    return facts


def check_rows(table: Predictions, packed: Packed, side: Sequence[str], label: str) -> None:
    """Raise ValueError where rows are of another model or data than the run's and the packed folder's, or of clips that are not in val."""
    for key, wanted in (("model", label), ("data_fingerprint", packed.fingerprint)):
        if table.constants[key] != wanted:
            raise ValueError(f"{table.path} holds rows with {key} {table.constants[key]!r}, {wanted!r} is needed: predict with launch/predict.py "
                             "--split val, this --run and this --data, or leave --predictions out")
    strangers = sorted(set(table.clip_ids) - set(side))
    if strangers:
        where = packed.split.clips.get(strangers[0])
        raise ValueError(f"{table.path} holds {counted(len(strangers), 'clip')} not of the val split, first {strangers[0]!r}"
                         f"{f' ({Split(where).value})' if where else ''}: a calibration is fitted on val clips alone; use "
                         "launch/predict.py --split val")


def _forget_other_rows(path: Path, label: str, data_fingerprint: str) -> None:
    """Remove the scores that an earlier calibration left of other weights or other data: they are of no use to anyone else."""
    rows = logged_rows(path)
    if rows and any((row.get("model"), row.get("data_fingerprint")) != (label, data_fingerprint) for row in rows):
        path.unlink()


def show(facts: dict[str, Any], console: Console) -> None:
    """What was fitted, in a table and sentences."""
    from rich.table import Table
    table = Table(title="calibration on the val split", title_justify="left", show_header=False)
    errors = facts["expected_calibration_error"]
    table.add_row("temperature", f"{facts['temperature']:.3f}")
    table.add_row("anomalous from score", f"{facts['threshold']:.3f}, probability {facts['anomalous_from']:.3f} ({facts['threshold_rule']}"
                  + (f" {facts['target_fpr']:g})" if facts["target_fpr"] is not None else ")"))
    for key, name in (("false_positive_rate", "false positive rate"), ("true_positive_rate", "true positive rate")):
        rate = facts[key]
        if rate:
            table.add_row(name, f"{rate['value']:.3f} ({rate['clips']} of {rate['of']}), 95 % interval "
                                f"{rate['interval95'][0]:.3f} to {rate['interval95'][1]:.3f}")
        more = facts["false_positive_rate_of_as_many_more"]
        if more and key == "false_positive_rate":
            table.add_row(f"the same of {rate['of']} more clips", f"{more[0]:.3f} to {more[1]:.3f} in 95 of 100 cases")
    if errors["before"] is not None:
        held_out = "" if errors["held_out"] is None else f"; {errors['held_out']:.3f} on the half that it was not fitted on"
        table.add_row("expected calibration error", f"{errors['before']:.3f} before, {errors['after']:.3f} after{held_out}; "
                      f"{errors['by_chance']:.3f} by chance, were all probabilities exact")
    console.print(table)
    for note in facts["notes"]:
        console.print(f"note: {note}", highlight=False, markup=False, soft_wrap=True)
