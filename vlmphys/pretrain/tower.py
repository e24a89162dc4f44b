"""Stage 1: the vision tower learns to read the state of a mechanism from a single frame, through heads that are thrown away.

The heads sit on hidden state -2, the layer that the language model reads: the last layer gets no gradient. One head reads the class
token, so that a frame's state stands in one place; the other the mean of the patches, so that it stands there as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from vlmphys.model import CLIP_MEAN, CLIP_STD, normalise_frames
from vlmphys.pretrain.pool import MAX_PARTS, Pool

BINS = 24
FEATURE_LAYER = -2


class StateHeads(nn.Module):
    """Category and the bin of every part's place, read from one frame's tokens (B x tokens x D).

    The n-th part of every category shares one head: its place then stands in the same directions of the features for all
    mechanisms, which leaves the language model four maps to learn and not one for each part of each category.
    """

    def __init__(self, hidden: int, categories: int):
        super().__init__()
        self.category = nn.Linear(2 * hidden, categories)
        self.from_class = nn.Linear(hidden, MAX_PARTS * BINS)
        self.from_patches = nn.Linear(hidden, MAX_PARTS * BINS)

    def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Category logits B x categories, and two times place logits B x MAX_PARTS x BINS."""
        classes, patches = tokens[:, 0], tokens[:, 1:].mean(1)
        places = [head(x).unflatten(-1, (MAX_PARTS, BINS)) for head, x in ((self.from_class, classes), (self.from_patches, patches))]
        return self.category(torch.cat([classes, patches], -1)), places


def soft_bins(places: torch.Tensor, is_turn: torch.Tensor, width: float = 0.7) -> torch.Tensor:
    """Places in [0, 1] as distributions over bins, bell-shaped so that near misses cost little; a turn's bins close in a circle."""
    centres = (torch.arange(BINS) + 0.5) / BINS
    distance = (places[..., None] - centres).abs()
    distance = torch.where(is_turn[..., None], torch.minimum(distance, 1 - distance), distance) * BINS
    return torch.softmax(-0.5 * (distance / width) ** 2, -1)


def cosine_rate(step: int, steps: int, peak: float, warmup_share: float = 0.05) -> float:
    """Linear warm-up, then half a cosine down to a hundredth of the peak."""
    warmup = max(1, int(steps * warmup_share))
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup))))


def train_tower(tower: nn.Module, pool: Pool, turns_CP: np.ndarray, steps: int, batch: int, learning_rate: float, seed: int,
                report: Callable[[int, dict[str, float]], None]) -> StateHeads:
    """Train `tower` in place on single frames of the pool. `turns_CP` says which parts of which category turn without end."""
    torch.manual_seed(seed)
    heads = StateHeads(tower.config.hidden_size, len(pool.categories))
    parameters = [*tower.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.05, betas=(0.9, 0.98), fused=True)
    rng = np.random.default_rng(seed)
    tower.train()
    for step in range(steps):
        clips, frames = rng.integers(len(pool.category_N), size=batch), rng.integers(pool.frames_NTHWC.shape[1], size=batch)
        losses, exact = _losses(tower, heads, pool, turns_CP, clips, frames)
        for group in optimizer.param_groups:
            group["lr"] = cosine_rate(step, steps, learning_rate)
        optimizer.zero_grad(set_to_none=True)
        sum(losses.values()).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        report(step, {**{name: float(value.detach()) for name, value in losses.items()}, **exact})
    tower.eval()
    return heads


def _losses(tower, heads, pool: Pool, turns_CP: np.ndarray, clips: np.ndarray, frames: np.ndarray):
    pixels = normalise_frames(torch.from_numpy(pool.frames_NTHWC[clips, frames])[:, None], CLIP_MEAN, CLIP_STD)[:, 0]
    category = torch.from_numpy(pool.category_N[clips])
    places = torch.from_numpy(pool.places_NTP[clips, frames])
    known = ~places.isnan()
    is_turn = torch.from_numpy(turns_CP[pool.category_N[clips]])
    with torch.autocast("cpu", torch.bfloat16):
        tokens = tower(pixels, output_hidden_states=True).hidden_states[FEATURE_LAYER]
        category_logits, place_logits = heads(tokens)
    target = soft_bins(places.nan_to_num(), is_turn)
    losses = {"category": F.cross_entropy(category_logits.float(), category)}
    exact = {}
    for name, logits in zip(("class_token", "patches"), place_logits):
        log_probabilities = torch.log_softmax(logits.float(), -1)
        losses[name] = -(target * log_probabilities).sum(-1)[known].mean()
        missed = (logits.argmax(-1) - target.argmax(-1)).abs()
        missed = torch.where(is_turn, torch.minimum(missed, BINS - missed), missed)[known]
        exact[f"{name}_within_one"] = float((missed <= 1).float().mean())
    return losses, exact


@torch.no_grad()
def frame_features(tower: nn.Module, frames_NTHWC: np.ndarray, batch: int = 64) -> torch.Tensor:
    """The tower's tokens for every frame, N x (T * tokens) x D in bfloat16: what the projector reads."""
    chunks = []
    for start in range(0, len(frames_NTHWC), batch):
        block = torch.from_numpy(frames_NTHWC[start:start + batch])
        pixels = normalise_frames(block, CLIP_MEAN, CLIP_STD).flatten(0, 1)
        with torch.autocast("cpu", torch.bfloat16):
            tokens = tower(pixels, output_hidden_states=True).hidden_states[FEATURE_LAYER]
        chunks.append(tokens.to(torch.bfloat16).reshape(len(block), -1, tokens.shape[-1]))
    return torch.cat(chunks)
