"""Samples a second of three ways to train the same model on the same clips, measured in turns in one run.

    python tests/bench/train_speed.py                    # the tiny model, simulated clips, about five minutes on two CPU cores
    python tests/bench/train_speed.py --quick            # only whether it works; its figures mean nothing
    python tests/bench/train_speed.py --model DIR --videos DIR --set bf16=true gradient_checkpointing=true

(a) **floor**: forward and backward, and nothing else. Batches lie in memory, pixels normalised; tower and projector run without a
    graph, the head on the supervised positions only, as in (b). No optimizer, no DeepSpeed, no reading, no figures.
(b) **vlmphys**: `launch/train.py` as it is, through DeepSpeed with the JSON of --deepspeed: reading the packed frames, loss by turn,
    clipping, AdamW, metrics.jsonl and TensorBoard; its time is taken from the rows of its metrics.jsonl.
(c) **peers' way**: Hugging Face's Trainer with the same JSON. What is different from (b), and meant to be:
      - a collator decodes each clip from its mp4 at every visit and resizes it with `VideoLlavaImageProcessor`; (b) reads what
        data_prep/pack.py decoded once, which is not counted;
      - both towers are loaded (the second one never runs);
      - labels are passed to the model, which computes the logits of every position;
      - a batch carries an attention mask, since the collator pads as collators do;
      - the Trainer's own work between steps.
    What is the same as in (b), in (c)'s favour where peers often do worse: token ids and labels come ready from the packed dialogues,
    the decoder is ours, as many loading workers, the same trained weights, optimizer and clipping, no gradient through the towers;
    the clips' files are in the page cache.

All three: one process, the same threads, heap settings (`vlmphys.heap`), clips, global batch, micro-batch and precision; (c) shuffles
in an order of its own. Each round starts each of them anew, in an order that rotates, and counts from the end of the warm-up steps. A row
after the table says what (b) gains when it takes the tower's features in place of pixels (data_prep/pack.py --features); the features are
made before and not counted.
On a machine that others use, seconds are worth nothing, and the ratios of one run a little.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SIDES = {"a": "(a) bare forward and backward", "b": "(b) vlmphys, launch/train.py", "c": "(c) Hugging Face's Trainer"}
SPLIT = ("data_seconds", "forward_seconds", "backward_seconds", "step_seconds")
TARGETS = {"b/a": 0.9, "b/c": 1.5}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", help="tiny, a Hugging Face folder, or a hub id")
    parser.add_argument("--videos", type=Path, help="clips in the Phys-AD layout   [simulated ones]")
    parser.add_argument("--work", type=Path, help="folder for clips, packed data and runs, kept and used again   [a temporary one]")
    parser.add_argument("--deepspeed", default="ds_configs/zero2.json", help="for (b) and (c)")
    parser.add_argument("--set", dest="overrides", metavar="key=value", nargs="+", default=[], help="keys of the config, for all sides")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=16, help="optimizer steps that are counted")
    parser.add_argument("--warmup", type=int, default=4, help="optimizer steps before them")
    parser.add_argument("--workers", type=int, default=2, help="readers of (b), loading processes of (c)")
    parser.add_argument("--size", type=int, default=224, help="pixels of the simulated clips")
    parser.add_argument("--clips", type=int, default=24, help="simulated train clips of each of two categories")
    parser.add_argument("--quick", action="store_true", help="one short round on a few small clips")
    parser.add_argument("--side", choices=tuple(SIDES), help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.quick:
        chosen.rounds, chosen.steps, chosen.warmup, chosen.size, chosen.clips = 1, 2, 1, 64, 4
        chosen.overrides = ["per_device_train_batch_size=4", *chosen.overrides]
    return chosen


def config_of(options: argparse.Namespace, out: Path):
    """The training's config, which all sides follow."""
    from vlmphys.config import load_config
    fixed = [f"deepspeed={options.deepspeed}", f"max_steps={options.warmup + options.steps}", f"logging_steps={options.warmup}",
             f"dataloader_num_workers={options.workers}", "save_steps=0", "warmup_ratio=0",
             "lr_scheduler_type=constant", "learning_rate=1e-5", "features=false"]
    flags = {"model": options.model, "data": str(options.work / "packed"), "out": str(out)}
    return load_config(None, [*fixed, *options.overrides], flags)


