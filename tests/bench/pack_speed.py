"""How fast data_prep/pack.py packs a bench of 1080p clips, how much memory it takes on the way, and how far it is from the bare decoder.

    python tests/bench/pack_speed.py                                    # Phys-AD's 6,434 clips: about an hour on two cores, 8 GB of disk
    python tests/bench/pack_speed.py --clips 120 --distinct 12          # whether it works: minutes

Makes `--distinct` files (H.264, 1920 x 1080, 60 frames/s, 60 to 240 frames, one key frame, a camera's noise), hard-links them to `--clips` names in
the Phys-AD layout, splits them (--allow-duplicates) and measures, in this order, in one run:

(a) **floor**, one half of the clips: the fastest exact reader here decodes the same 8 frames to RGB in as many processes, and nothing else;
(b) **pack**: `data_prep/pack.py --workers 2` on all of them, from the first clip handed out to the manifest: decoding, resizing, hashing of the file
    and of the shards, writing, fsync. Memory is the proportional set size of all its processes, summed, sampled as it goes;
(c) the floor again, on the other half;
(d) **peers' way**, on `--peer-clips`: as the benchmark's repository reads a clip: PyAV from the start, PIL, one process; it does so again for each of
    its three questions, so that three passes take three times as long;
(e) the packed clips read back, shuffled, every pixel copied, in one process, twice: the first time as the system left them, partly on the disk alone,
    and then as training finds them in a later epoch; how much of each came from the disk is told.

Seconds are worth something on a machine that does nothing else; processor seconds a clip, printed beside them, hold on a shared one, too.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import multiprocessing
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HEIGHT, WIDTH, SIZE, FRAMES = 1080, 1920, 224, 8
MARKS = (500 / 6434, 2000 / 6434, 1.0)          # where memory is told, as shares of the clips
SAMPLE_SECONDS = 0.5
TRIED_CLIPS = 6                                 # on which the fastest reader is chosen
TARGET_OF_FLOOR, TARGET_GROWTH, TARGET_READ_BACK = 0.85, 0.05, 1000


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=6434)
    parser.add_argument("--distinct", type=int, default=300, help="different files among them")
    parser.add_argument("--workers", type=int, default=2, help="decoding processes of (a), (b) and (c)")
    parser.add_argument("--peer-clips", type=int, default=60)
    parser.add_argument("--work", type=Path, help="folder for clips and packed data; clips are used again   [a temporary one]")
    parser.add_argument("--side", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("rest", nargs="*", help=argparse.SUPPRESS)
    return parser.parse_args()


def make_clip(path: Path, number: int) -> None:
    """A blurred texture under a slow camera, a square that crosses it, and noise: bit rates like a phone's, not like a test card's."""
    import av
    import cv2
    import numpy as np
    generator = np.random.default_rng(number)
    frames = int(generator.integers(60, 241))
    coarse = generator.integers(0, 255, (40, 64, 3), dtype=np.uint8)
    texture_HWC = cv2.resize(coarse, (WIDTH + 256, HEIGHT + 128), interpolation=cv2.INTER_CUBIC)
    noise = [generator.integers(0, 6, (HEIGHT, WIDTH, 3), dtype=np.uint8) for _ in range(4)]
    aside = path.with_name(f".{path.name}")
    with av.open(str(aside), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=60, options={"preset": "veryfast", "crf": "23", "threads": "1"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for index in range(frames):
            left, top = index * 256 // frames, index * 128 // frames
            image_HWC = texture_HWC[top:top + HEIGHT, left:left + WIDTH] // 2 + 40
            across = 9 * index % (WIDTH - 200)
            image_HWC[400:600, across:across + 200] = (200, 60, 30)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image_HWC + noise[index % 4], format="rgb24")))
        container.mux(stream.encode())
    aside.rename(path)


def make_bench(work: Path, clips: int, distinct: int) -> Path:
    """The distinct files, made where they are missing, and the layout that links to them."""
    from vlmphys.priors import known_categories, load_priors
    files = work / "distinct"
    files.mkdir(parents=True, exist_ok=True)
    for number in range(min(distinct, clips)):
        if not (files / f"{number:04d}.mp4").is_file():
            make_clip(files / f"{number:04d}.mp4", number)
    videos = work / "videos"
    shutil.rmtree(videos, ignore_errors=True)
    places = []
    for category, prior in load_priors(known_categories()).items():
        places += [f"{category}/train", f"{category}/test/anomaly_free"]
        places += [f"{category}/test/{state}" for state in prior.states if state != "anomaly_free"]
    # With few clips the first category alone, so that each of its folders has some.
    first = len([place for place in places if place.split("/")[0] == places[0].split("/")[0]])
    places = places if clips >= 20 * len(places) else places[:first]
    for number, place in enumerate(islice(cycle(places), clips)):
        (videos / place).mkdir(parents=True, exist_ok=True)
        os.link(files / f"{number % distinct:04d}.mp4", videos / place / f"{number:05d}.mp4")
    return videos


def read_share(paths: list[str], reader: str, ready, start, results) -> None:
    """One process of the floor: decodes its share once all are ready; tells when it was done and the processor seconds it took."""
    from vlmphys.frame_rules import frame_indices
    from vlmphys.video import read_picked
    ready.release()
    start.wait()
    before = time.process_time()
    for path in paths:
        if reader == "pyav, every frame":
            read_plainly(path)
        else:   # the pictures are dropped as they come: to lay eight of them side by side takes a tenth of the time
            read_picked(path, lambda n_frames: frame_indices(n_frames, FRAMES, "official"), reader, shape=lambda image_HWC: image_HWC[:1, :1])
    results.put((time.monotonic(), time.process_time() - before))


def read_plainly(path: str):
    """Decode from the start, convert the wanted frames alone: what the repositories of peers do."""
    import av
    import numpy as np
    with av.open(path) as container:
        wanted = set(np.linspace(0, container.streams.video[0].frames - 1, FRAMES).astype(int).tolist())
        kept = []
        for index, frame in enumerate(container.decode(video=0)):
            if index > max(wanted):
                break
            if index in wanted:
                kept.append(frame.to_ndarray(format="rgb24"))
    return np.stack(kept)


def floor(paths: list[str], reader: str, workers: int) -> tuple[float, float]:
    """(seconds, processor seconds) that `workers` processes take for these clips."""
    context = multiprocessing.get_context("spawn")
    ready, start, results = context.Semaphore(0), context.Event(), context.Queue()
    crew = [context.Process(target=read_share, args=(paths[share::workers], reader, ready, start, results)) for share in range(workers)]
    for process in crew:
        process.start()
    for _ in crew:
        ready.acquire()
    began = time.monotonic()
    start.set()
    told = [results.get() for _ in crew]
    for process in crew:
        process.join()
    return max(end for end, _ in told) - began, sum(seconds for _, seconds in told)


def fastest_reader(paths: list[str]) -> str:
    """The exact reader that takes the fewest processor seconds for some clips; prints what each takes."""
    found = {}
    for reader in ("pyav", "pyav, every frame", "decord"):
        try:
            floor(paths[:1], reader, 1)
            found[reader] = floor(paths, reader, 1)[1] / len(paths)
        except ImportError:
            continue
    print("readers, one process: " + "; ".join(f"{name} {1e3 * seconds:.0f} ms" for name, seconds in found.items()), flush=True)
    return min(found, key=found.get)


def pack_side(log: Path, arguments: list[str]) -> int:
    """data_prep/pack.py as it is, but that each clip done is logged with its time."""
    spec = importlib.util.spec_from_file_location("pack", ROOT / "data_prep/pack.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    real = module.pack_frames

    def logged(clips, out, settings, workers, progress, *more):
        with open(log, "w", buffering=1) as stream:
            def both(done: int, bad: int) -> None:
                stream.write(f"{time.monotonic()} {done} {bad}\n")
                progress(done, bad)
            report = real(clips, out, settings, workers, both, *more)
            stream.write(f"{time.monotonic()} {len(clips)} {len(report.quarantine)}\n")
        return report

    module.pack_frames = logged
    sys.argv = ["pack.py", *arguments]
    return module.main()


def memory_of_session(session: int) -> int:
    """Proportional set size of all processes of a session, summed, bytes: shared pages count once."""
    total = 0
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                if int(Path(entry.path, "stat").read_text().rsplit(")", 1)[1].split()[3]) == session:
                    rollup = Path(entry.path, "smaps_rollup").read_text()
                    total += 1024 * next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
            except (FileNotFoundError, ProcessLookupError, StopIteration):
                continue        # it has just ended
    return total


def pack(work: Path, videos: Path, model: Path, options: argparse.Namespace) -> dict:
    """Split and pack. Returns seconds, processor seconds, (time, clips) of each clip done, and (time, bytes) samples of memory."""
    subprocess.run([sys.executable, ROOT / "data_prep/split.py", "--videos", videos, "--out", work / "split.json", "--protocol", "unsupervised",
                    "--allow-duplicates"], check=True, stdout=subprocess.DEVNULL)
    shutil.rmtree(work / "packed", ignore_errors=True)
    log = work / "progress.log"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    process = subprocess.Popen([sys.executable, __file__, "--side", log, "--", "--videos", videos, "--split", work / "split.json", "--model", model,
                                "--out", work / "packed", "--workers", str(options.workers)], start_new_session=True)
    samples = []
    while process.poll() is None:
        samples.append((time.monotonic(), memory_of_session(process.pid)))
        time.sleep(SAMPLE_SECONDS)
    if process.returncode:
        raise SystemExit(f"pack.py ended with {process.returncode}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = [(float(moment), int(clips)) for moment, clips, _ in map(str.split, log.read_text().splitlines())]
    return {"seconds": done[-1][0] - done[0][0], "processor": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
            "done": done, "samples": samples}


def show_memory(packed: dict, clips: int) -> bool:
    """Print the peak up to each mark; whether it grew by no more than the target after the first one."""
    peaks = []
    for share in MARKS:
        mark = max(1, round(share * clips))
        until = next(moment for moment, done in packed["done"] if done >= mark)
        peaks.append(max(nbytes for moment, nbytes in packed["samples"] if moment <= until))
        print(f"    at {mark} clips: {peaks[-1] / 2**20:.0f} MiB")
    end = max(nbytes for _, nbytes in packed["samples"])
    growth = peaks[-1] / peaks[0] - 1
    print(f"    to the end, dialogues included: {end / 2**20:.0f} MiB; growth from the first mark to the last {growth:.1%} (target: under "
          f"{TARGET_GROWTH:.0%})")
    return growth < TARGET_GROWTH


def peers_way(paths: list[str]) -> float:
    """Clips a second of one pass: PyAV from the start, then PIL, frame by frame: shortest edge to the model's size, the middle cut out."""
    import numpy as np
    from PIL import Image
    began = time.monotonic()
    for path in paths:
        pictures = []
        for image_HWC in read_plainly(path):
            picture = Image.fromarray(image_HWC).resize((SIZE * WIDTH // HEIGHT, SIZE), Image.Resampling.BICUBIC)
            left = (picture.width - SIZE) // 2
            pictures.append(np.asarray(picture.crop((left, 0, left + SIZE, SIZE))))
        np.stack(pictures)
    return len(paths) / (time.monotonic() - began)


def read_back(folder: Path) -> tuple[float, int]:
    """(clips a second, bytes from the disk) of one process that opens packed data and copies every pixel of every clip, in a random order."""
    import numpy as np

    from vlmphys.shards import open_packed
    frames = open_packed(folder).frames
    order = frames.clip_ids
    random.Random(0).shuffle(order)
    from_disk, began = disk_bytes_read(), time.monotonic()
    for clip_id in order:
        np.array(frames.row(clip_id).frames_THWC)
    return len(order) / (time.monotonic() - began), disk_bytes_read() - from_disk


def disk_bytes_read() -> int:
    """Bytes that this process had fetched from a disk so far, those of mapped files included."""
    return int(next(line.split()[1] for line in Path("/proc/self/io").read_text().splitlines() if line.startswith("read_bytes:")))


def make_model(folder: Path) -> Path:
    """A tiny model of the real one's picture size, for its facts alone."""
    from vlmphys.priors import known_categories, load_priors
    from vlmphys.prompts import all_texts
    from vlmphys.tiny import build_random, save_model_folder, tiny_config, train_tokenizer
    if not folder.is_dir():
        tokenizer = train_tokenizer(all_texts(load_priors(known_categories())), 600)
        config = tiny_config(len(tokenizer), image_size=SIZE, vision_hidden=32, vision_layers=2, text_hidden=64, text_layers=2, max_positions=4096)
        save_model_folder(build_random(config), tokenizer, folder)
    return folder


def measure(work: Path, options: argparse.Namespace) -> int:
    videos, model = make_bench(work, options.clips, options.distinct), make_model(work / "model")
    paths = sorted(map(str, videos.rglob("*.mp4")))
    random.Random(0).shuffle(paths)
    nbytes = sum(path.stat().st_size for path in (work / "distinct").glob("*.mp4")) / max(1, len(list((work / "distinct").glob("*.mp4"))))
    print(f"{options.clips} clips, {min(options.distinct, options.clips)} distinct files of {nbytes / 1e6:.1f} MB on average; "
          f"{options.workers} decoding processes, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}", flush=True)
    reader = fastest_reader(paths[:TRIED_CLIPS])
    halves = [floor(paths[::2], reader, options.workers)]
    packed = pack(work, videos, model, options)
    halves.append(floor(paths[1::2], reader, options.workers))
    floor_seconds, floor_processor = (sum(half[index] for half in halves) for index in (0, 1))
    floor_rate, rate = options.clips / floor_seconds, options.clips / packed["seconds"]
    print(f"(a, c) floor, {reader}: {floor_rate:.2f} clips/s (halves: {', '.join(f'{len(paths) / 2 / half[0]:.2f}' for half in halves)}), "
          f"{1e3 * floor_processor / options.clips:.0f} ms of processor time a clip")
    print(f"(b) pack: {rate:.2f} clips/s, {1e3 * packed['processor'] / options.clips:.0f} ms of processor time a clip (all of its processes, "
          f"their start included); 6,434 clips: {6434 / rate / 3600:.2f} hours")
    ratio = rate / floor_rate
    print(f"    {ratio:.3f} of the floor's clips/s (target: {TARGET_OF_FLOOR})")
    flat = show_memory(packed, options.clips)
    peers = peers_way(paths[:options.peer_clips])
    print(f"(d) peers' way, one process, on {min(len(paths), options.peer_clips)} clips: {peers:.2f} clips/s; pack is {rate / peers:.2f} "
          f"times as fast as one pass, {3 * rate / peers:.2f} times as three; 6,434 clips three times: {3 * 6434 / peers / 3600:.2f} hours")
    (first, first_bytes), (back, back_bytes) = read_back(work / "packed"), read_back(work / "packed")
    print(f"(e) read back, shuffled, in one process: {first:.0f} clips/s with {first_bytes / 2**30:.2f} GiB from the disk, again {back:.0f} clips/s "
          f"with {back_bytes / 2**30:.2f} GiB (target: {TARGET_READ_BACK})")
    print(json.dumps({"clips": options.clips, "floor_clips_per_second": floor_rate, "pack_clips_per_second": rate, "ratio": ratio,
                      "peers_clips_per_second": peers, "first_read_back_clips_per_second": first, "read_back_clips_per_second": back}))
    met = ratio >= TARGET_OF_FLOOR and flat and back >= TARGET_READ_BACK
    print("all targets met" if met else "not all targets met")
    return 0 if met else 1


def main() -> int:
    options = parse()
    if options.side:
        return pack_side(options.side, options.rest)
    if options.work:
        options.work.mkdir(parents=True, exist_ok=True)
        return measure(options.work, options)
    with tempfile.TemporaryDirectory() as folder:
        return measure(Path(folder), options)


if __name__ == "__main__":
    sys.exit(main())
