"""How well near-duplicates are told from different clips: copies of some clips of a folder are planted, and all pairs are compared.

    python tests/bench/near_duplicates.py --videos DIR [--every 15]

Prints, for clips that are no copies, the lowest differences among the candidates; for each kind of copy, the greatest; what the check would
flag and miss; and the time a clip and a pair take.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import av
import cv2
import numpy as np

from vlmphys.layout import scan_videos
from vlmphys.near_duplicates import LARGEST_DIFFERENCE, candidates, difference, perceptual_hash, read_pictures

KINDS = {"encoded anew at crf 32": dict(crf=32), "smaller, 80 pixels": dict(size=80, crf=30), "4 % cropped": dict(crop=0.04),
         "8 % cropped": dict(crop=0.08), "a quarter brighter": dict(gain=1.25, offset=8),
         "4 % cropped, brighter, crf 30": dict(crop=0.04, gain=1.2, offset=5, crf=30)}


def copy_clip(source: Path, target: Path, crop: float = 0.0, gain: float = 1.0, offset: float = 0.0, crf: int = 28, size: int | None = None) -> None:
    """Encode a clip anew; `crop` is the share of width and height that is cut off, half at each edge."""
    with av.open(str(source)) as given, av.open(str(target), "w") as made:
        stream = None
        for frame in given.decode(video=0):
            image_HWC = frame.to_ndarray(format="rgb24")
            top, left = (int(edge * crop / 2) for edge in image_HWC.shape[:2])
            image_HWC = image_HWC[top:image_HWC.shape[0] - top, left:image_HWC.shape[1] - left]
            image_HWC = image_HWC[:image_HWC.shape[0] // 2 * 2, :image_HWC.shape[1] // 2 * 2]
            if size:
                image_HWC = cv2.resize(image_HWC, (size, size), interpolation=cv2.INTER_AREA)
            image_HWC = np.clip(image_HWC.astype(np.float32) * gain + offset, 0, 255).astype(np.uint8)
            if stream is None:
                stream = made.add_stream("libx264", rate=given.streams.video[0].average_rate, options={"crf": str(crf), "preset": "superfast"})
                stream.height, stream.width, stream.pix_fmt = *image_HWC.shape[:2], "yuv420p"
            made.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(image_HWC), format="rgb24")))
        made.mux(stream.encode())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--videos", required=True)
    parser.add_argument("--every", type=int, default=15, help="copies are made of each so-manieth clip")
    options = parser.parse_args()
    clips = scan_videos(options.videos)
    started = time.process_time()
    pictures = [read_pictures(str(clip.path)) for clip in clips]
    hashes = [perceptual_hash(picture) for picture in pictures]
    a_clip = (time.process_time() - started) / len(clips)
    pairs = list(candidates(hashes))
    started = time.process_time()
    found = sorted((difference(pictures[i], pictures[j]), clips[i].clip_id, clips[j].clip_id) for i, j in pairs)
    a_pair = (time.process_time() - started) / max(1, len(pairs))
    total = len(clips) * (len(clips) - 1) // 2
    print(f"{len(clips)} clips, {total} pairs: {len(pairs)} candidates, {sum(value <= LARGEST_DIFFERENCE for value, *_ in found)} flagged; "
          f"{1e3 * a_clip:.1f} ms of processor time a clip, {1e3 * a_pair:.2f} ms a candidate")
    for value, first, second in found[:5]:
        print(f"  different clips, difference {value:.3f}: {first}, {second}")
    chosen = range(0, len(clips), options.every)
    missed = 0
    with tempfile.TemporaryDirectory() as folder:
        for kind, how in KINDS.items():
            values = []
            for index in chosen:
                copy_clip(clips[index].path, Path(folder, "copy.mp4"), **how)
                copied = read_pictures(str(Path(folder, "copy.mp4")))
                near = list(candidates([hashes[index], perceptual_hash(copied)]))
                values.append(difference(pictures[index], copied) if near else float("inf"))
            wrong = sum(value > LARGEST_DIFFERENCE for value in values)
            missed += wrong
            print(f"  {kind}: {len(values)} copies, difference median {np.median(values):.3f}, greatest {max(values):.3f}, {wrong} missed")
    print(f"{missed} of {len(KINDS) * len(chosen)} copies missed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
