"""What a hot start costs beside its bare parts: `python tests/bench/detect_speed.py --run runs/NAME --clip CLIP.mp4 --category fan`.

With the model loaded, in turns: `Detector.detect` on the clip without an explanation; the clip's decode with PyAV alone, from its first frame to
the last wanted one, only the wanted ones as RGB; one forward pass of the Hugging Face model on the same tokens and pictures, the logits of its
last position. Prints medians and least times, and fails where the whole takes more than --at-most times its parts, median over median.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import torch

from vlmphys import Detector
from vlmphys.model import normalise_frames
from vlmphys.predictions import Explain


def decode(path: Path, wanted: set[int]) -> list[np.ndarray]:
    """The wanted frames, H x W x 3, by decoding everything before them."""
    images = []
    with av.open(str(path)) as container:
        for number, frame in enumerate(container.decode(video=0)):
            if number in wanted:
                images.append(frame.to_ndarray(format="rgb24"))
            if len(images) == len(wanted):
                break
    return images


def forward_of(detector: Detector, category: str, pictures_THWC: np.ndarray) -> Callable[[], object]:
    """One forward pass, inputs at hand on the device; waits for a GPU."""
    network = detector.network
    ids_1L = torch.tensor([detector._prompt(category).ids], device=network.device)
    mask_1L = torch.ones_like(ids_1L)
    pixels_1TCHW = normalise_frames(torch.from_numpy(pictures_THWC)[None].to(network.device), detector.facts.image_mean, detector.facts.image_std,
                                    network.dtype)

    @torch.inference_mode()
    def forward() -> object:
        return network(input_ids=ids_1L, attention_mask=mask_1L, pixel_values_videos=pixels_1TCHW, logits_to_keep=1).logits.tolist()
    return forward


def main() -> int:
    """Measure, print, and say whether it is within the limit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--clip", type=Path, required=True)
    parser.add_argument("--category", required=True)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, help="of torch   [its own choice]")
    parser.add_argument("--at-most", type=float, default=1.3)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    begun = time.perf_counter()
    detector = Detector(options.run)
    print(f"{detector.label} loaded in {time.perf_counter() - begun:.2f} s")
    first = detector.detect(options.clip, options.category, Explain.NONE)
    tasks = {"detect": lambda: detector.detect(options.clip, options.category, Explain.NONE),
             "bare decode": lambda: decode(options.clip, set(first.frames)),
             "bare forward": forward_of(detector, options.category, first.pictures),
             "detect with a reason": lambda: detector.detect(options.clip, options.category, Explain.ALL)}
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    order = list(tasks)
    for _ in range(options.rounds):
        order = order[1:] + order[:1]           # none always follows the same other one
        for name in order:
            begun = time.perf_counter()
            tasks[name]()
            seconds[name].append(time.perf_counter() - begun)
    for name, values in seconds.items():
        print(f"{name}: median {np.median(values) * 1000:.1f} ms, least {min(values) * 1000:.1f} ms")
    ratios = [pick(seconds["detect"]) / (pick(seconds["bare decode"]) + pick(seconds["bare forward"])) for pick in (np.median, min)]
    print(f"detect takes {ratios[0]:.2f} x its bare decode and forward pass (least times {ratios[1]:.2f} x); at most {options.at_most:g} is wanted")
    return int(ratios[0] > options.at_most)


if __name__ == "__main__":
    sys.exit(main())
