"""The config of LanguageBind/Video-LLaVA-7B-hf, by which plan and benchmark count; no weights, no network."""

from __future__ import annotations

from transformers import CLIPVisionConfig, LlamaConfig, VideoLlavaConfig


def published_config(layers: int = 32) -> VideoLlavaConfig:
    """CLIP ViT-L/14 at 224 pixels, two-layer projector, Vicuna-7B v1.5; `layers` of the language model's 32."""
    vision = CLIPVisionConfig(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, image_size=224,
                              patch_size=14, projection_dim=768)
    text = LlamaConfig(vocab_size=32064, hidden_size=4096, intermediate_size=11008, num_hidden_layers=layers, num_attention_heads=32,
                       max_position_embeddings=4096, rms_norm_eps=1e-5, bos_token_id=1, eos_token_id=2, pad_token_id=32002)
    return VideoLlavaConfig(vision_config=vision, text_config=text, image_token_index=32000, video_token_index=32001, video_seq_length=2056)