def prepare(options: argparse.Namespace) -> None:
    """Clips, split and packed frames under `options.work`; what is there is used."""
    if options.videos is None:
        options.videos = options.work / "videos"
        command("data_prep/simulate.py", "--out", options.videos, "--categories", "fan,gear", "--clips-per-state", 2,
                "--train-clips", options.clips, "--size", options.size)
    if not (options.work / "packed" / "dialogues" / "manifest.json").is_file():
        command("data_prep/split.py", "--videos", options.videos, "--out", options.work / "split.json", "--protocol", "weak",
                "--val-share", 0, "--per-anomaly", 1)
        command("data_prep/pack.py", "--videos", options.videos, "--split", options.work / "split.json", "--model", options.model,
                "--out", options.work / "packed", "--variants", "multi_turn")


def command(*words: object, env: dict[str, str] | None = None) -> str:
    """Run a Python command from the repository's root and return what it printed; a failure ends the benchmark with its output."""
    done = subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, capture_output=True, text=True, env=env)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, words))} ended with status {done.returncode}\n{done.stdout[-4000:]}{done.stderr[-4000:]}")
    return done.stdout


def measure(side: str, options: argparse.Namespace, number: int) -> dict[str, float]:
    """One side's samples a second in a process of its own, and what else it tells."""
    # Every core, whatever the shell says: with fewer threads, (c)'s loading processes alone would have the cores that are left.
    env = {**os.environ, "OMP_NUM_THREADS": str(len(os.sched_getaffinity(0))), "TOKENIZERS_PARALLELISM": "false"}
    if side == "b":
        return measure_ours(options, options.work / f"run_{number}", env)
    words = [__file__, "--side", side, "--model", options.model, "--videos", options.videos, "--work", options.work,
             "--deepspeed", options.deepspeed, "--steps", options.steps, "--warmup", options.warmup, "--workers", options.workers]
    words += ["--set", *options.overrides] if options.overrides else []
    return json.loads(command(*words, env=env).splitlines()[-1])


def measure_ours(options: argparse.Namespace, out: Path, env: dict[str, str]) -> dict[str, float]:
    shutil.rmtree(out, ignore_errors=True)
    config = config_of(options, out)
    (options.work / "config.yaml").write_text(as_yaml(config))
    command("launch/train.py", "--config", options.work / "config.yaml", env=env)
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    shutil.rmtree(out)
    first, last = next(row for row in rows if row["step"] == options.warmup), rows[-1]
    later = [row for row in rows if row["step"] > options.warmup]
    split = {key: statistics.fmean(row[key] for row in later) for key in later[-1] if key in SPLIT}
    return {"rate": clips_counted(options) / (last["seconds"] - first["seconds"]), **split}


def as_yaml(config) -> str:
    from vlmphys.config import to_yaml
    return to_yaml(config)


def order_of(options: argparse.Namespace):
    """The packed data and the order in which (a) and (b) go through the train clips."""
    from vlmphys.batches import ClipOrder
    from vlmphys.records import Split
    from vlmphys.shards import open_packed
    config, packed = config_of(options, options.work / "none"), open_packed(options.work / "packed")
    global_batch = config.per_device_train_batch_size * config.gradient_accumulation_steps
    return packed, ClipOrder(packed.clip_ids(Split.TRAIN), global_batch, config.seed)


def clips_counted(options: argparse.Namespace) -> int:
    """Clips in the optimizer steps after the warm-up."""
    _, order = order_of(options)
    return sum(len(order.clips_of_step(step)) for step in range(options.warmup, options.warmup + options.steps))


def load_tuned(config, both_towers: bool):
    """The network with the run's trained weights marked, on the device, as `train` prepares it."""
    import torch
    from transformers import VideoLlavaForConditionalGeneration

    from vlmphys.heap import keep_freed_memory
    from vlmphys.model import load_model, quiet_transformers, resolve_source
    from vlmphys.train import prepare_modes
    from vlmphys.tuning import tune
    keep_freed_memory()
    dtype = torch.bfloat16 if config.bf16 else torch.float32
    if both_towers:
        with quiet_transformers():
            network = VideoLlavaForConditionalGeneration.from_pretrained(resolve_source(config.model), dtype=dtype)
    else:
        network = load_model(config.model, dtype)
    tuned = tune(network, config.tune, config.tune_o_proj, config.lora_r, config.lora_alpha, config.lora_dropout, config.seed)
    prepare_modes(network, config.gradient_checkpointing)
    return tuned.network


