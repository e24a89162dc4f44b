"""Loading a Video-LLaVA: the embedded tiny one, a Hugging Face folder or a hub id, always without its image tower.

Shape suffixes: B clips, T frames, H W pixels, C channels, V video tokens, D hidden size of the language model.
"""

from __future__ import annotations

import copy
import json
import ssl
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import numpy as np
import torch
from huggingface_hub import constants as hub
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer, BitsAndBytesConfig, VideoLlavaForConditionalGeneration
from transformers.utils import logging as hub_logging

from vlmphys.files import read_json
from vlmphys.records import sha256_text

TINY = "tiny"
TINY_FOLDER = Path(__file__).parent / "tiny_base"
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
PREPROCESSOR = "preprocessor_config.json"
# Files of a Hugging Face folder that say how pictures and texts go in; a run folder holds the first of these, which gives mean and deviation.
PROCESSOR_FILES = (PREPROCESSOR, "processor_config.json", "video_preprocessor_config.json")
HUB_TIMEOUT_SECONDS = 5
COPY_AGAIN = "copy or download the whole folder again"
# Module names that `tune: qlora` leaves in the run's precision; what is left are the linear layers of the language model's blocks.
NOT_QUANTISED = ("lm_head", "model.video_tower", "model.image_tower", "model.multi_modal_projector")
# Sizes that leave a tower its embeddings alone; its width stays, which the projector's depends on.
WITHOUT_LAYERS = {"num_hidden_layers": 0, "intermediate_size": 1}


@dataclass(frozen=True)
class ModelFacts:
    """What data preparation and training need to know of a model before its weights are loaded."""

    source: str
    image_size: int
    tokens_per_frame: int
    video_token_id: int
    pad_token_id: int
    max_positions: int
    vocab_size: int
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]
    tokenizer_sha256: str
    frames_trained_on: int | None = None    # by its config's length of a video; None where that does not say it


def resolve_source(model: str) -> str:
    """The folder or hub id behind `tiny`, a path, or a hub id. Raises ValueError for a folder that cannot be one."""
    if model == TINY:
        return str(TINY_FOLDER)
    path = Path(model).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ValueError(f"model folder {path} has no config.json: give a Hugging Face Video-LLaVA folder, a hub id, or 'tiny'")
        return str(path)
    if path.exists() or model.count("/") != 1 or model.startswith((".", "/", "~")):
        raise ValueError(f"model {model!r} is no folder: give a Hugging Face Video-LLaVA folder, a hub id (owner/name), or 'tiny'")
    return model


@cache
def hub_answers() -> bool:
    """Whether the hub can be asked, tried once in a process. The hub's own library tries each file six times before it looks into its cache,
    which without a connection takes half a minute."""
    if hub.HF_HUB_OFFLINE:
        return False
    try:
        urlopen(Request(hub.ENDPOINT, method="HEAD"), timeout=HUB_TIMEOUT_SECONDS).close()
    except HTTPError:
        return True         # it said something
    except URLError as error:
        return isinstance(error.reason, ssl.SSLError)   # it is there; what certificates are needed its own library knows better
    except OSError:
        return False
    return True


def from_cache(source: str) -> dict[str, bool]:
    """What tells `from_pretrained` to look for a hub id in the cache alone; nothing for a folder, and where the hub answers."""
    return {} if Path(source).is_dir() or hub_answers() else {"local_files_only": True}


def load_config(model: str):
    """The `VideoLlavaConfig` of a model; ValueError where the model is of another kind or cannot be reached."""
    source = resolve_source(model)
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False, **from_cache(source))
    except (OSError, ValueError) as error:
        raise ValueError(f"model {model!r}: its config cannot be read ({str(error).splitlines()[0]}){_or_a_folder(source)}") from error
    if config.model_type != "video_llava":
        raise ValueError(f"model {model!r} is of type {config.model_type!r}: only Video-LLaVA ('video_llava') is allowed")
    return config


def _or_a_folder(source: str) -> str:
    """What to do where a hub id cannot be read; nothing for a folder."""
    return "" if Path(source).is_dir() else ("; for a model of the hub a connection or an earlier download is needed: else give a folder that "
                                             "holds it, with --model DIR (vlmphys plan, a config: --set model=DIR). vlmphys plan needs its "
                                             "config.json alone: a command of ds_configs/README.md writes that of Video-LLaVA-7B")


def load_tokenizer(model: str):
    """The model's fast tokenizer. Raises ValueError where the model is no Video-LLaVA or has no such tokenizer."""
    load_config(model)  # first: a folder of another kind is told by its kind, not by its tokenizer
    source = resolve_source(model)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, use_fast=True, trust_remote_code=False, **from_cache(source))
    except (OSError, ValueError) as error:
        raise ValueError(f"model {model!r}: its tokenizer cannot be read ({str(error).splitlines()[0]}){_or_a_folder(source)}") from error
    if not tokenizer.is_fast:
        raise ValueError(f"model {model!r}: a fast tokenizer (tokenizer.json) is needed, because label masks are built from character offsets")
    return tokenizer


