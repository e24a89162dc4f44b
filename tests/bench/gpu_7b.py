"""What a 7B run takes on one card of 24 GB, measured beside what `vlmphys plan` says.

    python tests/bench/gpu_7b.py                            # a CUDA machine, about 9 minutes, no network
    python tests/bench/gpu_7b.py --model tiny               # the same path on a CPU, with a model of a few layers

A Video-LLaVA of full size with random weights (memory does not depend on values) is trained on random pixels and random tokens, in
dialogues of the usual length, by the `single_4090` recipe, in a process whose device memory is capped: LoRA r 128 with micro-batch 1 and 2,
then full tuning with the optimizer in host memory, with as many layers as that memory holds. Prints Markdown for ds_configs/README.md. Exit
status 1 where a run failed.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

from vlmphys.cases import GIB

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))
RECIPE = ROOT / "launch/recipes/single_4090.yaml"
SHARD_BYTES = 2 * GIB
FRAMES = 8
# Clips of an optimizer step, by model; tokens of a dialogue beside its video, the shortest and the longest.
CLIPS = {"7b": 16, "tiny": 4}
TEXT_TOKENS = {"7b": (440, 640), "tiny": (60, 90)}
SUPERVISED = 0.4                # share of the text that is answers, in four turns
STATES = {"fan": ("stuck", "uneven")}
RUNS = ("lora_1", "lora_2", "full")
LAYERS = (32, 28, 24, 20, 16, 12, 8)
SIZES: dict[int, Any] = {}       # layers -> vlmphys.cases.ModelSize: counting a model takes seconds
SPLIT = ("data_seconds", "forward_seconds", "backward_seconds", "step_seconds")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Memory and speed of single_4090 on a Video-LLaVA of full size with random weights.")
    parser.add_argument("--model", choices=("7b", "tiny"), default="7b", help="tiny: two narrow layers, for a machine without GPU")
    parser.add_argument("--runs", default=",".join(RUNS), help=f"which of {', '.join(RUNS)}")
    parser.add_argument("--cap-gib", type=float, default=24.0, help="memory of the card that is stood in for, CUDA context included")
    parser.add_argument("--steps", type=int, default=3, help="optimizer steps of each run, at least 2: the first one is left out")
    parser.add_argument("--minutes", type=float, default=9.0, help="no run starts, and none goes on, after this time")
    parser.add_argument("--out", type=Path, help="folder for model, data and runs, 45 GB for 7b   [a temporary one, removed at the end]")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args(arguments)
    if not set(arguments.runs.split(",")) <= set(RUNS) or arguments.steps < 2:
        parser.error(f"--runs takes some of {','.join(RUNS)}, --steps at least 2")
    return arguments


def model_config(kind: str, layers: int):
    """The published config with `layers` of the language model's layers, or a tiny one with the same ids."""
    from published import published_config
    config = published_config(layers if kind == "7b" else 2)
    if kind == "tiny":
        config.vision_config.update({"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
                                     "image_size": 32, "patch_size": 16, "projection_dim": 32})
        config.text_config.update({"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 4,
                                   "head_dim": 16})
        config.video_seq_length = FRAMES * 5
    return config


