"""The frozen video tower by itself: its digest, which needs no model in memory, its weights alone, and what it makes of pixels.

A tower never changes in training, so what it makes of a clip can be made once and kept (`features`, `feature_packing`).
Shape suffixes: B clips, T frames, H W pixels, C channels, S tokens of a frame, D width of the tower's chosen layers together.
"""

from __future__ import annotations

import copy
import hashlib
import json
from functools import lru_cache
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import VideoLlavaForConditionalGeneration
from transformers.utils import cached_file

from vlmphys.files import read_json
from vlmphys.model import COPY_AGAIN, from_cache, load_config, quiet_transformers, resolve_source

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
VIDEO, IMAGE = "video_tower", "image_tower"
# What of a CLIP tower's config decides its output; the rest is about how it was trained, or says so in other words.
DECISIVE = ("hidden_act", "hidden_size", "image_size", "intermediate_size", "layer_norm_eps", "num_attention_heads", "num_channels",
            "num_hidden_layers", "patch_size")
# Sizes that leave next to nothing of a language model.
NO_LANGUAGE = {"num_hidden_layers": 1, "hidden_size": 8, "intermediate_size": 8, "head_dim": 8, "num_attention_heads": 1,
               "num_key_value_heads": 1}


def feature_layers(config) -> list[int]:
    """The tower's layers that a `VideoLlavaConfig` reads; 0 is its embeddings, negative ones count from the end."""
    chosen = config.vision_feature_layer
    return [chosen] if isinstance(chosen, int) else list(chosen)


def tower_sha256(model: str) -> str:
    """A digest of all in a model's files that decides what its video tower makes of normalised pixels: weights, by value whatever their
    precision, sizes, and the layers that are read. Reads every byte of the tower and nothing else of the weights.

    Raises ValueError where the files are missing or damaged, or hold no video tower.
    """
    config, files = load_config(model), tuple(weight_files(model))
    settings = json.dumps([{key: getattr(config.vision_config, key) for key in DECISIVE}, feature_layers(config)], sort_keys=True)
    return _digest(settings, files, tuple((path.stat().st_size, path.stat().st_mtime_ns) for path in files))


def weight_files(model: str) -> list[Path]:
    """The safetensors files that hold a model's video tower, as `from_pretrained` would choose them; ValueError where there are none."""
    source = resolve_source(model)

    def find(name: str) -> Path | None:
        found = cached_file(source, name, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False,
                            **from_cache(source))
        return Path(found) if found else None
    whole, index = find(WEIGHTS), None
    if whole is None:
        index = find(INDEX)
    if whole is None and index is None:
        raise ValueError(f"model {model!r}: {source} has neither {WEIGHTS} nor {INDEX}; {COPY_AGAIN}")
    if whole is not None:
        return [whole]
    places = read_json(index, COPY_AGAIN).get("weight_map", {})
    names = sorted({file for name, file in places.items() if f"{VIDEO}." in name})
    found = {name: find(name) for name in names}
    if not names or None in found.values():
        absent = [name for name in names if found[name] is None]
        raise ValueError(f"model {model!r}: {absent[0] if absent else 'a video tower'} is missing in {source}; {COPY_AGAIN}")
    return list(found.values())


@lru_cache(maxsize=8)
def _digest(settings: str, files: tuple[Path, ...], _stamps: tuple) -> str:
    """The digest of these settings and of the tower in these files; `_stamps` (sizes, times) tell files that have changed since."""
    places, digest = {}, hashlib.sha256(settings.encode())
    try:
        for path in files:
            with safe_open(path, "pt") as stored:
                # transformers has named the same weights with `vision_model.` and without; position_ids are no weights.
                places |= {name.partition(f"{VIDEO}.")[2].removeprefix("vision_model."): (path, name) for name in stored.keys()
                           if f"{VIDEO}." in name and not name.endswith("position_ids")}
        if not places:
            raise ValueError(f"{files[0]}: holds no video tower; {COPY_AGAIN}")
        for plain, (path, name) in sorted(places.items()):
            with safe_open(path, "pt") as stored:
                weight = stored.get_tensor(name)
            digest.update(f"{plain} {tuple(weight.shape)}".encode())
            digest.update(weight.float().contiguous().numpy())
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{files[0].parent}: its weights cannot be read ({error}); {COPY_AGAIN}") from error
    return digest.hexdigest()


def load_tower(model: str, dtype: torch.dtype, name: str = VIDEO) -> nn.Module | None:
    """One tower of a model, in `dtype` on the CPU, in evaluation mode and frozen; None where its files hold none of this name.

    transformers knows under which of several names its weights stand in a file, but loads whole models only: so it is asked for one
    whose language model is next to nothing. Raises ValueError where the files are missing or damaged.
    """
    config, source = copy.deepcopy(load_config(model)), resolve_source(model)
    for key, value in NO_LANGUAGE.items():
        setattr(config.text_config, key, value)
    try:
        with quiet_transformers():
            network, info = VideoLlavaForConditionalGeneration.from_pretrained(
                source, config=config, dtype=dtype, use_safetensors=True, trust_remote_code=False, ignore_mismatched_sizes=True,
                output_loading_info=True, **from_cache(source))
    except (OSError, SafetensorError) as error:
        raise ValueError(f"model {model!r}: its weights cannot be read from {source} ({(str(error).splitlines() or [''])[0]}); "
                         f"{COPY_AGAIN}") from error
    absent = [*info["missing_keys"], *(key[0] for key in info["mismatched_keys"])]
    return None if any(name in key for key in absent) else getattr(network.model, name).eval().requires_grad_(False)


def with_tower(network, model: str, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights of a whole model, where `network` was loaded without its video tower: put back, into `network` too, from the base
    `model`, in the precision of the others. Training from the feature cache ends with the files of training from pixels."""
    if network.model.video_tower is not None:
        return weights
    tower = load_tower(model, next(iter(weights.values())).dtype)
    if tower is None:
        raise ValueError(f"model {model!r} holds no video tower any more, and the trained model cannot be whole without it; {COPY_AGAIN}")
    network.model.video_tower = tower
    whole = weights | {f"model.{VIDEO}.{name}": value for name, value in tower.state_dict().items()}
    return {name: whole[name] for name in network.state_dict()}


def tower_features(tower: nn.Module, layers: list[int], pixels_BTCHW: torch.Tensor) -> torch.Tensor:
    """What the projector gets of normalised pixels: the chosen layers' outputs side by side, B x T x S x D."""
    clips, frames = pixels_BTCHW.shape[:2]
    hidden = tower(pixels_BTCHW.flatten(0, 1), output_hidden_states=True, return_dict=True).hidden_states
    chosen = hidden[layers[0]] if len(layers) == 1 else torch.cat([hidden[layer] for layer in layers], dim=-1)
    return chosen.unflatten(0, (clips, frames))