def run_floor(options: argparse.Namespace) -> dict[str, float]:
    """(a): forward and backward over the batches of (b), in (b)'s order."""
    import torch
    from torch.nn import functional

    from vlmphys.batches import load_step
    from vlmphys.model import embed, normalise_frames, read_facts, video_features
    from vlmphys.records import Variant
    config, facts = config_of(options, options.work / "none"), read_facts(options.model)
    packed, order = order_of(options)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = load_tuned(config, both_towers=False).to(device)
    steps = []
    for step in range(options.warmup + options.steps):
        batches = load_step(packed, order, step, 0, 1, config.per_device_train_batch_size, Variant(config.variant), facts.pad_token_id)
        steps.append([(batch.to(device), normalise_frames(batch.frames_BTHWC.to(device), facts.image_mean, facts.image_std, network.dtype))
                      for batch in batches])
    for step, batches in enumerate(steps):
        if step == options.warmup:
            synchronise()
            started = time.perf_counter()
        for batch, pixels_BTCHW in batches:
            with torch.no_grad():
                features = video_features(network, pixels_BTCHW)
            outputs = network.model(inputs_embeds=embed(network, batch.input_ids_BL, features), use_cache=False)
            logits_NV = network.lm_head(outputs.last_hidden_state.flatten(0, 1)[batch.keep_N]).float()
            functional.cross_entropy(logits_NV, batch.target_N).backward()
        network.zero_grad(set_to_none=True)
    synchronise()
    return {"rate": clips_counted(options) / (time.perf_counter() - started)}


def synchronise() -> None:
    import torch
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class Videos:
    """A dataset of clips by name, and a collator that reads them as peers' collators do."""

    def __init__(self, options: argparse.Namespace, variant: str, pad_token_id: int):
        from transformers import VideoLlavaImageProcessor

        from vlmphys.export import PREPROCESSOR
        from vlmphys.model import resolve_source
        from vlmphys.records import Split
        packed, _ = order_of(options)
        self.paths = {clip_id: path for clip_id, path in paths_below(options.videos)}
        self.clip_ids, self.frames = packed.clip_ids(Split.TRAIN), packed.frames.meta["frames"]
        self.rows = [packed.dialogues.row(clip_id, variant) for clip_id in self.clip_ids]
        self.pad_token_id = pad_token_id
        self.processor = VideoLlavaImageProcessor.from_pretrained(Path(resolve_source(options.model)) / PREPROCESSOR)

    def __len__(self) -> int:
        return len(self.clip_ids)

    def __getitem__(self, index: int) -> int:
        return index

    def collate(self, indices: list[int]) -> dict:
        import torch
        from torch.nn.utils.rnn import pad_sequence

        from vlmphys.video import read_frames
        pixels = []
        for index in indices:
            clip = read_frames(self.paths[self.clip_ids[index]], frames=self.frames)
            (frames_TCHW,) = self.processor(images=list(clip.frames_THWC), return_tensors="pt", input_data_format="channels_last").values()
            pixels.append(frames_TCHW)
        ids = [torch.tensor(self.rows[index].input_ids, dtype=torch.long) for index in indices]
        labels = [row.masked_fill(torch.tensor(self.rows[index].turn) == 0, -100) for row, index in zip(ids, indices)]
        return {"input_ids": pad_sequence(ids, batch_first=True, padding_value=self.pad_token_id),
                "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
                "labels": pad_sequence(labels, batch_first=True, padding_value=-100), "pixel_values_videos": torch.stack(pixels)}


def paths_below(videos: Path):
    from vlmphys.records import VIDEO_SUFFIXES, clip_id_of
    for path in sorted(videos.rglob("*")):
        if path.suffix.lower() in VIDEO_SUFFIXES:
            yield clip_id_of(path, videos), path


