"""Predicting clips on one or more ranks while processes are killed (SIGKILL), and whether the rows are those of an uninterrupted run.

    python tests/bench/predict_kills.py                       # 500 clips, ten kills, 1 and 2 ranks

Every process runs `vlmphys.predict.predict` with --explain none and is forked from this one, which has imported everything: a start costs
little. Kills come at random numbers of rows, one rank at a time or all at once, with SIGKILL. Printed: clips, rows, clips with other than one
row, the largest difference of a score, and how many other fields differ. Exit status 0: none of them does.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
SIZE = 32
TOLERANCE = 1e-4        # batches of other sizes sum in another order


def clips_of(count: int) -> list[tuple[str, str, str, str]]:
    """So many test clips of two categories, and one train clip."""
    states = [("fan", "anomaly_free"), ("fan", "stuck"), ("hinge", "anomaly_free"), ("hinge", "falloff")]
    found = [("fan/train/0000", "fan", "train", "train")]
    for number in range(count):
        category, state = states[number % len(states)]
        found.append((f"{category}/test/{state}/{number:04d}", category, state, "test"))
    return sorted(found)


def start(options, ranks: int) -> list:
    """One process a rank, forked."""
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=work, args=(options, rank, ranks), daemon=True) for rank in range(ranks)]
    for process in processes:
        process.start()
    return processes


def work(options, rank: int, ranks: int) -> None:
    """A rank's whole life; its exit status is that of the command."""
    from dataclasses import replace

    from rich.console import Console

    from vlmphys.predict import predict
    try:
        predict(replace(options, rank=rank, ranks=ranks), Console(quiet=True))
    except ValueError as error:
        print(f"rank {rank}: error: {error}", file=sys.stderr, flush=True)
        os._exit(2)
    os._exit(0)


def rows_written(out: Path) -> int:
    """Lines of the file and of its parts."""
    count = 0
    for path in out.parent.glob(f"{out.name}*"):
        with suppress(FileNotFoundError):       # a part that is merged right now
            count += path.read_bytes().count(b"\n")
    return count


def run(options, ranks: int, kills: int, clips: int, seed: int = 0) -> int:
    """Predict to the end, with `kills` processes killed on the way; how many launches it took. Raises RuntimeError where a launch fails by itself."""
    chance = random.Random(seed)
    moments = sorted(chance.sample(range(1, clips - 1), kills))
    launches = 0
    while True:
        launches += 1
        processes = start(options, ranks)
        killed = False
        while any(process.is_alive() for process in processes):
            if moments and rows_written(options.out) >= moments[0]:
                moments.pop(0)
                killed = True
                everyone = chance.random() < 0.5
                for process in processes if everyone else [chance.choice(processes)]:
                    if process.is_alive():
                        os.kill(process.pid, signal.SIGKILL)
                # The others of a launch end with it, as launchers see to; sometimes they are let go on to their ends.
                if not everyone and chance.random() < 0.5:
                    for process in processes:
                        process.terminate()
                break
            time.sleep(0.001)
        for process in processes:
            process.join()
        failed = [process.exitcode for process in processes if process.exitcode > 0]
        if failed:
            raise RuntimeError(f"a rank ended with status {failed[0]}")
        if not killed:
            return launches


def differences(expected: Path, found: Path) -> dict[str, float]:
    """Clips with other than one row, the largest difference of a score, and other fields that differ."""
    wanted = {row["clip_id"]: row for row in map(json.loads, expected.read_text().splitlines())}
    rows = [json.loads(line) for line in found.read_text().splitlines()]
    counts = {clip_id: sum(row["clip_id"] == clip_id for row in rows) for clip_id in wanted}
    pairs = [(wanted[row["clip_id"]], row) for row in rows if row["clip_id"] in wanted]
    return {"rows": len(rows), "not once": sum(count != 1 for count in counts.values()), "unknown": len(rows) - len(pairs),
            "score": max(abs(one["score"] - other["score"]) for one, other in pairs),
            "fields": sum(one.keys() != other.keys() or any(one[key] != other[key] for key in one if key not in ("score", "probability"))
                          for one, other in pairs),
            "parts left": sum(path != found for path in found.parent.glob(f"{found.name}*"))}


def prepared(folder: Path, clips: int):
    """A random model, packed clips and the options to predict them."""
    import torch
    from packed_clips import random_model, write_packed

    from vlmphys.predict import PredictOptions
    from vlmphys.predictions import Explain
    from vlmphys.records import Variant
    torch.set_num_threads(1)
    for name in ("model", "packed"):
        (folder / name).mkdir()
    model = random_model(folder / "model", ("fan", "hinge"), SIZE)
    write_packed(folder / "packed", model, clips_of(clips), SIZE)
    return PredictOptions(folder / "packed", folder / "none" / "predictions.jsonl", model=str(model), variant=(Variant.MULTI_TURN,),
                          explain=Explain.NONE, batch_size=4)


def main() -> int:
    from dataclasses import replace
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=500)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    good = True
    with tempfile.TemporaryDirectory() as folder:
        options = prepared(Path(folder), chosen.clips)
        whole = replace(options, out=Path(folder) / "whole" / "predictions.jsonl")
        run(whole, 1, 0, chosen.clips)
        for ranks in chosen.ranks:
            killed = replace(options, out=Path(folder) / f"ranks{ranks}" / "predictions.jsonl")
            launches = run(killed, ranks, chosen.kills, chosen.clips, chosen.seed)
            found = differences(whole.out, killed.out)
            print(f"{ranks} rank(s), {chosen.kills} kills, {launches} launches, {chosen.clips} clips: "
                  + ", ".join(f"{name} {value:g}" for name, value in found.items()), flush=True)
            good &= found["rows"] == chosen.clips and found["score"] < TOLERANCE and not any(
                found[name] for name in ("not once", "unknown", "fields", "parts left"))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
