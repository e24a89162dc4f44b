"""Packed dialogues for a person to look at: what is supervised, token by token, and how long the dialogues are."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
from rich.text import Text

from vlmphys.prompts import VIDEO
from vlmphys.shards import DialogueRow, DialogueTable

# A colour an answer; what is not supervised stays as the terminal writes.
TURN_COLOURS = ("green", "cyan", "yellow", "magenta")
OPEN, CLOSE = "[[", "]]"


@dataclass(frozen=True)
class VariantStatistics:
    """Lengths of one variant's dialogues, in tokens: `lengths` of each dialogue, `answers` (dialogues x turns) of each supervised answer."""

    variant: str
    lengths: np.ndarray
    answers: np.ndarray

    @property
    def supervised_share(self) -> float:
        """Supervised tokens among all tokens."""
        return float(self.answers.sum() / self.lengths.sum())

    @property
    def turn_shares(self) -> np.ndarray:
        """Of all supervised tokens, the share of each answer."""
        return self.answers.sum(0) / self.answers.sum()


def spread(keys: list, count: int) -> list:
    """`count` of the keys, evenly from the first to the last; all of them where there are not so many. Raises ValueError below 1."""
    if count < 1:
        raise ValueError(f"--show {count}: must be at least 1")
    return [keys[index] for index in np.linspace(0, len(keys) - 1, min(count, len(keys))).astype(int)]


def pieces(row: DialogueRow, tokenizer, video_token_id: int) -> list[tuple[str, int]]:
    """A dialogue's text in runs of (text, answer that supervises it, 0 for none); the video's span is written once, with its length."""
    ids, turn = row.input_ids, row.turn
    video = ids == video_token_id
    first = int(video.argmax())
    keep = ~video
    keep[first] = True
    kept_ids, kept_turn = ids[keep].tolist(), turn[keep]
    borders = [0, *(np.flatnonzero(np.diff(kept_turn)) + 1).tolist(), len(kept_ids)]
    found, written = [], ""
    for start, end in zip(borders, borders[1:]):
        # Decoded from the beginning each time: a run decoded alone would lose its first blank.
        text = tokenizer.decode(kept_ids[:end], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        found.append((text[len(written):], int(kept_turn[start])))
        written = text
    place = next(index for index, (text, _) in enumerate(found) if VIDEO in text)
    found[place] = found[place][0].replace(VIDEO, f"{VIDEO} x {int(video.sum())}", 1), found[place][1]
    return found


def coloured(row: DialogueRow, tokenizer, video_token_id: int, marks: bool) -> Text:
    """A dialogue with its supervised tokens in colour, an answer a colour; with `marks` within `[[1 ...]]`, too, for where there are none."""
    text = Text()
    for piece, turn in pieces(row, tokenizer, video_token_id):
        if not turn:
            text.append(piece)
            continue
        text.append(f"{OPEN}{turn}{piece}{CLOSE}" if marks else piece, style=f"bold {TURN_COLOURS[(turn - 1) % len(TURN_COLOURS)]}")
    return text


def statistics(table: DialogueTable) -> list[VariantStatistics]:
    """Lengths by variant, in the order in which the variants were packed. Reads every row."""
    lengths, answers = defaultdict(list), defaultdict(list)
    for clip_id, variant in table.keys:
        row = table.row(clip_id, variant)
        lengths[variant].append(len(row.input_ids))
        answers[variant].append(np.bincount(row.turn)[1:])
    return [VariantStatistics(variant, np.array(lengths[variant]), np.stack(answers[variant]))
            for variant in table.meta["variants"] if lengths[variant]]
