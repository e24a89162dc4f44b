"""What a training run is told: one frozen dataclass, read from YAML and `key=value` overrides, checked in one go."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import yaml

from vlmphys.records import MAX_TURNS, Variant, nearest, sha256_text

TUNES = ("full", "lora", "qlora")
ENGINES = ("auto", "plain", "deepspeed", "fsdp")
SCHEDULES = ("cosine", "linear", "constant")
LOSS_MODES = ("token", "turn_mean")
FEATURES = ("auto", "true", "false")

# Keys that may differ between the two halves of a resumed run: they change where and how fast it computes, not what.
# The split of the global batch into ranks and micro-batches is among them, because the global batch itself is compared; and so is
# `features`, because data.json says what of the two was taken, and that is compared.
FREE_ON_RESUME = frozenset({
    "out", "data", "engine", "deepspeed", "per_device_train_batch_size", "gradient_accumulation_steps",
    "gradient_checkpointing", "logging_steps", "save_steps", "save_total_limit", "dataloader_num_workers", "turn_grad_norm_steps",
    "per_device_eval_batch_size", "gpu_peak_tflops", "force", "features"})

# What the JSON of a DeepSpeed engine may say, and where the rest belongs.
DEEPSPEED_KEYS = ("zero_optimization", "aio", "comms_logger", "flops_profiler", "wall_clock_breakdown", "memory_breakdown",
                  "communication_data_type")
ZERO_STAGES = (1, 2, 3)
OFFLOAD_DEVICES = ("none", "cpu", "nvme")
BELONGS_TO_RUN = {
    "train_batch_size": "per_device_train_batch_size", "train_micro_batch_size_per_gpu": "per_device_train_batch_size",
    "gradient_accumulation_steps": "gradient_accumulation_steps", "gradient_clipping": "max_grad_norm",
    "optimizer": "learning_rate", "scheduler": "lr_scheduler_type", "bf16": "bf16", "bfloat16": "bf16", "fp16": "bf16",
    "amp": "bf16", "torch_autocast": "bf16", "data_types": "bf16"}

# Short names of other programs, which the spelling alone would take for another key.
ALIASES = {
    "lr": "learning_rate", "epochs": "num_train_epochs", "num_epochs": "num_train_epochs", "steps": "max_steps",
    "batch_size": "per_device_train_batch_size", "train_batch_size": "per_device_train_batch_size", "batch": "per_device_train_batch_size",
    "micro_batch_size": "per_device_train_batch_size", "eval_batch_size": "per_device_eval_batch_size",
    "grad_accum": "gradient_accumulation_steps", "accumulation": "gradient_accumulation_steps",
    "accumulation_steps": "gradient_accumulation_steps", "wd": "weight_decay", "decay": "weight_decay", "warmup": "warmup_ratio",
    "scheduler": "lr_scheduler_type", "clip": "max_grad_norm", "grad_clip": "max_grad_norm", "dropout": "lora_dropout", "rank": "lora_r",
    "r": "lora_r", "alpha": "lora_alpha", "workers": "dataloader_num_workers", "num_workers": "dataloader_num_workers",
    "patience": "early_stopping_patience", "fp16": "bf16", "precision": "bf16", "output_dir": "out",
    "checkpointing": "gradient_checkpointing"}


@dataclass(frozen=True)
class TrainConfig:
    """A run. Names are those of Hugging Face's `TrainingArguments` where the meaning is the same."""

    model: str = "tiny"                     # `tiny`, a Hugging Face folder, or a hub id
    data: str = "packed"                    # folder written by data_prep/pack.py
    out: str = "runs/train"                 # run folder
    variant: str = "multi_turn"             # multi_turn | single_turn | no_physics
    features: str = "auto"                  # auto: data_prep/pack.py --features in place of pixels, where made by this tower | true | false

    tune: str = "full"                      # full: q, k, v and FFN of the LLM; lora: PEFT on the same modules; qlora: lora, base in 4 bits
    tune_o_proj: bool = False               # also the attention's output projection
    lora_r: int = 128                       # rank
    lora_alpha: int = 256                   # the update is scaled by lora_alpha / lora_r
    lora_dropout: float = 0.05              # probability

    engine: str = "auto"                    # auto: deepspeed where `deepspeed` names a file, else plain
    deepspeed: str | None = None            # JSON in ds_configs/: sharding and offload only
    bf16: bool = False                      # bfloat16 arithmetic with fp32 master weights; false: fp32
    gradient_checkpointing: bool = False    # recompute activations of the LLM in the backward pass

    per_device_train_batch_size: int = 16   # clips in a micro-batch
    gradient_accumulation_steps: int = 1    # micro-batches of a rank between optimizer steps
    num_train_epochs: float = 10.0          # passes over the train clips
    max_steps: int = -1                     # optimizer steps; -1: as num_train_epochs says

    learning_rate: float = 1e-3             # peak
    lr_scheduler_type: str = "cosine"       # cosine | linear (both to 0) | constant
    warmup_ratio: float = 0.05              # share of the steps
    weight_decay: float = 0.0               # decoupled (AdamW)
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    max_grad_norm: float = 1.0              # global L2 norm; 0: no clipping

    loss_mode: str = "token"                # token: mean over supervised tokens; turn_mean: mean over the means of the turns
    turn_weights: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)  # how much each answer counts in the loss

    eval_steps: int = 0                     # optimizer steps between validations on the val split; 0: none
    per_device_eval_batch_size: int = 8     # clips in a validation batch
    load_best_model_at_end: bool = False    # the run's model is that of the best validation, not the last one
    early_stopping_patience: int = 0        # validations without a gain before the run ends (vlmphys/validation.py); 0: it goes on

    logging_steps: int = 10                 # optimizer steps between rows of metrics.jsonl
    save_steps: int = 200                   # optimizer steps between checkpoints; 0: none but what guards the end of the run
    save_total_limit: int = 2               # checkpoints kept
    turn_grad_norm_steps: int = 0           # optimizer steps between measurements of each turn's own gradient norm; 0: none
    dataloader_num_workers: int = 2         # threads that read the next steps' clips ahead; 0: read when needed
    gpu_peak_tflops: float = 0.0            # dense bf16 peak of one GPU for the FLOPs utilisation; 0: by the GPU's name
    seed: int = 0                           # order of clips, LoRA's initial weights, dropout
    force: bool = False                     # start although the plan says that memory or disk will not do

    def resolved_engine(self) -> str:
        """`plain`, `deepspeed` or `fsdp`: what `engine` comes to."""
        if self.engine != "auto":
            return self.engine
        return "deepspeed" if self.deepspeed else "plain"


