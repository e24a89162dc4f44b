"""A watched folder under load: `python tests/bench/watch_clips.py --run runs/NAME --clip CLIP.mp4 --category fan --clips 1000`.

A thread of its own drops copies of a clip, every tenth of them written in pieces, two of them broken; meanwhile the watching process is stopped
three times and killed once. Prints how often each clip was judged, the memory after 100 clips and after all of one long session, and what a
hot start costs beside its bare decode and forward pass.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import psutil

CHUNKS = 5
STOPS = (0.2, 0.4, 0.6, 0.8)        # shares of the clips after which the watching process goes; the third time by SIGKILL


def drop(folder: Path, clip: bytes, clips: int, pause: float) -> None:
    """Write the clips, one after the other."""
    for number in range(clips):
        content = clip[:len(clip) // 2] if number in (17, clips // 2) else clip
        with open(folder / f"{number:05d}.mp4", "wb") as stream:
            for part in range(CHUNKS) if number % 10 == 3 else (None,):
                stream.write(content if part is None else content[len(content) * part // CHUNKS:len(content) * (part + 1) // CHUNKS])
                stream.flush()
                if part is not None:
                    time.sleep(0.1)
        time.sleep(pause)


def start(options, folder: Path) -> subprocess.Popen:
    """The watching process."""
    return subprocess.Popen([sys.executable, "-m", "vlmphys.cli", "detect", "--run", str(options.run), "--category", options.category, "--explain",
                             "none", "--json", "--watch", str(folder), "--until-idle", "5s"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def lines(journal: Path) -> int:
    """Whole lines of the journal."""
    return journal.read_bytes().count(b"\n") if journal.is_file() else 0


def follow(options, folder: Path, stops: tuple[float, ...]) -> dict[int, float]:
    """Run the watching process to its end, stopped and started again; the memory (MiB) of the last one by lines of the journal."""
    journal, memory = folder / "detections.jsonl", {}
    for turn, stop in enumerate((*stops, None)):
        process = start(options, folder)
        while process.poll() is None:
            count = lines(journal)
            if stop is not None and count >= stop * options.clips:
                process.send_signal(signal.SIGKILL if turn == 2 else signal.SIGINT)
                process.wait()
            elif stop is None:
                try:
                    memory[count] = psutil.Process(process.pid).memory_info().rss / 2**20
                except psutil.NoSuchProcess:
                    break
            time.sleep(0.1)
    return memory


def hot(options, rounds: int = 30) -> None:
    """Print the time of one clip with the model loaded, and of its decode and forward pass alone, in turns."""
    from vlmphys import Detector
    from vlmphys.inference import judge_batch
    from vlmphys.pixels import fit_frames
    from vlmphys.predictions import Explain
    from vlmphys.video import read_frames
    detector = Detector(options.run)
    settings = detector.frame_settings
    prompt = detector._prompt(options.category).ids
    whole, bare = [], []
    for _ in range(rounds):
        begun = time.perf_counter()
        detector.detect(options.clip, options.category, Explain.NONE)
        middle = time.perf_counter()
        clip = read_frames(options.clip, settings["rule"], settings["frames"])
        frames_THWC = fit_frames(clip.frames_THWC, detector.facts.image_size, settings["fit"])
        judge_batch(detector.network, detector.facts, [prompt], frames_THWC[None], detector.continuations, detector.tokenizer.eos_token_id,
                    Explain.NONE)
        whole.append(middle - begun)
        bare.append(time.perf_counter() - middle)
    print(f"one clip, model loaded: {np.median(whole) * 1000:.1f} ms; its decode and forward pass alone: {np.median(bare) * 1000:.1f} ms; "
          f"{np.median(whole) / np.median(bare):.2f} x")


def main() -> None:
    """Both folders, and the hot start."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--clip", type=Path, required=True)
    parser.add_argument("--category", required=True)
    parser.add_argument("--clips", type=int, default=1000)
    parser.add_argument("--pause", type=float, default=0.02, help="seconds between two clips")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    hot(options)
    clip = options.clip.read_bytes()
    for name, stops in (("stopped three times and killed once", STOPS), ("one session", ())):
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            writer = threading.Thread(target=drop, args=(folder, clip, options.clips, options.pause))
            begun = time.monotonic()
            writer.start()
            memory = follow(options, folder, stops)
            writer.join()
            rows = [json.loads(line) for line in (folder / "detections.jsonl").read_text().splitlines()]
            whole = Counter(row["clip"] for row in rows if "error" not in row)
            print(f"{name}: {len(whole)} clips judged, {sum(count > 1 for count in whole.values())} of them more than once; broken: "
                  f"{dict(Counter(row['clip'] for row in rows if 'error' in row))}; {time.monotonic() - begun:.0f} s")
            if not stops:
                early = next(value for count, value in sorted(memory.items()) if count >= options.clips // 10)
                print(f"memory: {early:.0f} MiB after {options.clips // 10} clips, {memory[max(memory)]:.0f} MiB after {max(memory)}")


if __name__ == "__main__":
    main()
