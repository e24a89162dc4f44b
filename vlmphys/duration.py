"""How long a run will take: by an earlier run of the same settings, or by a guess that says so."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from typing import Any

from vlmphys.cases import Case, Data, Machine
from vlmphys.config import read_back
from vlmphys.files import read_json

# A guess at the model FLOPs utilisation where nothing was measured; nothing here was.
ASSUMED_UTILISATION = 0.3
# What decides how fast a run goes; a throughput measured with other values says nothing of this one.
SPEED_KEYS = ("model", "variant", "tune", "tune_o_proj", "lora_r", "bf16", "gradient_checkpointing", "per_device_train_batch_size",
              "gradient_accumulation_steps", "engine", "deepspeed")


def measured_speed(run: str | Path, case: Case) -> tuple[float | None, str]:
    """Samples per second of an earlier run (the median of its rows, the first one left out), or None with the reason why they do not apply.

    Raises ValueError where the folder is no run folder or its metrics cannot be read.
    """
    run = Path(run)
    if not (run / "config.yaml").is_file() or not (run / "metrics.jsonl").is_file():
        raise ValueError(f"--run {run}: no run folder with config.yaml and metrics.jsonl; give the --out of launch/train.py")
    earlier, ranks = read_back(run / "config.yaml"), read_json(run / "env.json", "the run folder is incomplete").get("ranks")
    other = [f"{key} ({getattr(earlier, key)} there, {getattr(case.config, key)} here)" for key in SPEED_KEYS
             if getattr(earlier, key) != getattr(case.config, key)]
    facts = read_json(run / "data.json", "the run folder is incomplete") if (run / "data.json").is_file() else {}
    then, now = (("features" if taken else "pixels") for taken in (facts.get("features"), case.features))
    other += [f"video ({then} there, {now} here)"] if then != now else []
    other += [f"ranks ({ranks} there, {case.ranks} here)"] if ranks != case.ranks else []
    if other:
        return None, f"{run} ran with other settings: {'; '.join(other)}"
    speeds = []
    for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        try:
            speeds.append(float(json.loads(line)["samples_per_second"]))
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"--run {run}: a row of metrics.jsonl has no samples_per_second: {line[:60]!r}") from None
    if not speeds:
        return None, f"{run} has no row in its metrics.jsonl yet"
    return median(speeds[1:] or speeds), f"the speed of {run}, if this machine is the same"


def time_of(case: Case, data: Data, run: str | Path | None) -> dict[str, Any]:
    """Seconds of training, or null and the reason."""
    if run is None:
        reason = "no speed is known: give an earlier run of the same settings with --run"
        return {"seconds": None, "samples_per_second": None, "reason": reason}
    speed, reason = measured_speed(run, case)
    if speed is None or case.steps is None:
        reason = reason if speed is None else "the number of steps is not known: give --data"
        return {"seconds": None, "samples_per_second": speed, "reason": reason}
    return {"seconds": round(samples_of(case, data) / speed, 1), "samples_per_second": speed, "reason": reason}


def samples_of(case: Case, data: Data) -> float:
    """Clips that the whole run sees; the number of steps is known."""
    by_steps = case.config.max_steps > 0 or data.clips is None
    return case.steps * case.global_batch if by_steps else len(data.clips) * case.config.num_train_epochs


def assumed_time(case: Case, data: Data, machine: Machine, hf) -> dict[str, Any]:
    """What the run would take at `ASSUMED_UTILISATION` of the cards' peak; null with a reason without a card whose peak is known.

    A guess: an optimizer that works in host memory, slow links between cards and waiting for data come on top.
    """
    from vlmphys.flops import model_flops, peak_by_name
    known = peak_by_name(machine.card) if machine.card else None
    peak = case.config.gpu_peak_tflops * 1e12 or known
    if machine.gpu is None or not peak:
        reason = "there is no GPU" if machine.gpu is None else "the card's peak is not known: --set gpu_peak_tflops=N"
        return {"seconds": None, "clips_per_second": None, "utilisation": None, "reason": reason}
    tokens, squared, supervised = data.usual or (data.tokens, data.tokens ** 2, data.supervised)
    flops = model_flops(hf, case.config, data.frames, not case.features)
    of_clip = flops.per_token * tokens + flops.per_token_squared * squared + flops.per_supervised * supervised + flops.per_clip
    speed = ASSUMED_UTILISATION * peak * case.ranks / of_clip
    seconds = round(samples_of(case, data) / speed, 1) if case.steps else None
    return {"seconds": seconds, "clips_per_second": speed, "utilisation": ASSUMED_UTILISATION,
            "reason": f"assumed and not measured: {ASSUMED_UTILISATION:.0%} of {peak / 1e12:g} TFLOP/s a card, nothing else counted"}