def write_model(folder: Path, config, tokenizer) -> None:
    """A Hugging Face folder of random bf16 weights, drawn on the GPU where there is one, never more than a shard at a time."""
    import torch
    from safetensors.torch import save_file
    from transformers import VideoLlavaForConditionalGeneration
    folder.mkdir(parents=True)
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in VideoLlavaForConditionalGeneration(config).state_dict().items()}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    shard: dict[str, torch.Tensor] = {}
    places: dict[str, str] = {}

    def flush() -> None:
        name = f"model-{len(set(places.values())) + 1:05d}.safetensors"
        save_file(shard, folder / name, metadata={"format": "pt"})
        places.update(dict.fromkeys(shard, name))
        shard.clear()

    for name, shape in shapes.items():
        value = torch.empty(shape, dtype=torch.bfloat16, device=device)
        if value.ndim == 1 and "norm" in name and name.endswith("weight"):
            value.fill_(1)
        elif name.endswith("bias"):
            value.zero_()
        else:
            value.normal_(0, 0.02)
        shard[name] = value.cpu()
        if sum(tensor.nbytes for tensor in shard.values()) >= SHARD_BYTES:
            flush()
    if shard:
        flush()
    index = {"metadata": {"total_size": 2 * sum(shape.numel() for shape in shapes.values())}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_data(folder: Path, model: str, clips: int, text_tokens: tuple[int, int]) -> list[int]:
    """Packed data of `clips` train clips: random pixels, dialogues of four turns of random tokens. Returns the dialogues' lengths."""
    import numpy as np

    from vlmphys.dialogue_packing import DialogueMaker, DialogueSettings
    from vlmphys.files import json_bytes
    from vlmphys.model import load_tokenizer, read_facts
    from vlmphys.priors import load_priors
    from vlmphys.shard_files import VERSION, ShardWriter, manifest_of
    from vlmphys.shards import dialogues_schema, frames_schema
    from vlmphys.splits import write_split
    tokenizer = load_tokenizer(model)
    facts = read_facts(model, tokenizer)
    names = [f"fan/train/{number:04d}" for number in range(clips)]
    write_split(folder / "split.json", {"version": 1, "protocol": "weak", "seed": 0, "options": {}, "clips": dict.fromkeys(names, "train")})
    size, generator = facts.image_size, np.random.default_rng(0)
    of_frames = {"version": VERSION, "frames": FRAMES, "height": size, "width": size, "rule": "official", "fit": "crop"}
    of_dialogues = DialogueMaker(facts, tokenizer, load_priors(STATES), FRAMES, DialogueSettings(("multi_turn",))).meta()
    schemas = {"frames": (frames_schema(of_frames), of_frames), "dialogues": (dialogues_schema(of_dialogues), of_dialogues)}
    lengths = [int(length) for length in np.linspace(*text_tokens, clips)]
    for kind, (schema, meta) in schemas.items():
        (folder / kind).mkdir()
        writer = ShardWriter(folder / kind / f"{kind}-00000.arrow", schema, 16)
        for name, length in zip(names, lengths):
            if kind == "frames":
                writer.add({"clip_id": name, "category": "fan", "state": "train", "label": 0, "frame_index": list(range(FRAMES)),
                            "frames": generator.integers(0, 256, (FRAMES, size, size, 3), dtype=np.uint8),
                            "source_sha256": "", "source_fps": 60.0, "source_frames": FRAMES})
            else:
                writer.add({"clip_id": name, "variant": "multi_turn", **random_dialogue(generator, length, facts)})
        (folder / kind / "manifest.json").write_bytes(json_bytes(manifest_of(kind, meta, [writer.close()])))
    (folder / "frames" / "quarantine.jsonl").write_text("")
    return [FRAMES * facts.tokens_per_frame + length for length in lengths]


def random_dialogue(generator, length: int, facts) -> dict[str, Any]:
    """`<s>`, the video, then four turns of a question and an answer, `length` random tokens beside the video."""
    import numpy as np
    video = np.full(FRAMES * facts.tokens_per_frame, facts.video_token_id)
    text = generator.integers(259, 30000, length - 1)
    turn = np.zeros(len(text), dtype=np.int8)
    for number in range(4):
        end = len(text) * (number + 1) // 4
        turn[end - int(SUPERVISED * len(text) / 4):end] = number + 1
    total = 1 + len(video) + len(text)
    return {"input_ids": np.concatenate([[1], video, text]).astype(np.int32), "verdict_span": [total - 3, total - 1],
            "turn": np.concatenate([np.zeros(1 + len(video), np.int8), turn])}


def run_child(job_file: Path) -> None:
    """Train as the job file says, with the card's memory capped, and write what was seen beside it."""
    import torch

    from vlmphys.config import from_mapping
    job = json.loads(job_file.read_text())
    seen: dict[str, Any] = {}
    if torch.cuda.is_available():
        torch.zeros(1, device="cuda")
        free, total = torch.cuda.mem_get_info()
        context = total - free - torch.cuda.memory_reserved()
        torch.cuda.set_per_process_memory_fraction(min(1.0, (job["cap"] - context) / total))
        seen = {"gpu": torch.cuda.get_device_name(), "context": context}
    from peak_memory import peak_resident_bytes
    from vlmphys.train import train
    train(from_mapping(job["config"]))
    if seen:
        free, total = torch.cuda.mem_get_info()
        # What NCCL and cuBLAS take comes on top of the first context.
        seen.update(allocated=torch.cuda.max_memory_allocated(), reserved=torch.cuda.max_memory_reserved(),
                    context=total - free - torch.cuda.memory_reserved())
    seen["host"] = peak_resident_bytes()
    job_file.with_suffix(".seen.json").write_text(json.dumps(seen))


def run_one(name: str, config, arguments: argparse.Namespace, out: Path, deadline: float) -> dict[str, Any]:
    """Train `config` in a child process. Returns what was seen and logged, or `failed` with the last line that it said."""
    from dataclasses import asdict
    job_file = out / f"{name}.json"
    job_file.write_text(json.dumps({"cap": arguments.cap_gib * GIB, "config": asdict(config)}))
    command = [sys.executable, str(Path(__file__).resolve()), "--child", str(job_file)]
    print(f"{name}: training", flush=True)
    started = time.monotonic()
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=max(1.0, deadline - started), check=False)
    except subprocess.TimeoutExpired:
        return {"failed": f"stopped after {time.monotonic() - started:.0f} s: --minutes {arguments.minutes:g} were over"}
    (out / f"{name}.log").write_text(done.stdout + done.stderr)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        return {"failed": said[-1][:300] if said else f"exit status {done.returncode}"}
    rows = [json.loads(line) for line in (Path(config.out) / "metrics.jsonl").read_text().splitlines()][1:]
    logged = {key: mean(values) if len(values := [row[key] for row in rows if row.get(key) is not None]) else None
              for key in ("tokens_per_second", "samples_per_second", "mfu", *SPLIT)}
    shutil.rmtree(config.out)
    return {**json.loads(job_file.with_suffix(".seen.json").read_text()), **logged, "wall": time.monotonic() - started}