FIELDS = {field.name: field for field in fields(TrainConfig)}


def load_config(path: str | Path | None = None, overrides: list[str] = (), flags: dict[str, Any] | None = None) -> TrainConfig:
    """The config of a YAML file, then `key=value` overrides, then command-line flags (those that are not None).

    Raises one ValueError that lists every problem: unknown keys with the nearest name, wrong types, values out of range.
    """
    given: dict[str, Any] = {}
    problems: list[str] = []
    if path is not None:
        given.update(_read_yaml(Path(path)))
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals:
            problems.append(f"--set {text!r} has no '=': write --set key=value")
            continue
        try:
            given[key.strip()] = yaml.safe_load(value)
        except yaml.YAMLError:
            problems.append(f"--set {text!r}: the value is not readable as YAML")
    given.update({key: value for key, value in (flags or {}).items() if value is not None})
    return from_mapping(given, problems)


def from_mapping(given: dict[str, Any], problems: list[str] | None = None) -> TrainConfig:
    """A checked config from plain values; ValueError that lists all problems, those already in `problems` first."""
    problems = list(problems or [])
    values = {}
    for key, value in given.items():
        if key not in FIELDS:
            problems.append(f"unknown key {key!r}{_nearest(key, FIELDS)}")
            continue
        try:
            values[key] = _coerce(key, value)
        except ValueError as error:
            problems.append(str(error))
    config = TrainConfig(**values)
    problems += _out_of_range(config)
    if problems:
        raise ValueError(_joined("the config", problems))
    if config.resolved_engine() != "deepspeed":
        config = replace(config, deepspeed=None)
    return replace(config, engine=config.resolved_engine())


def to_yaml(config: TrainConfig) -> str:
    """The resolved config as YAML, in the order of its fields."""
    return yaml.safe_dump(asdict(config), sort_keys=False, allow_unicode=True)


def read_back(path: Path) -> TrainConfig:
    """The config of a run folder's `config.yaml`. Its values are not checked again: the run that wrote it did.

    Raises ValueError for keys that are not known here: another version wrote them, and what they asked for would be lost.
    """
    stored = _read_yaml(path)
    unknown = [f"unknown key {key!r}{_nearest(key, FIELDS)}" for key in stored if key not in FIELDS]
    if unknown:
        raise ValueError(_joined(str(path), unknown) + "; use the vlmphys that wrote it")
    return TrainConfig(**{key: tuple(value) if isinstance(value, list) else value for key, value in stored.items()})


