"""Stage 2: projector and language model learn to answer questions about motion, from the frozen tower's cached features.

Beside the answers, heads that are thrown away ask two inner layers, at each frame's class token, for the step of every part since the frame
before and for the change of that step: motion then stands in the stream where answers can find it, as places do in the tower's features.

Half of the dialogues end with a turn of text alone ("Say: ...") that repeats words of the product's dialogues in an order that says
nothing about the clip: embeddings and head are frozen later, so the base must know every word. No verdict is ever asked for.

Shape suffixes: B clips, L tokens, V video tokens, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from vlmphys.mechanisms import load_mechanism
from vlmphys.model import embed
from vlmphys.pretrain.pool import MAX_PARTS, Pool
from vlmphys.pretrain.questions import Turn, motion_turns
from vlmphys.pretrain.tower import BINS, cosine_rate, soft_bins

IGNORE = -100
TURNS_PER_CLIP = 8
NUMBERS_SHARE = 0.1  # of the steps, at the start, ask for places and steps alone
STEP_LAYER, CHANGE_LAYER = 2, 3  # outputs of these layers of the language model are asked


class DialogueWriter:
    """Writes the token ids and labels of one pre-training dialogue."""

    def __init__(self, tokenizer, sentences: list[str], video_tokens: int, video_token_id: int):
        self.encode = lru_cache(maxsize=1 << 16)(lambda text: tuple(tokenizer(text, add_special_tokens=False)["input_ids"]))
        self.bos, self.eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        self.sentences = sentences
        self.words = sorted({word.strip(".,?") for sentence in sentences for word in sentence.split()})
        self.video = [video_token_id] * video_tokens

    def write(self, turns: list[Turn]) -> tuple[list[int], list[int]]:
        """Ids and labels in the format of `vlmphys/dialogue.py`: answers and their end of sequence are supervised."""
        ids, labels = [self.bos], [IGNORE]
        for number, (question, answer) in enumerate(turns):
            asked = [*self.encode("USER: "), *self.video, *self.encode("\n" + question)] if number == 0 else [*self.encode("USER: " + question)]
            asked += self.encode(" ASSISTANT:")
            told = [*self.encode(" " + answer), self.eos]
            ids += asked + told
            labels += [IGNORE] * len(asked) + told
        return ids, labels

    def words_turn(self, rng: np.random.Generator) -> Turn:
        """A sentence of the dialogues, or a handful of their words in random order, to be repeated."""
        if rng.random() < 0.6:
            text = str(rng.choice(self.sentences))
        else:
            text = " ".join(rng.choice(self.words, size=int(rng.integers(5, 12))))
        return f"Say: {text}", text


class MotionHeads(nn.Module):
    """The step of each part between two frames, and the change between two steps, from hidden states at the frames' class tokens."""

    def __init__(self, hidden: int):
        super().__init__()
        self.step = nn.Linear(hidden, MAX_PARTS * BINS)
        self.change = nn.Linear(hidden, MAX_PARTS * BINS)

    def loss(self, states_BTD: list[torch.Tensor], places_BTP: torch.Tensor, turns_BP: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy of both heads; `states_BTD` are the two layers at the class tokens, `turns_BP` marks parts that turn."""
        step = _short_way(places_BTP.diff(dim=1), turns_BP, reach=1.0)
        change = _short_way(step.diff(dim=1), turns_BP, reach=2.0)
        total = torch.zeros(())
        for head, states, values, reach in ((self.step, states_BTD[0][:, 1:], step, 1.0), (self.change, states_BTD[1][:, 2:], change, 2.0)):
            logits = head(states).float().unflatten(-1, (MAX_PARTS, BINS))
            known = ~values.isnan()
            turning = turns_BP[:, None].expand_as(values)
            shares = torch.where(turning, values, values / (2 * reach)).nan_to_num() + 0.5
            total = total - (soft_bins(shares, turning) * torch.log_softmax(logits, -1)).sum(-1)[known].mean()
        return total


def _short_way(differences: torch.Tensor, turns_BP: torch.Tensor, reach: float) -> torch.Tensor:
    """Differences of places: the short way round for turns, in [-0.5, 0.5); as they are, within `reach`, for lengths."""
    wrapped = torch.remainder(differences + 0.5, 1.0) - 0.5
    return torch.where(turns_BP[:, None], wrapped, differences.clamp(-reach, reach))


def train_language(network, writer: DialogueWriter, pool: Pool, features_NVD: torch.Tensor, steps: int, batch: int, learning_rate: float, seed: int,
                   report: Callable[[int, dict[str, float]], None]) -> None:
    """Train projector, language model and head in place; the tower stays as it is."""
    torch.manual_seed(seed)
    heads = MotionHeads(network.config.text_config.hidden_size)
    parameters = [p for name, p in network.named_parameters() if "video_tower" not in name] + list(heads.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.02, betas=(0.9, 0.98), fused=True)
    rng = np.random.default_rng(seed)
    parts_of = [load_mechanism(category).PARTS for category in pool.categories]
    turns_CP = torch.tensor([[index < len(parts) and parts[index].is_turn for index in range(MAX_PARTS)] for parts in parts_of])
    network.train()
    for step in range(steps):
        picks = rng.integers(len(pool.category_N), size=batch)
        dialogues = [writer.write(dialogue_turns(rng, writer, pool, parts_of, int(clip), step < NUMBERS_SHARE * steps)) for clip in picks]
        answers, states_BTD = dialogue_loss(network, dialogues, features_NVD[picks], pool.places_NTP.shape[1])
        motion = heads.loss(states_BTD, torch.from_numpy(pool.places_NTP[picks]), turns_CP[pool.category_N[picks]])
        for group in optimizer.param_groups:
            group["lr"] = cosine_rate(step, steps, learning_rate)
        optimizer.zero_grad(set_to_none=True)
        (answers + motion).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        report(step, {"answers": float(answers.detach()), "motion": float(motion.detach())})
    network.eval()


def dialogue_turns(rng: np.random.Generator, writer: DialogueWriter, pool: Pool, parts_of: list, clip: int, only_numbers: bool) -> list[Turn]:
    """Questions about one clip, in half of the dialogues followed by words to repeat."""
    category = int(pool.category_N[clip])
    parts = parts_of[category]
    turns = motion_turns(rng, pool.categories[category], parts, pool.places_NTP[clip, :, :len(parts)], TURNS_PER_CLIP, only_numbers)
    if rng.random() < 0.5:
        turns.append(writer.words_turn(rng))
    return turns


def dialogue_loss(network, dialogues: list[tuple[list[int], list[int]]], features_BVD: torch.Tensor,
                  frames: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Mean cross-entropy over the supervised tokens of a padded batch, the head run on those alone; and the two asked layers, B x T x D."""
    length = max(len(ids) for ids, _ in dialogues)
    pad = network.config.pad_token_id if network.config.pad_token_id is not None else network.config.text_config.pad_token_id
    ids_BL = torch.tensor([ids + [pad] * (length - len(ids)) for ids, _ in dialogues])
    labels_BL = torch.tensor([labels + [IGNORE] * (length - len(labels)) for _, labels in dialogues])
    # No attention mask: padding stands on the right, where causal attention never looks, and the kernels are faster without one.
    with torch.autocast("cpu", torch.bfloat16):
        projected = network.model.multi_modal_projector(features_BVD)
        outputs = network.model(inputs_embeds=embed(network, ids_BL, projected), use_cache=False, output_hidden_states=True)
        targets = labels_BL[:, 1:]
        logits = network.lm_head(outputs.last_hidden_state[:, :-1][targets != IGNORE])
    first = int((ids_BL[0] == network.config.video_token_id).nonzero()[0])
    classes = first + torch.arange(frames) * (features_BVD.shape[1] // frames)
    states_BTD = [outputs.hidden_states[layer][:, classes] for layer in (STEP_LAYER, CHANGE_LAYER)]
    return F.cross_entropy(logits.float(), targets[targets != IGNORE]), states_BTD
