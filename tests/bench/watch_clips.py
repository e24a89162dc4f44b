"""A watched folder under load: `python tests/bench/watch_clips.py --run runs/NAME --clip CLIP.mp4 --category fan --clips 1000`.

A thread of its own drops copies of a clip, every tenth of them written in pieces, two of them broken; meanwhile the watching process is stopped
three times and killed once. Then the same in one long session. Prints how often each clip was judged, and the long session's memory after a tenth
of the clips and after all. Fails where a whole clip was not judged exactly once, a broken one not refused, or the memory grew by more than 5 %.
What a hot start costs: detect_speed.py.
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

import psutil

CHUNKS = 5
STOPS = (0.2, 0.4, 0.6, 0.8)        # shares of the clips after which the watching process goes; the third time by SIGKILL
GROWTH = 1.05                       # of the memory, at most


def broken(clips: int) -> tuple[int, int]:
    """The numbers of the two clips that end early."""
    return 17, clips // 2


def drop(folder: Path, clip: bytes, clips: int, pause: float) -> None:
    """Write the clips, one after the other."""
    for number in range(clips):
        content = clip[:len(clip) // 2] if number in broken(clips) else clip
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
                    resident = psutil.Process(process.pid).memory_info().rss / 2**20
                except psutil.NoSuchProcess:
                    break
                if resident:                    # a process that has ended has none, until it is waited for
                    memory[count] = resident
            time.sleep(0.1)
    return memory


def main() -> int:
    """Both folders."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--clip", type=Path, required=True)
    parser.add_argument("--category", required=True)
    parser.add_argument("--clips", type=int, default=1000)
    parser.add_argument("--pause", type=float, default=0.02, help="seconds between two clips")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    signal.signal(signal.SIGINT, signal.default_int_handler)    # a shell's background commands ignore it, and so would the watching process
    clip, wrong = options.clip.read_bytes(), []
    for name, stops in (("stopped three times and killed once", STOPS), ("one session", ())):
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            writer = threading.Thread(target=drop, args=(folder, clip, options.clips, options.pause))
            begun = time.monotonic()
            writer.start()
            memory = follow(options, folder, stops)
            writer.join()
            rows = [json.loads(line) for line in (folder / "detections.jsonl").read_text().splitlines()]
            judged, refused = (Counter(row["clip"] for row in rows if ("error" in row) is failed) for failed in (False, True))
            print(f"{name}: {len(judged)} clips judged, {sum(count > 1 for count in judged.values())} of them more than once; broken: "
                  f"{dict(refused)}; {time.monotonic() - begun:.0f} s")
            half = {f"{number:05d}.mp4" for number in broken(options.clips)}
            whole = {f"{number:05d}.mp4" for number in range(options.clips)} - half
            if judged != Counter(whole) or refused != Counter(half):
                wrong.append(f"{name}: not every whole clip was judged once and every broken one refused once")
            if not stops:
                early, last = next(value for count, value in sorted(memory.items()) if count >= options.clips // 10), memory[max(memory)]
                print(f"memory: {early:.0f} MiB after {options.clips // 10} clips, {last:.0f} MiB after {max(memory)}: {last / early:.3f} x")
                if last > GROWTH * early:
                    wrong.append(f"the memory grew by more than {GROWTH - 1:.0%}")
    print("; ".join(wrong) or "as wanted")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