def differences(old: TrainConfig, new: TrainConfig) -> list[str]:
    """The keys that forbid resuming `old` as `new`, each with both values."""
    return [f"{name} ({getattr(old, name)!r} there, {getattr(new, name)!r} here)"
            for name in FIELDS if name not in FREE_ON_RESUME and getattr(old, name) != getattr(new, name)]


def config_sha256(config: TrainConfig) -> str:
    """A digest of all that must agree when a run is resumed."""
    return sha256_text(json.dumps({key: value for key, value in asdict(config).items() if key not in FREE_ON_RESUME}, sort_keys=True))


def read_deepspeed_json(path: str) -> dict[str, Any]:
    """The sharding and offload settings of a file in ds_configs/.

    Raises ValueError where the file is missing, is no JSON, or sets what the run's config sets (batch size, learning rate, precision).
    """
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"deepspeed: no such file {path!r}; the ones that come with vlmphys are in ds_configs/")
    try:
        settings = json.loads(file.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"deepspeed: {path} is not readable as JSON ({error})") from error
    if not isinstance(settings, dict):
        raise ValueError(f"deepspeed: {path} must hold a JSON object")
    problems = []
    for key in settings:
        if key in BELONGS_TO_RUN:
            problems.append(f"sets {key!r}, which the run's config decides: remove it there and use {BELONGS_TO_RUN[key]!r}")
        elif key not in DEEPSPEED_KEYS:
            problems.append(f"has the unknown key {key!r}{_nearest(key, DEEPSPEED_KEYS)}")
    sharding = settings.get("zero_optimization", {})
    stage = sharding.get("stage") if isinstance(sharding, dict) else None
    if not isinstance(sharding, dict):
        problems.append(f"has zero_optimization {sharding!r}: an object is needed, for instance {{\"stage\": 2}}")
    elif stage not in ZERO_STAGES:
        problems.append(f"has zero_optimization.stage {stage!r}: allowed are {', '.join(map(str, ZERO_STAGES))} "
                        "(without sharding use engine: plain)")
    for part in ("offload_optimizer", "offload_param") if isinstance(sharding, dict) else ():
        offload = sharding.get(part) or {}
        device = offload.get("device", "none") if isinstance(offload, dict) else offload
        if device not in OFFLOAD_DEVICES:
            problems.append(f"has zero_optimization.{part} {offload!r}: an object with a device is needed: {', '.join(OFFLOAD_DEVICES)}")
        elif stage != 3 and (device == "nvme" or part == "offload_param" and device != "none"):
            problems.append(f"has zero_optimization.{part}.device {device!r} at stage {stage}: DeepSpeed offers that at stage 3 only")
    if problems:
        raise ValueError(_joined(f"deepspeed: {path}", problems))
    return settings


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"no such config file: {path}")
    try:
        content = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not readable as YAML ({str(error).splitlines()[0]})") from error
    if not isinstance(content or {}, dict):
        raise ValueError(f"{path} must hold 'key: value' lines")
    return content or {}


def _coerce(key: str, value: Any) -> Any:
    """`value` in the type of field `key`. YAML 1.1 reads 1e-3 as a text, so numbers in texts are accepted."""
    kind = FIELDS[key].type
    if kind == "str | None":
        if value is None or value == "":
            return None
        kind = "str"
    if kind == "bool":
        if isinstance(value, bool):
            return value
        raise ValueError(f"{key} is {value!r}: true or false is needed")
    if kind == "tuple[float, ...]":
        return _numbers(key, value)
    if key == "features" and isinstance(value, bool):
        return str(value).lower()   # as YAML reads it
    if kind == "str":
        if isinstance(value, (str, Path)):
            return str(value)
        raise ValueError(f"{key} is {value!r}: a text is needed")
    try:
        number = float(value) if not isinstance(value, bool) else None
    except (TypeError, ValueError, OverflowError):
        number = None
    if number is None or not math.isfinite(number) or (kind == "int" and number != int(number)):
        raise ValueError(f"{key} is {value!r}: {'a whole number' if kind == 'int' else 'a finite number'} is needed")
    return int(number) if kind == "int" else number