def run_trainer(options: argparse.Namespace) -> dict[str, float]:
    """(c): Hugging Face's Trainer and DeepSpeed."""
    import torch
    on_gpu = torch.cuda.is_available()
    if not on_gpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
    os.environ.update({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"})
    import deepspeed
    from transformers import Trainer, TrainerCallback, TrainingArguments

    from vlmphys.config import read_deepspeed_json
    from vlmphys.model import read_facts
    # As in our engine: a kernel for inference that would be compiled at the first start and is never used.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    config = config_of(options, options.work / "none")
    videos = Videos(options, config.variant, read_facts(options.model).pad_token_id)
    left_to_trainer = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
    settings = {**read_deepspeed_json(options.deepspeed), "bf16": {"enabled": "auto"}, **dict.fromkeys(left_to_trainer, "auto")}
    arguments = TrainingArguments(
        output_dir=str(options.work / "trainer"), deepspeed=settings, use_cpu=not on_gpu, bf16=config.bf16, max_steps=config.max_steps,
        per_device_train_batch_size=config.per_device_train_batch_size, gradient_accumulation_steps=config.gradient_accumulation_steps,
        learning_rate=config.learning_rate, lr_scheduler_type="constant", optim="adamw_torch_fused", max_grad_norm=config.max_grad_norm,
        dataloader_num_workers=options.workers, logging_steps=options.warmup, save_strategy="no", report_to=[], disable_tqdm=True,
        seed=config.seed, remove_unused_columns=False)
    seen = {"clips": 0}
    marks: dict[int, tuple[float, int]] = {}

    class Counting(Trainer):
        def training_step(self, model, inputs, *others, **named):
            seen["clips"] += len(inputs["input_ids"])
            return super().training_step(model, inputs, *others, **named)

    class Watch(TrainerCallback):
        def on_step_end(self, arguments, state, control, **named):
            if state.global_step in (options.warmup, config.max_steps):
                synchronise()
                marks[state.global_step] = time.perf_counter(), seen["clips"]

    Counting(model=load_tuned(config, both_towers=True), args=arguments, train_dataset=videos, data_collator=videos.collate,
             callbacks=[Watch()]).train()
    (started, before), (ended, after) = marks[options.warmup], marks[config.max_steps]
    return {"rate": (after - before) / (ended - started)}


def show(found: dict[str, list[dict[str, float]]]) -> None:
    """The table, the ratios, and where our step's time goes."""
    medians = {}
    print(f"\n{'samples/s':34}{'median':>9}   each round")
    for side, results in found.items():
        medians[side] = statistics.median(result["rate"] for result in results)
        print(f"{SIDES[side]:34}{medians[side]:9.2f}   {'  '.join(format(result['rate'], '.2f') for result in results)}")
    for name, target in TARGETS.items():
        upper, lower = name.split("/")
        each = [one["rate"] / other["rate"] for one, other in zip(found[upper], found[lower])]
        ratio = medians[upper] / medians[lower]
        print(f"{name} = {ratio:.2f} of the medians ({min(each):.2f} to {max(each):.2f} within a round); target at least {target}: "
              f"{'reached' if ratio >= target else 'missed'}")
    parts = [(key.removesuffix("_seconds"), statistics.median(result[key] for result in found["b"]))
             for key in SPLIT]
    print(f"a step of (b) in seconds: {', '.join(f'{name} {value:.4f}' for name, value in parts)}")


def measure_features(options: argparse.Namespace, number: int) -> float:
    """(b) once more, from the feature cache: samples a second."""
    taken = argparse.Namespace(**{**vars(options), "overrides": [*options.overrides, "features=true"]})
    return measure("b", taken, number)["rate"]


def show_features(rates: list[float], found: dict[str, list[dict[str, float]]]) -> None:
    """The row of the feature cache: its speed beside that of (b) in the same rounds."""
    each = [rate / result["rate"] for rate, result in zip(rates, found["b"])]
    print(f"{'(b) from the feature cache':34}{statistics.median(rates):9.2f}   {'  '.join(format(rate, '.2f') for rate in rates)}")
    print(f"features/pixels = {statistics.median(rates) / statistics.median(result['rate'] for result in found['b']):.2f} of the medians "
          f"({min(each):.2f} to {max(each):.2f} within a round)")


def main() -> int:
    options = parse()
    if options.side:
        print(json.dumps({"a": run_floor, "c": run_trainer}[options.side](options)))
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        options.work = (options.work or Path(temporary)).absolute()
        options.work.mkdir(parents=True, exist_ok=True)
        prepare(options)
        config, (_, order) = config_of(options, options.work / "none"), order_of(options)
        print(f"model {options.model}, {len(order.clip_ids)} train clips, {config.per_device_train_batch_size} x "
              f"{config.gradient_accumulation_steps} a step, {'bf16' if config.bf16 else 'fp32'}, "
              f"tune={config.tune}, {options.steps} steps after {options.warmup}, {options.rounds} round(s), "
              f"{len(os.sched_getaffinity(0))} CPU core(s)", flush=True)
        command("data_prep/pack.py", "--out", options.work / "packed", "--features", "--model", options.model)
        found: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
        from_features: list[float] = []
        for number in range(options.rounds):
            for side in [*SIDES][number % 3:] + [*SIDES][:number % 3]:
                found[side].append(measure(side, options, number))
                print(f"round {number + 1} {SIDES[side]}: {found[side][-1]['rate']:.2f} samples/s", flush=True)
            from_features.append(measure_features(options, number))
        show(found)
        show_features(from_features, found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