def read_facts(model: str, tokenizer=None) -> ModelFacts:
    """Facts of a model from its config, tokenizer and preprocessor file; no weights are read. Raises ValueError where these contradict each
    other."""
    config = load_config(model)
    tokenizer = tokenizer or load_tokenizer(model)
    vision = config.vision_config
    if tokenizer.convert_tokens_to_ids("<video>") != config.video_token_id:
        raise ValueError(f"model {model!r}: its tokenizer maps '<video>' to {tokenizer.convert_tokens_to_ids('<video>')}, "
                         f"its config to {config.video_token_id}; they must agree")
    mean, std = CLIP_MEAN, CLIP_STD
    for name in PROCESSOR_FILES:
        preprocessor = Path(resolve_source(model)) / name
        if not preprocessor.is_file():
            continue
        stored = read_json(preprocessor, COPY_AGAIN)
        # One file of all processors holds each of them by its name.
        for part in (stored, stored.get("image_processor"), stored.get("video_processor")):
            _check_picture_size(model, name, part or {}, vision.image_size)
        if name == PREPROCESSOR:
            mean, std = tuple(stored.get("image_mean") or mean), tuple(stored.get("image_std") or std)
    video = getattr(config, "video_seq_length", None) or 0
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return ModelFacts(
        source=resolve_source(model), image_size=vision.image_size, tokens_per_frame=tokens_per_frame(vision),
        video_token_id=config.video_token_id, pad_token_id=pad,
        max_positions=config.text_config.max_position_embeddings, vocab_size=config.text_config.vocab_size,
        image_mean=mean, image_std=std, tokenizer_sha256=tokenizer_sha256(tokenizer),
        frames_trained_on=None if video % tokens_per_frame(vision) else video // tokens_per_frame(vision) or None)


def _check_picture_size(model: str, name: str, stored: dict[str, Any], image_size: int) -> None:
    """Raise ValueError where a preprocessor file makes pictures of another size than the vision tower takes: of two models one is mixed in.

    Hugging Face's processors resize to `size` and then, unless told not to, crop to `crop_size`; both may be a number, a list
    of numbers, or named edges (height, width, shortest_edge, longest_edge).
    """
    crops = stored.get("crop_size") and stored.get("do_center_crop", True)
    key = "crop_size" if crops else "size"
    given = stored.get(key)
    if isinstance(given, dict):
        edges = [given[edge] for edge in ("height", "width", "shortest_edge", "longest_edge") if given.get(edge) is not None]
    else:
        edges = given if isinstance(given, list) else [] if given is None else [given]
    if not all(type(edge) is int for edge in edges):
        raise ValueError(f"model {model!r}: {key!r} of its {name} is {given!r}: a whole number of pixels, a list or named edges of such numbers "
                         f"are expected; {COPY_AGAIN}, or correct {name}")
    if set(edges) - {image_size}:
        raise ValueError(f"model {model!r}: its {name} makes pictures of {' x '.join(map(str, sorted(set(edges))))} pixels, its config.json's vision "
                         f"tower takes {image_size} x {image_size}: put the files of one model together, or correct {name}")


def tokens_per_frame(vision) -> int:
    """Tokens of a frame: the patches of a CLIP tower's config, and its class token."""
    return (vision.image_size // vision.patch_size) ** 2 + 1


def tokenizer_sha256(tokenizer) -> str:
    """A digest of all that decides token ids: vocabulary, merges, normaliser, added tokens."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state.pop("padding", None), state.pop("truncation", None)
    return sha256_text(json.dumps(state, sort_keys=True))


def load_model(model: str, dtype: torch.dtype = torch.float32, four_bit_on: torch.device | None = None,
               tower: bool = True) -> VideoLlavaForConditionalGeneration:
    """The model in `dtype` on the CPU, image tower dropped. With `four_bit_on`, a CUDA device, it lies there, and the linear layers of the
    language model's blocks are packed into 4 bits (`tune: qlora`). Without `tower` no weight of either tower's layers is read from the
    disk, and the model takes features in place of pixels.

    Raises ValueError where the weights' files are missing or damaged, or weights other than the image tower's are missing or of
    another shape.
    """
    config, source = load_config(model), resolve_source(model)
    unused = ("image_tower",) if tower else ("image_tower", "video_tower")
    try:
        with quiet_transformers():
            # Weights of another shape are refused below, by name; left to transformers they are a RuntimeError, as many other things are.
            network, info = VideoLlavaForConditionalGeneration.from_pretrained(
                source, dtype=dtype, use_safetensors=True, trust_remote_code=False, ignore_mismatched_sizes=True, output_loading_info=True,
                config=None if tower else without_layers(config), **(four_bits(dtype, four_bit_on) if four_bit_on else {}), **from_cache(source))
    except (OSError, SafetensorError) as error:
        raise ValueError(f"model {model!r}: its weights cannot be read from {source} ({(str(error).splitlines() or [type(error).__name__])[0]}); "
                         f"{COPY_AGAIN}") from error
    other = sorted(key for key in info["mismatched_keys"] if not any(name in key[0] for name in unused))
    if other:
        name, stored, expected = other[0]
        raise ValueError(f"model {model!r}: {len(other)} weights in {source} have another shape than its config.json says, first {name!r}: "
                         f"{tuple(stored)} stored, {tuple(expected)} expected; {COPY_AGAIN}")
    missing = [key for key in info["missing_keys"] if not any(name in key for name in unused)]
    if missing:
        raise ValueError(f"model {model!r} lacks {len(missing)} weights, first {missing[0]!r}: the folder is incomplete or of another version")
    if not tower:
        network.model.video_tower = None
        for key in WITHOUT_LAYERS:
            setattr(network.config.vision_config, key, getattr(config.vision_config, key))
    return drop_image_tower(network)


def without_layers(config):
    """A copy of a `VideoLlavaConfig` whose towers have no layers, so that transformers reads none of their weights."""
    smaller = copy.deepcopy(config)
    for key, value in WITHOUT_LAYERS.items():
        setattr(smaller.vision_config, key, value)
    return smaller


def four_bits(dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """Arguments of `from_pretrained` for NF4 with twice quantised scales, as QLoRA has it (Dettmers et al. 2023, section 3); arithmetic in
    `dtype`. Towers, projector and head stay as they are: only the language model's blocks are quantised.
    """
    return {"device_map": {"": str(device)}, "quantization_config": BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=list(NOT_QUANTISED))}


@contextmanager
def quiet_transformers():
    """No list of missing weights (the image tower's are expected, others are refused by name) and no progress bars, while inside."""
    verbosity, bars = hub_logging.get_verbosity(), hub_logging.is_progress_bar_enabled()
    hub_logging.set_verbosity_error()
    hub_logging.disable_progress_bar()
    try:
        yield
    finally:
        hub_logging.set_verbosity(verbosity)
        if bars:
            hub_logging.enable_progress_bar()


def drop_image_tower(network: VideoLlavaForConditionalGeneration) -> VideoLlavaForConditionalGeneration:
    """Remove the tower that video never runs (0.3 B parameters in the 7B model), in place."""
    network.model.image_tower = None
    return network


def normalise_frames(frames_BTHWC: torch.Tensor, mean, std, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """uint8 frames to the model's input, B x T x C x H x W: / 255, minus mean, over standard deviation."""
    pixels = frames_BTHWC.permute(0, 1, 4, 2, 3).to(dtype=torch.float32, copy=True)
    mean_C, std_C = (torch.as_tensor(np.asarray(values, dtype=np.float32), device=pixels.device).view(1, 1, 3, 1, 1) for values in (mean, std))
    return pixels.div_(255.0).sub_(mean_C).div_(std_C).to(dtype)   # in place: `pixels` is a copy, whatever type the frames have


def video_features(network: VideoLlavaForConditionalGeneration, pixels_BTCHW: torch.Tensor) -> torch.Tensor:
    """Projected video tokens, (B * T) x tokens_per_frame x D, of the tower and the projector."""
    return network.model.get_video_features(pixels_BTCHW, return_dict=True).pooler_output


def project(network: VideoLlavaForConditionalGeneration, video: torch.Tensor, mean, std, dtype: torch.dtype) -> torch.Tensor:
    """Projected video tokens, (B * T) x tokens_per_frame x D, of what `Packed.video` gives: uint8 frames, B x T x H x W x C, which go
    through tower and projector in `dtype`, or the tower's features, B x T x S x its width, which the projector alone gets."""
    if video.dtype == torch.uint8:
        return video_features(network, normalise_frames(video, mean, std, dtype))
    return network.model.multi_modal_projector(video.flatten(0, 1).to(dtype))


def embed(network: VideoLlavaForConditionalGeneration, input_ids_BL: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """The language model's inputs, B x L x D: the tokens' embeddings, with the projected features at the `<video>` tokens, clip by clip.

    The model's own forward takes features, too (`mm_encoder_outputs`), but transformers 5.17 passes over that name in silence and
    would never see the video.
    """
    embedded_BLD = network.get_input_embeddings()(input_ids_BL)
    is_video_BL1 = (input_ids_BL == network.config.video_token_id)[:, :, None]
    return embedded_BLD.masked_scatter(is_video_BL1, features.to(embedded_BLD.dtype))
