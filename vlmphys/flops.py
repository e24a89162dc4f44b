"""The floating-point operations that an optimizer step needs by the model's sizes, and the share of the GPUs' peak that they come to.

Counted is what the mathematics asks for, not what is executed: padding, what gradient checkpointing computes again, a tower layer
whose output nobody reads, and the half of attention's matrix behind the causal mask are left out. A product of matrices of
m x k and k x n is 2 m k n operations. tests/unit/test_flops.py holds the formulas against torch's own counter.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch

from vlmphys.config import TrainConfig
from vlmphys.loss import STATISTICS
from vlmphys.records import MAX_TURNS
from vlmphys.tuning import ATTENTION, linear_shapes, tuned_modules

# Dense peak of the tensor cores in TFLOP/s, bf16 products added up in fp32, from NVIDIA's data sheets and architecture papers (the figures
# "with sparsity" halved); V100 and T4 have no bf16: theirs is fp16. The whole of torch.cuda.get_device_name must match, since
# what hides behind one more word is another chip.
PEAK_TFLOPS = (
    (r"NVIDIA GeForce RTX 4090", 165.2),
    (r"NVIDIA GeForce RTX 3090", 71.0),
    (r"(NVIDIA )?A100[- ](?!.*MIG).*", 312.0),
    (r"NVIDIA H100 PCIe", 756.0),
    (r"NVIDIA H100 NVL", 835.0),
    (r"NVIDIA H100 80GB HBM3", 989.0),
    (r"NVIDIA H200 NVL", 835.0),
    (r"NVIDIA H200", 989.0),
    (r"NVIDIA L40S", 362.0),
    (r"NVIDIA L40", 181.0),
    (r"NVIDIA L4", 121.0),
    (r"(NVIDIA )?A10", 125.0),
    (r"NVIDIA RTX A6000", 154.8),
    (r"Tesla V100-SXM.*", 125.0),
    (r"Tesla V100-PCIE.*", 112.0),
    (r"(NVIDIA |Tesla )T4", 65.0))


def gpu_peak_flops(config: TrainConfig, device: torch.device) -> float | None:
    """Peak of one GPU, operations a second: `gpu_peak_tflops`, else by its name. None without a GPU, or for one that is not known here."""
    if device.type != "cuda":
        return None
    return config.gpu_peak_tflops * 1e12 if config.gpu_peak_tflops else peak_by_name(torch.cuda.get_device_name(device))


def peak_by_name(name: str) -> float | None:
    """Operations a second of the GPU that calls itself `name`, None where it is not in the table."""
    return next((tflops * 1e12 for pattern, tflops in PEAK_TFLOPS if re.fullmatch(pattern, name)), None)


@dataclass(frozen=True)
class ModelFlops:
    """Operations of forward and backward pass together, by what they are proportional to."""

    per_token: float            # the language model's linear layers
    per_token_squared: float    # its attention: of the squared length of a clip
    per_supervised: float       # the head, on supervised positions alone
    per_clip: float             # the frozen tower and projector, forward only

    def of(self, sums: torch.Tensor) -> float:
        """Operations of all that `sums` (in the order of `STATISTICS`) counts, over all ranks."""
        named = dict(zip(STATISTICS, sums.tolist()))
        supervised = sum(named[f"tokens_turn_{k + 1}"] for k in range(MAX_TURNS))
        return (self.per_token * named["tokens"] + self.per_token_squared * named["tokens_squared"] + self.per_supervised * supervised
                + self.per_clip * named["clips"])


def model_flops(hf, config: TrainConfig, frames: int, tower: bool = True) -> ModelFlops:
    """The operations of a Video-LLaVA with the `VideoLlavaConfig` `hf`, tuned as `config` says, on clips of `frames` frames; without
    `tower` on features."""
    text = hf.text_config
    return ModelFlops(per_token=_language_layers(text, config),
                      per_token_squared=_attention(text),
                      # Forward, and the gradient of its input; it is frozen itself.
                      per_supervised=2 * 2 * text.hidden_size * text.vocab_size,
                      per_clip=frames * _frame(hf, tower))


def _language_layers(text, config: TrainConfig) -> float:
    """A token's operations in the linear layers: 2 a weight forward, 2 for the gradient of the layer's input, 2 for that of its weights
    where they are trained. A LoRA pair is two trained layers beside a frozen one."""
    layers, trained = text.num_hidden_layers, tuned_modules(config.tune_o_proj)
    rank = 0 if config.tune == "full" else config.lora_r
    total = 0
    for name, (inputs, outputs) in linear_shapes(text).items():
        # Below the first layer nothing is trained: its q, k and v need no gradient of their input.
        with_input_gradient = layers - 1 if name in ATTENTION else layers
        total += 2 * inputs * outputs * (layers + with_input_gradient)
        if name in trained and rank:
            total += 2 * rank * (inputs * (layers + with_input_gradient + layers) + outputs * 3 * layers)
        elif name in trained:
            total += 2 * inputs * outputs * layers
    return total


def _attention(text) -> float:
    """Queries times keys and weights times values, 2 operations each for half of the matrix (causal); backward twice that."""
    _, queries = linear_shapes(text)["q_proj"]
    return text.num_hidden_layers * 3 * 2 * queries


def _frame(hf, tower: bool) -> float:
    """A frame's operations in the tower, up to the layer whose output is read, and in the projector."""
    vision, feature_layer = hf.vision_config, hf.vision_feature_layer
    chosen = [feature_layer] if isinstance(feature_layer, int) else list(feature_layer)
    # Index 0 of the tower's outputs is its embeddings; negative ones count from the last layer's.
    layers = max(index if index >= 0 else vision.num_hidden_layers + 1 + index for index in chosen)
    patches = (vision.image_size // vision.patch_size) ** 2
    tokens, hidden = patches + 1, vision.hidden_size
    embedding = 2 * patches * vision.num_channels * vision.patch_size ** 2 * hidden
    layer = 2 * tokens * (4 * hidden ** 2 + 2 * hidden * vision.intermediate_size) + 4 * tokens ** 2 * hidden
    projector = 2 * tokens * (len(chosen) * hidden * hf.text_config.hidden_size + hf.text_config.hidden_size ** 2)
    return (embedding + layers * layer if tower else 0) + projector
