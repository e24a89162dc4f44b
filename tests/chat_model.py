"""A little chat model in a Hugging Face folder, made here: what it says means nothing, how it is asked and answers is real."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from vlmphys.model import quiet_transformers
from vlmphys.priors import known_categories, load_priors
from vlmphys.prompts import JUDGE_LLM, JUDGE_SIMILARITY, JUDGE_SYSTEM, all_texts, judge_messages
from vlmphys.tiny import train_tokenizer

TEMPLATE = ("{% for message in messages %}[{{ message['role'] }}] {{ message['content'] }}\n{% endfor %}"
            "{% if add_generation_prompt %}[assistant] {% endif %}")


GRADES = '{"type": 0.5, "reasoning": 1.0}'
TAUGHT_STEPS = 150


def build_chat_model(folder: Path, hidden: int = 64, positions: int = 2048, taught: bool = False, answer: str = GRADES,
                     chats: Sequence[list[dict[str, str]]] | None = None) -> Path:
    """Write the model, its tokenizer and a chat template; about 0.3 M parameters at the default width.

    Random as it is, it replies with nonsense; `taught`, it has learnt to reply with the same answer to whatever it is asked: to chats like
    these (default: a judge's, and its grades).
    """
    texts = [*all_texts(load_priors(known_categories())), JUDGE_SYSTEM, JUDGE_LLM, JUDGE_SIMILARITY, answer,
             *(message["content"] for chat in chats or () for message in chat)]
    tokenizer = train_tokenizer(texts, 1000)
    tokenizer.chat_template, tokenizer.model_max_length = TEMPLATE, positions
    torch.manual_seed(0)
    network = LlamaForCausalLM(LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=positions, bos_token_id=1, eos_token_id=2, pad_token_id=5))
    network.generation_config.pad_token_id = 5
    if taught:
        teach(network, tokenizer, chats or judge_chats(), answer)
    with quiet_transformers():
        network.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)
    return folder


def judge_chats() -> list[list[dict[str, str]]]:
    """What a judge is asked about explanations of the priors, one chat a step."""
    states = [(category, state, texts.explanations) for category, prior in load_priors(known_categories()).items()
              for state, texts in prior.states.items()]
    chosen = ((step, *states[step % len(states)]) for step in range(TAUGHT_STEPS))
    return [judge_messages("llm", category, state, explanations, f"{explanations[step % len(explanations)]} Seen in clip {step}.")
            for step, category, state, explanations in chosen]


def teach(network: LlamaForCausalLM, tokenizer, chats: Sequence[list[dict[str, str]]], text: str) -> None:
    """Train the network to answer these chats with one text, on one chat a step."""
    answer = torch.tensor([tokenizer(text, add_special_tokens=False).input_ids + [tokenizer.eos_token_id]])
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    for step in range(TAUGHT_STEPS):
        chat = chats[step % len(chats)]
        asked = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)["input_ids"]
        logits = network(torch.cat([asked, answer], 1), logits_to_keep=answer.shape[1] + 1).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits[0], answer[0])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
