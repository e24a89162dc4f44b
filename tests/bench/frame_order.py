"""What the order of a clip's frames is worth to a model: AUROC with the frames as they were filmed, and shuffled.

    python tests/bench/frame_order.py --run runs/quickstart/multi_turn --data runs/quickstart/packed

Predicts a side of packed data as launch/predict.py does, scores alone, once in order and once for each shuffle; each clip has its own order,
by its id and the shuffle's number. A model that reads motion falls towards .5 in the categories whose fault is a matter of motion; where
it stays, single frames tell the fault (`VISIBLE_IN_ONE_FRAME` in the mechanisms) or the model goes by their look.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from vlmphys import predict  # noqa: E402
from vlmphys.mechanisms import visible_in_one_frame  # noqa: E402
from vlmphys.metrics import auroc  # noqa: E402
from vlmphys.predictions import Explain, read_predictions  # noqa: E402
from vlmphys.records import Split, stable_int  # noqa: E402
from vlmphys.shards import Packed, open_packed  # noqa: E402
from vlmphys.signals import exit_status  # noqa: E402


@dataclass(frozen=True)
class Shuffled(Packed):
    """Packed data whose clips are seen with their frames in another order, never in the filmed one."""

    shuffle: int = 0

    def video(self, clip_ids: Sequence[str], sets: Sequence[int] | None = None) -> np.ndarray:
        """As `Packed.video`, the frames of each clip permuted."""
        return np.stack([frames[self.order(clip_id, len(frames))] for clip_id, frames in zip(clip_ids, super().video(clip_ids, sets))])

    def order(self, clip_id: str, frames: int) -> np.ndarray:
        """A permutation of 0 to `frames` - 1 that is not the identity. Raises ValueError for a single frame, which has no other order."""
        if frames < 2:
            raise ValueError(f"{self.folder} holds one frame a clip, which has no order: pack with --frames 2 or more")
        generator = np.random.default_rng(stable_int("frame order", self.shuffle, clip_id))
        while (order := generator.permutation(frames)).tolist() == list(range(frames)):
            pass
        return order


def aurocs(run: Path, data: Path, split: Split, shuffle: int | None, device: str) -> dict[str, float | None]:
    """AUROC by category, with the frames in order (None) or in the order of one shuffle."""
    def opened(folder: Path) -> Packed:
        packed = open_packed(folder)
        return packed if shuffle is None else Shuffled(**{**vars(packed), "shuffle": shuffle})
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "rows.jsonl"
        options = predict.PredictOptions(data, out, run=run, split=split, explain=Explain.NONE, device=device)
        predict.predict(options, Console(stderr=True), opened)
        table = read_predictions(out)
    categories = np.array(table.categories)
    return {category: auroc(table.labels_N[categories == category], table.scores_N[categories == category]).value
            for category in sorted(set(categories.tolist()))}


def main(arguments: list[str] | None = None) -> int:
    """0: printed; 2: something is wrong, as one message says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="the run's packed clips")
    parser.add_argument("--split", type=Split, choices=tuple(Split), default=Split.TEST)
    parser.add_argument("--shuffles", type=int, default=3, help="how many orders each clip is seen in")
    parser.add_argument("--device", choices=predict.DEVICES, default="auto")
    options = parser.parse_args(arguments)
    return exit_status(lambda: run(options))


def run(options: argparse.Namespace) -> None:
    """Print a row for each category and one for their mean, and the lowest and highest mean over the shuffles.

    Raises ValueError for a number of shuffles below 1, and for a run and data that cannot be predicted with or compared.
    """
    if options.shuffles < 1:
        raise ValueError(f"--shuffles is {options.shuffles}: at least 1 is needed")
    in_order = aurocs(options.run, options.data, options.split, None, options.device)
    shuffled = [aurocs(options.run, options.data, options.split, shuffle, options.device) for shuffle in range(options.shuffles)]
    judged = [category for category, value in in_order.items() if value is not None]
    if not judged:
        raise ValueError(f"{options.data}: no category has normal and anomalous clips on the side {options.split.value}")
    print(f"{'category':20s} in order  shuffled   states that one frame shows")
    for category in judged:
        print(f"{category:20s} {in_order[category]:8.3f} {statistics.fmean(one[category] for one in shuffled):9.3f}   "
              f"{', '.join(visible_in_one_frame(category))}".rstrip())
    means = [statistics.fmean(one[category] for category in judged) for one in shuffled]
    print(f"{'mean':20s} {statistics.fmean(in_order[category] for category in judged):8.3f} {statistics.fmean(means):9.3f}   "
          f"over {len(means)} shuffles {min(means):.3f} to {max(means):.3f}")


if __name__ == "__main__":
    sys.exit(main())
