"""The tiny Video-LLaVA: the same classes as the 7B model, a few million parameters, built from this repository alone."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import CLIPVisionConfig, LlamaConfig, PreTrainedTokenizerFast, VideoLlavaConfig, VideoLlavaForConditionalGeneration

from vlmphys.model import CLIP_MEAN, CLIP_STD, PREPROCESSOR, drop_image_tower, tokens_per_frame

SPECIAL_TOKENS = ["<unk>", "<s>", "</s>", "<image>", "<video>", "<pad>"]


def train_tokenizer(texts: list[str], vocab_size: int = 1000) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer over `texts` with Video-LLaVA's special tokens."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=SPECIAL_TOKENS, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>",
        additional_special_tokens=["<image>", "<video>"], clean_up_tokenization_spaces=False, model_max_length=1024)


def tiny_config(vocab_size: int, image_size: int = 64, patch_size: int = 16, vision_hidden: int = 128, vision_layers: int = 4,
                text_hidden: int = 128, text_layers: int = 4, frames: int = 8, max_positions: int = 1024) -> VideoLlavaConfig:
    """The config of a tiny Video-LLaVA: CLIP tower, two-layer projector, Llama; feature layer -2 as in the 7B model."""
    vision = CLIPVisionConfig(hidden_size=vision_hidden, intermediate_size=2 * vision_hidden, num_hidden_layers=vision_layers,
                              num_attention_heads=4, image_size=image_size, patch_size=patch_size, projection_dim=vision_hidden)
    text = LlamaConfig(vocab_size=vocab_size, hidden_size=text_hidden, intermediate_size=3 * text_hidden, num_hidden_layers=text_layers,
                       num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=max_positions, rope_theta=100.0,
                       bos_token_id=1, eos_token_id=2, pad_token_id=5)
    config = VideoLlavaConfig(vision_config=vision, text_config=text, image_token_index=3, video_token_index=4,
                              vision_feature_layer=-2, image_seq_length=tokens_per_frame(vision),
                              video_seq_length=frames * tokens_per_frame(vision))
    config.bos_token_id, config.eos_token_id, config.pad_token_id = 1, 2, 5
    return config


def build_random(config: VideoLlavaConfig, seed: int = 0) -> VideoLlavaForConditionalGeneration:
    """A randomly initialised model without its image tower."""
    torch.manual_seed(seed)
    return drop_image_tower(VideoLlavaForConditionalGeneration(config))


def save_model_folder(network, tokenizer, folder: Path, max_shard_size: str = "5GB") -> None:
    """Write a Hugging Face folder: config, safetensors, tokenizer and the preprocessor's sizes."""
    folder = Path(folder)
    network.save_pretrained(folder, safe_serialization=True, max_shard_size=max_shard_size)
    tokenizer.save_pretrained(folder)
    preprocessor = preprocessor_settings(network.config.vision_config.image_size)
    (folder / PREPROCESSOR).write_text(json.dumps(preprocessor, indent=2) + "\n")


def preprocessor_settings(size: int, image_mean=CLIP_MEAN, image_std=CLIP_STD) -> dict[str, object]:
    """The content of a preprocessor_config.json for pictures of `size` x `size` pixels."""
    return {
        "image_processor_type": "VideoLlavaImageProcessor", "size": {"shortest_edge": size}, "crop_size": {"height": size, "width": size},
        "do_resize": True, "do_center_crop": True, "do_rescale": True, "do_normalize": True, "resample": 3,
        "rescale_factor": 1 / 255, "image_mean": list(image_mean), "image_std": list(image_std)}
