"""A training run in numbers, as the plan's formulas take it: the model's sizes, where a JSON puts states, a run, data and a machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vlmphys.config import TrainConfig

GIB = 1 << 30


def gib(size: float | None) -> str:
    """Bytes as a text in GiB, or MiB where that reads better; `-` for None."""
    if size is None:
        return "-"
    return f"{size / GIB:.2f} GiB" if size >= 0.1 * GIB else f"{size / (1 << 20):.1f} MiB"


@dataclass(frozen=True)
class ModelSize:
    """A Video-LLaVA in numbers: `parameters` by group, image tower left out, and the sizes that activations depend on."""

    parameters: dict[str, int]
    image_tower: int
    text_config: Any        # the language model's own config, for tuning.expected_counts
    trained: int            # T
    largest_trained: int    # parameters of the largest trained tensor
    layers: int
    hidden: int
    ffn: int
    heads: int
    queries: int            # width of all query heads
    keys: int               # width of all key heads, and of all value heads
    vocab: int
    vision_hidden: int
    vision_ffn: int
    vision_layers: int
    image_size: int         # pixels
    tokens_per_frame: int

    @property
    def base(self) -> int:
        """Parameters of the model as it is loaded for video: without image tower, without LoRA."""
        return sum(self.parameters.values())

    @property
    def published(self) -> int:
        """Parameters with both towers, as the model's authors count."""
        return self.base + self.image_tower


@dataclass(frozen=True)
class Sharding:
    """What a DeepSpeed JSON says of where states lie; `stage` 0 stands for torch alone (`engine: plain`), or for FSDP."""

    name: str
    stage: int = 0
    optimizer_on: str = "device"        # device | host | disk
    parameters_on: str = "device"       # device | host | disk (stage 3 only)
    optimizer_path: str | None = None   # where on a disk; None: in the run folder
    parameters_path: str | None = None
    pinned: bool = False                # host buffers are page-locked
    bucket: int = 0                     # elements of a gradient bucket
    buckets: int = 1
    live: int = 0                       # elements gathered at one time (stage 3)
    sub_group: int = 0                  # elements updated at one time (stage 3)
    swapped: int = 0                    # elements of the host buffers through which weights come from disk (stage 3)
    fsdp: bool = False                  # torch's FSDP2; `stage` is 0 then


@dataclass(frozen=True)
class Case:
    """One run on one kind of machine. `tokens`, `supervised`: of the longest clip; `steps`: optimizer steps, None where not known."""

    size: ModelSize
    config: TrainConfig
    sharding: Sharding
    ranks: int
    ranks_on_node: int
    on_gpu: bool
    tokens: int
    supervised: int
    frames: int
    steps: int | None
    clips: int | None = None        # train clips, None where not known
    features: bool = False          # the tower is not loaded, its features are read

    @property
    def a(self) -> int:
        """Bytes of a number in the forward pass."""
        return 2 if self.config.bf16 else 4

    @property
    def lora(self) -> bool:
        """Whether LoRA is added to the model."""
        return self.config.tune != "full"

    @property
    def loaded(self) -> int:
        """Bytes of a number as the checkpoint is loaded (engine.loading_dtype)."""
        return 2 if self.config.bf16 and (self.sharding.stage or self.sharding.fsdp) else 4

    @property
    def packed(self) -> int:
        """Parameters that `tune: qlora` packs into 4 bits: the linear layers of the language model's blocks."""
        if self.config.tune != "qlora":
            return 0
        return sum(self.size.parameters[group] for group in ("LLM attention q, k, v", "LLM attention o", "LLM FFN"))

    @property
    def layer(self) -> int:
        """Parameters of one block of the language model, LoRA included."""
        blocks = sum(self.size.parameters[group] for group in ("LLM attention q, k, v", "LLM attention o", "LLM FFN"))
        return (blocks + (self.size.trained if self.lora else 0)) // self.size.layers

    @property
    def tower(self) -> int:
        """Parameters of the video tower that are loaded."""
        return 0 if self.features else self.size.parameters["vision tower"]

    @property
    def total(self) -> int:
        """P: parameters on the device, LoRA included."""
        return self.size.base - self.size.parameters["vision tower"] + self.tower + (self.size.trained if self.lora else 0)

    @property
    def share(self) -> float:
        """T over the number of ranks: trained parameters whose states one rank keeps under ZeRO."""
        return self.size.trained / self.ranks

    @property
    def global_batch(self) -> int:
        """Clips of an optimizer step."""
        return self.config.per_device_train_batch_size * self.config.gradient_accumulation_steps * self.ranks

    @property
    def micro_batch(self) -> int:
        """Clips in the largest micro-batch: no more than there are."""
        wanted = self.config.per_device_train_batch_size
        return wanted if self.clips is None else min(wanted, self.clips)

    @property
    def positions(self) -> int:
        """Token positions of a micro-batch, padding included."""
        return self.micro_batch * self.tokens


def sharding_of(name: str, settings: dict[str, Any]) -> Sharding:
    """What the JSON of a DeepSpeed engine comes to, with DeepSpeed's own defaults (0.19) for what it leaves out."""
    zero = settings["zero_optimization"]
    stage = zero["stage"]
    place = {"none": "device", "cpu": "host", "nvme": "disk"}
    optimizer, parameters = zero.get("offload_optimizer") or {}, zero.get("offload_param") or {}
    overlap = zero.get("overlap_comm", stage == 3)
    contiguous = zero.get("contiguous_gradients", True) or optimizer.get("device", "none") != "none"
    return Sharding(
        name=name, stage=stage, optimizer_on=place[optimizer.get("device", "none")], parameters_on=place[parameters.get("device", "none")],
        optimizer_path=optimizer.get("nvme_path"), parameters_path=parameters.get("nvme_path"),
        pinned=bool(optimizer.get("pin_memory")), bucket=int(zero.get("reduce_bucket_size", 5e8)) if contiguous else 0,
        buckets=2 if overlap and stage < 3 else 1, sub_group=int(zero.get("sub_group_size", 1e9)),
        swapped=(int(parameters.get("buffer_count", 5)) * int(parameters.get("buffer_size", 1e8))
                 if parameters.get("device") == "nvme" else 0),
        live=int(zero.get("stage3_max_live_parameters", 1e9)) + int(zero.get("stage3_prefetch_bucket_size", 5e7)) if stage == 3 else 0)


@dataclass(frozen=True)
class Machine:
    """What a run may use, in bytes: `gpu` of one card (None: no GPU, all is in host memory), `host` and `disk` of one machine.

    Several machines are alike, with `gpus` cards each; the run folder is on a disk that they share.
    """

    gpus: int
    gpu: int | None
    host: int
    disk: int | None        # None: not looked at
    described: str
    card: str | None = None     # its name, where it is here
    disk_here: bool = True      # the disks are this machine's; else every disk that a run uses has `disk`
    machines: int = 1


@dataclass(frozen=True)
class Data:
    """What of the packed data decides memory and time. Where nothing is packed: no clips, and assumed lengths."""

    clips: list[str] | None
    tokens: int             # of the longest dialogue, video span included
    supervised: int         # most in one dialogue
    frames: int
    described: str
    usual: tuple[float, float, float] | None = None     # means over clips: tokens, their square, supervised; None: as the longest
    features: bool = False  # they come as features in place of pixels
