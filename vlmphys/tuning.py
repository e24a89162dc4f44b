"""What is trained: the language model's q, k, v projections and FFN, whole or through LoRA, and nothing else.

The multi-turn paper freezes tower and projector and updates self-attention (QKV) and FFN of the language model. A filter on names
has let others train towers by mistake, or nothing at all; here the trained set is checked by name and, against a count
computed from the model's config, by number of parameters.
"""

from __future__ import annotations

import importlib.util
import math
import re
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from rich.table import Table
from torch import nn

from vlmphys.config import TrainConfig, read_deepspeed_json

ATTENTION = ("q_proj", "k_proj", "v_proj")
FFN = ("gate_proj", "up_proj", "down_proj")
# Group of a parameter by the beginning of its name in VideoLlavaForConditionalGeneration; the first that matches holds.
GROUPS = (
    ("vision tower", r"model\.(video|image)_tower\."),
    ("projector", r"model\.multi_modal_projector\."),
    ("embeddings", r"model\.language_model\.embed_tokens\."),
    ("LoRA", r"model\.language_model\.layers\..*\.lora_[AB]\."),
    ("LLM attention q, k, v", r"model\.language_model\.layers\.\d+\.self_attn\.[qkv]_proj\."),
    ("LLM attention o", r"model\.language_model\.layers\.\d+\.self_attn\.o_proj\."),
    ("LLM FFN", r"model\.language_model\.layers\.\d+\.mlp\."),
    ("norms", r"model\.language_model\..*norm\."),
    ("head", r"lm_head\."))


@dataclass(frozen=True)
class Tuned:
    """A network whose trained parameters are marked by `requires_grad`, and its PEFT wrapper where LoRA is used."""

    network: nn.Module
    adapter: PeftModel | None
    groups: dict[str, tuple[int, int]]      # group -> (all parameters, trained ones)

    def trained(self) -> dict[str, nn.Parameter]:
        """The trained parameters by name."""
        return {name: parameter for name, parameter in self.network.named_parameters() if parameter.requires_grad}


def tuned_modules(o_proj: bool) -> dict[str, str]:
    """Name of each tuned linear layer -> the group that it counts to."""
    modules = {name: "LLM attention q, k, v" for name in ATTENTION}
    modules.update({"o_proj": "LLM attention o"} if o_proj else {})
    modules.update({name: "LLM FFN" for name in FFN})
    return modules


def tuned_pattern(o_proj: bool) -> str:
    """A regular expression for the whole module name, so that the tower's own q_proj never matches."""
    attention = "|".join(name for name in tuned_modules(o_proj) if name not in FFN)
    return rf"model\.language_model\.layers\.\d+\.(self_attn\.({attention})|mlp\.({'|'.join(FFN)}))"


def linear_shapes(text_config: Any) -> dict[str, tuple[int, int]]:
    """Inputs and outputs of each linear layer in a block of a Llama-like language model."""
    hidden, ffn = text_config.hidden_size, text_config.intermediate_size
    head = getattr(text_config, "head_dim", None) or hidden // text_config.num_attention_heads
    queries, keys = text_config.num_attention_heads * head, text_config.num_key_value_heads * head
    return {"q_proj": (hidden, queries), "k_proj": (hidden, keys), "v_proj": (hidden, keys), "o_proj": (queries, hidden),
            "gate_proj": (hidden, ffn), "up_proj": (hidden, ffn), "down_proj": (ffn, hidden)}


def expected_counts(text_config: Any, tune: str, o_proj: bool, lora_r: int) -> dict[str, int]:
    """Trained parameters of each group, from the config of a Llama-like language model alone."""
    layers, shapes = text_config.num_hidden_layers, linear_shapes(text_config)
    biased = {name: getattr(text_config, "mlp_bias" if name in FFN else "attention_bias", False) for name in shapes}
    counts: dict[str, int] = {}
    for name, group in tuned_modules(o_proj).items():
        inputs, outputs = shapes[name]
        if tune != "full":
            counts["LoRA"] = counts.get("LoRA", 0) + layers * lora_r * (inputs + outputs)
        else:
            counts[group] = counts.get(group, 0) + layers * (inputs * outputs + (outputs if biased[name] else 0))
    return counts