def _numbers(key: str, value: Any) -> tuple[float, ...]:
    """Numbers from a YAML list or from a text such as `1,1,1,4`."""
    parts = value.split(",") if isinstance(value, str) else value
    try:
        numbers = tuple(float(part) for part in parts)
    except (TypeError, ValueError):
        raise ValueError(f"{key} is {value!r}: numbers are needed, such as [1, 1, 1, 4] or 1,1,1,4") from None
    if not all(math.isfinite(number) for number in numbers):
        raise ValueError(f"{key} is {value!r}: finite numbers are needed")
    return numbers


def _out_of_range(config: TrainConfig) -> list[str]:
    """Every rule that a value or a pair of values breaks: value, rule, cure."""
    problems = []
    for key, allowed in (("variant", tuple(variant.value for variant in Variant)), ("tune", TUNES), ("engine", ENGINES),
                         ("lr_scheduler_type", SCHEDULES), ("loss_mode", LOSS_MODES), ("features", FEATURES)):
        value = getattr(config, key)
        if value not in allowed:
            problems.append(f"{key} is {value!r}: allowed are {', '.join(allowed)}{_nearest(value, allowed)}")
    for key in ("per_device_train_batch_size", "gradient_accumulation_steps", "lora_r", "lora_alpha", "logging_steps", "save_total_limit",
                "per_device_eval_batch_size"):
        if getattr(config, key) < 1:
            problems.append(f"{key} is {getattr(config, key)}: at least 1 is needed")
    for key in ("weight_decay", "max_grad_norm", "save_steps", "seed", "eval_steps", "early_stopping_patience", "turn_grad_norm_steps",
                "dataloader_num_workers", "gpu_peak_tflops"):
        if getattr(config, key) < 0:
            problems.append(f"{key} is {getattr(config, key)}: it cannot be negative")
    for key in ("learning_rate", "adam_epsilon"):
        if getattr(config, key) <= 0:
            problems.append(f"{key} is {getattr(config, key)}: it must be above 0")
    for key in ("warmup_ratio", "lora_dropout", "adam_beta1", "adam_beta2"):
        if not 0 <= getattr(config, key) < 1:
            problems.append(f"{key} is {getattr(config, key)}: it must be at least 0 and below 1")
    if config.max_steps != -1 and config.max_steps < 1:
        problems.append(f"max_steps is {config.max_steps}: give at least 1, or -1 to go by num_train_epochs")
    if config.max_steps == -1 and config.num_train_epochs <= 0:
        problems.append(f"num_train_epochs is {config.num_train_epochs}: it must be above 0")
    if len(config.turn_weights) != MAX_TURNS or min(config.turn_weights, default=-1) < 0 or sum(config.turn_weights) <= 0:
        problems.append(f"turn_weights is {list(config.turn_weights)}: {MAX_TURNS} numbers are needed, none negative and not all 0")
    if not config.eval_steps and (config.load_best_model_at_end or config.early_stopping_patience):
        problems.append(f"eval_steps is 0, but load_best_model_at_end is {config.load_best_model_at_end} and early_stopping_patience is "
                        f"{config.early_stopping_patience}: both need validations, so set eval_steps as well")
    if config.engine == "deepspeed" and not config.deepspeed:
        problems.append("engine is 'deepspeed' but deepspeed names no file: add deepspeed: ds_configs/zero2.json")
    sharded = config.engine == "fsdp"
    if config.resolved_engine() == "deepspeed" and config.deepspeed:
        try:
            sharded = sharded or read_deepspeed_json(config.deepspeed)["zero_optimization"]["stage"] == 3
        except ValueError as error:
            problems.append(str(error))
    if config.turn_grad_norm_steps and sharded:
        problems.append(f"turn_grad_norm_steps is {config.turn_grad_norm_steps}: where weights are sharded (ZeRO-3, fsdp) no rank can "
                        "measure a turn's gradient alone; set it to 0, or use engine plain or a JSON with ZeRO stage 1 or 2")
    if config.logging_steps > 0 and config.turn_grad_norm_steps % config.logging_steps:
        problems.append(f"turn_grad_norm_steps is {config.turn_grad_norm_steps}: it must be a multiple of logging_steps "
                        f"({config.logging_steps}), so that each measurement has its row in metrics.jsonl")
    return problems


def _nearest(name: str, known) -> str:
    if (meant := ALIASES.get(str(name).lower())) in known:
        return f" (did you mean {meant!r}?)"
    return nearest(name, known)


def _joined(what: str, problems: list[str]) -> str:
    if len(problems) == 1:
        return f"{what}: {problems[0]}"
    return f"{what} has {len(problems)} problems:\n" + "\n".join(f"  - {problem}" for problem in problems)
