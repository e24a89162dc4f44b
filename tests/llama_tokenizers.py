"""Llama-like tokenizers: 32,000 entries in Llama's order, byte fallback, a "▁" for each space, Video-LLaVA's `<image>`, `<video>`, `<pad>` after them."""

from __future__ import annotations

import json

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SPECIALS = ["<unk>", "<s>", "</s>", "<image>", "<video>", "<pad>"]


def finished(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """A fast tokenizer with Video-LLaVA's special tokens and `<s>` before every text."""
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIALS])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def llama_like(pieces: dict[str, int], merges: list[tuple[str, str]], legacy: bool) -> PreTrainedTokenizerFast:
    """32,000 entries: three specials, 256 bytes, `pieces` at their ids, what merging needs, fillers; then the added tokens."""
    first = [*SPECIALS[:3], *(f"<0x{byte:02X}>" for byte in range(256))]
    vocab = {**{piece: number for number, piece in enumerate(first)}, **pieces}
    needed = [part for pair in merges for part in (*pair, "".join(pair)) if part not in vocab]
    free = iter(sorted(set(range(32000)) - set(vocab.values())))
    vocab.update({piece: next(free) for piece in dict.fromkeys(needed)})
    vocab.update({f"filler {number}": number for number in free})
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if legacy:  # the way of older tokenizer.json files: a "▁" before every piece of text between special tokens
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return finished(tokenizer)


def llama_of_words(pieces: dict[str, int], legacy: bool = False) -> PreTrainedTokenizerFast:
    """Each piece is grown letter by letter from its left; pieces with a "▁" come first, so that no other piece takes their letters."""
    merges = [(piece[:cut], piece[cut]) for piece in sorted(pieces, key=lambda piece: piece[0] != "▁") for cut in range(1, len(piece))]
    return llama_like(pieces, list(dict.fromkeys(merges)), legacy)


def llama_trained(texts: list[str], legacy: bool = False) -> PreTrainedTokenizerFast:
    """Pieces and merges learned from `texts`."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation()])
    trained.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=400, show_progress=False))
    model = json.loads(trained.to_str())["model"]
    return llama_like({piece: 259 + number for piece, number in model["vocab"].items()}, [tuple(pair) for pair in model["merges"]], legacy)