def check_qlora(config: TrainConfig) -> None:
    """Refuse `tune: qlora` where it cannot work: ValueError with the cure, before anything is loaded or written. Other modes pass."""
    if config.tune != "qlora":
        return
    stage = read_deepspeed_json(config.deepspeed)["zero_optimization"]["stage"] if config.deepspeed else None
    if stage not in (1, 2):
        given = config.deepspeed or f"engine {config.engine}"
        raise ValueError(f"tune is 'qlora' with {given}: its packed 4-bit weights are not divided among ranks, which leaves ZeRO-1 and "
                         "ZeRO-2; use deepspeed: ds_configs/zero2.json (or single_4090.json), or tune: lora")
    instead = "or use tune: lora, which does without"
    if not torch.cuda.is_available():
        raise ValueError(f"tune is 'qlora', but there is no CUDA GPU here, and its 4-bit weights need one: run it elsewhere, {instead}")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError("tune is 'qlora', but bitsandbytes is not installed: python -m pip install --editable '.[qlora]', " + instead)


def tune(network, mode: str, o_proj: bool = False, lora_r: int = 128, lora_alpha: int = 256, lora_dropout: float = 0.05, seed: int = 0,
         base_name: str = "") -> Tuned:
    """Freeze all of `network`, then mark what is trained, or add LoRA to it, in place. `qlora` is LoRA on a network loaded in 4 bits.

    `base_name` goes into the adapter's config as `base_model_name_or_path`. Raises ValueError where the language model is not Llama-like,
    that is, where names or counts differ from those of its config.
    """
    network.requires_grad_(False)
    pattern = re.compile(tuned_pattern(o_proj))
    linear_layers = [name for name, module in network.named_modules() if isinstance(module, nn.Linear) and pattern.fullmatch(name)]
    wanted = network.config.text_config.num_hidden_layers * len(tuned_modules(o_proj))
    if len(linear_layers) != wanted:
        raise ValueError(f"tune: {len(linear_layers)} of {wanted} linear layers ({', '.join(tuned_modules(o_proj))}) were found in the "
                         f"language model ({network.config.text_config.model_type}): only Llama-like language models can be tuned")
    adapter = None
    if mode != "full":
        # LoRA's random half is drawn here: the same on every rank and at every resume.
        torch.manual_seed(seed)
        settings = LoraConfig(r=lora_r, lora_alpha=lora_alpha, lora_dropout=lora_dropout, bias="none", target_modules=tuned_pattern(o_proj))
        adapter = get_peft_model(network, settings)
        adapter.peft_config["default"].base_model_name_or_path = base_name
    else:
        for name in linear_layers:
            network.get_submodule(name).requires_grad_(True)
    groups = count_groups(network)
    check_counts(groups, expected_counts(network.config.text_config, mode, o_proj, lora_r))
    return Tuned(network, adapter, groups)


def group_of(name: str) -> str:
    """The group of a parameter; ValueError for a name that no group knows."""
    for group, pattern in GROUPS:
        if re.match(pattern, name):
            return group
    raise ValueError(f"the model has a parameter {name!r} that belongs to no known part of Video-LLaVA: "
                     "this version of transformers is not supported")


def count_groups(network: nn.Module) -> dict[str, tuple[int, int]]:
    """Parameters of each group: all, and those that would receive a gradient."""
    counts = {group: [0, 0] for group, _ in GROUPS}
    for name, parameter in network.named_parameters():
        size = true_size(parameter)
        group = counts[group_of(name)]
        group[0] += size
        group[1] += size if parameter.requires_grad else 0
    return {group: (total, trained) for group, (total, trained) in counts.items() if total}


def true_size(parameter: nn.Parameter) -> int:
    """Numbers that a parameter stands for: ZeRO-3 leaves an empty tensor behind and keeps the size beside it, and bitsandbytes packs two
    4-bit numbers into a byte and keeps the shape."""
    packed = getattr(parameter, "quant_state", None)
    return math.prod(packed.shape) if packed is not None else getattr(parameter, "ds_numel", parameter.numel())


def check_counts(groups: dict[str, tuple[int, int]], expected: dict[str, int]) -> None:
    """Refuse a trained set that is not exactly the expected one: ValueError that names the group and both numbers."""
    for group in {**groups, **expected}:
        trained, wanted = groups.get(group, (0, 0))[1], expected.get(group, 0)
        if trained != wanted:
            raise ValueError(f"tune: {trained:,} parameters of group {group!r} would be trained, {wanted:,} should be: refused, "
                             "because a frozen part would receive gradients or a trained one would not")


def as_table(groups: dict[str, tuple[int, int]]) -> Table:
    """The groups as a table for the terminal."""
    table = Table(title="what is trained", title_justify="left")
    table.add_column("part")
    table.add_column("parameters", justify="right")
    table.add_column("trained", justify="right")
    for group, (total, trained) in groups.items():
        table.add_row(group, f"{total:,}", f"{trained:,}" if trained else "frozen", style=None if trained else "dim")
    table.add_section()
    table.add_row("all", f"{sum(total for total, _ in groups.values()):,}", f"{sum(trained for _, trained in groups.values()):,}")
    return table