def run_config(name: str, model: Path, out: Path, steps: int, clips: int):
    """The recipe with this run's micro-batch and tuning."""
    from vlmphys.config import load_config
    micro_batch = 2 if name == "lora_2" else 1
    settings = [f"tune={'full' if name == 'full' else 'lora'}", f"per_device_train_batch_size={micro_batch}",
                f"gradient_accumulation_steps={clips // micro_batch}", f"max_steps={steps}", "logging_steps=1", "save_steps=0"]
    config = load_config(RECIPE, settings, {"model": str(model), "data": str(out / "packed"), "out": str(out / name)})
    return replace(config, deepspeed=str(ROOT / config.deepspeed))


def planned(config, hf, arguments: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    """The plan's estimate for the card that is stood in for and this machine's host memory, and whether it fits."""
    import torch

    from vlmphys import plan
    on_gpu = torch.cuda.is_available()
    host = plan.host_memory().available
    machine = plan.Machine(int(on_gpu), int(arguments.cap_gib * GIB) if on_gpu else None, host, None, "")
    layers = hf.text_config.num_hidden_layers
    SIZES[layers] = SIZES.get(layers) or plan.model_size(config, hf)
    size = plan.tuned_size(SIZES[layers], config)
    one = plan.estimate(plan.case_of(config, size, plan.read_data(config.data, config, size), machine))
    return plan.as_values(one, machine, config), not one.shortages(machine)


def without_locks(deepspeed: str, folder: Path) -> str:
    """The same JSON with buffers that are not page-locked: those are rounded up to powers of two."""
    settings = json.loads(Path(deepspeed).read_text())
    settings["zero_optimization"]["offload_optimizer"]["pin_memory"] = False
    path = folder / "single_4090_unlocked.json"
    path.write_text(json.dumps(settings))
    return str(path)


def full_as_far_as_it_goes(config, kind: str, arguments: argparse.Namespace, out: Path):
    """The first of (layers, page-locked or not) that the plan finds room for: config, model config, remark; None where there is none."""
    for layers in LAYERS if kind == "7b" else LAYERS[:1]:
        hf = model_config(kind, layers)
        for tried, remark in ((config, ""), (replace(config, deepspeed=without_locks(config.deepspeed, out)), ", buffers not page-locked")):
            if planned(tried, hf, arguments)[1]:
                return tried, layers, f"{layers if kind == '7b' else 2} layers{remark}"
    return None


def figure(value: float | None, unit: float = 1, digits: int = 2) -> str:
    """A number for a table, `-` for None."""
    return "-" if value is None or not math.isfinite(value) else f"{value / unit:,.{digits}f}"


def table_row(name: str, found: dict[str, Any], plan: dict[str, Any]) -> str:
    """One run as a row of Markdown."""
    label = {"lora_1": "LoRA r 128, micro-batch 1", "lora_2": "LoRA r 128, micro-batch 2", "full": "full tuning, micro-batch 1"}[name]
    label += f" ({found['remark']})" if found.get("remark") else ""
    expected = f"{figure(plan.get('gpu_peak'), GIB)} | {figure(plan.get('host_peak'), GIB)}"
    if "failed" in found:
        return f"| {label} | {found['failed'].replace('|', '/')} | - | - | - | - | - | {expected} |"
    held = found["reserved"] + found["context"] if "reserved" in found else None
    split = " / ".join(figure(found[key]) for key in SPLIT)
    return (f"| {label} | {figure(found.get('allocated'), GIB)} | {figure(held, GIB)} | {figure(found['host'], GIB)} | "
            f"{figure(found['tokens_per_second'], digits=0)} | {figure(found['mfu'], 0.01, 1)} | {split} | {expected} |")


def main() -> int:
    """Build, run, print."""
    arguments = parse()
    if arguments.child:
        run_child(arguments.child)
        return 0
    import torch
    if arguments.model == "7b" and not torch.cuda.is_available():
        print("error: there is no CUDA GPU here: --model tiny goes the same way on the CPU", file=sys.stderr)
        return 2
    deadline = time.monotonic() + 60 * arguments.minutes
    with tempfile.TemporaryDirectory(prefix="vlmphys-gpu-7b-") as temporary:
        out = arguments.out or Path(temporary)
        return benchmark(arguments, out, deadline)


def benchmark(arguments: argparse.Namespace, out: Path, deadline: float) -> int:
    """All runs, below `out`."""
    from llama_tokenizers import llama_trained

    from vlmphys.priors import load_priors
    from vlmphys.prompts import all_texts
    tokenizer = llama_trained(all_texts(load_priors(STATES)))
    model, kind = out / "model", arguments.model
    write_model(model, model_config(kind, 32), tokenizer)
    clips = CLIPS[kind]
    lengths = write_data(out / "packed", str(model), clips, TEXT_TOKENS[kind])
    print(f"model of {sum(path.stat().st_size for path in model.iterdir()) / 1e9:.2f} GB, {len(lengths)} clips of {min(lengths)} to "
          f"{max(lengths)} tokens", flush=True)
    results = {}
    for name in (name for name in RUNS if name in arguments.runs.split(",")):
        config, layers, remark = run_config(name, model, out, arguments.steps, clips), 32, ""
        if name == "full":
            choice = full_as_far_as_it_goes(config, kind, arguments, out)
            if choice is None:
                least = planned(config, model_config(kind, 32), arguments)[0]
                results[name] = {"failed": "by the plan not even the smallest model fits"}, least
                continue
            config, layers, remark = choice
            if layers != 32:
                shutil.rmtree(model)
                write_model(model, model_config(kind, layers), tokenizer)
        plan = planned(config, model_config(kind, layers), arguments)[0]
        results[name] = {**run_one(name, config, arguments, out, deadline), "remark": remark}, plan
    gpu = next((found["gpu"] for found, _ in results.values() if "gpu" in found), "no GPU")
    print(f"\n{gpu}; device memory of the process capped at {arguments.cap_gib:g} GiB; {clips} clips a step, {max(lengths)} tokens at "
          f"most, {arguments.steps} steps, the first one left out\n")
    print("| run | GiB allocated | GiB held, context too | host GiB (resident, mapped files too) | tokens/s | MFU, % | "
          "data / forward / backward / update, s | plan: card GiB | plan: host GiB |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, (found, plan) in results.items():
        print(table_row(name, found, plan))
    return int(any("failed" in found for found, _ in results.values()))


if __name__ == "__main__":
    sys.exit(main())
