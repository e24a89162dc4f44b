"""What each clip is asked when it is predicted: a variant's dialogue, with the answers before the verdict given, written or left out.

- `prior`: the packed dialogue up to the verdict's word, in which the prior gives these answers (the paper's protocol).
- `generate`: the same questions; the model writes the answers greedily, one after the other. In `single_turn`, whose one answer ends with
  the verdict, it writes that answer until it comes to "Verdict:" itself, or has ended; then "Verdict:" is given.
- `none`: the verdict's question alone. The prompt is that of the clip's packed `no_physics` dialogue up to the verdict's word:
  `<s>`, the system sentence where there is one, `USER: <video>`, the verdict's question, `ASSISTANT: Verdict:`, and no other turn.
  A `no_physics` dialogue has no answers before the verdict, so that this is what it always is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from vlmphys.dialogue import further_question, verdict_lead
from vlmphys.inference import Asked
from vlmphys.predictions import Grounding
from vlmphys.prompts import description_question
from vlmphys.records import Variant
from vlmphys.shards import DialogueRow


@dataclass(frozen=True)
class Asking:
    """One way to ask: the variant that rows are named by, and where the answers before the verdict come from."""

    variant: Variant
    grounding: Grounding

    @property
    def dialogue(self) -> Variant:
        """The variant of the packed dialogue that is read."""
        return Variant.NO_PHYSICS if self.grounding is Grounding.NONE else self.variant


def askings_of(variants: Sequence[Variant], grounds: Sequence[Grounding]) -> list[Asking]:
    """Every variant with every grounding, none twice; `no_physics` has no answers before the verdict, whatever is asked for."""
    found = [Asking(variant, Grounding.NONE if variant is Variant.NO_PHYSICS else ground) for variant in variants for ground in grounds]
    return list(dict.fromkeys(found))


def files_of(out: Path, askings: Sequence[Asking]) -> list[Path]:
    """The file of each asking: `out`, and for several the name of what differs before its suffix (`base.multi_turn.jsonl`)."""
    if len(askings) == 1:
        return [out]
    many = [len({asking.variant for asking in askings}) > 1, len({(asking.variant, asking.grounding) for asking in askings})
            > len({asking.variant for asking in askings})]
    names = [[name.value for name, differs in zip((asking.variant, asking.grounding), many) if differs] for asking in askings]
    return [out.with_name(".".join([out.stem, *name]) + out.suffix) for name in names]


class Asker:
    """Makes what clips are asked of their packed dialogues."""

    def __init__(self, tokenizer, describe: bool) -> None:
        self.tokenizer, self.describe = tokenizer, describe
        self.lead = verdict_lead(tokenizer)

    def asked(self, row: DialogueRow, grounding: Grounding, category: str) -> Asked:
        """Raises ValueError where the tokenizer writes "Verdict:" otherwise after sentences, so that its place cannot be known."""
        start, ids, turn = row.verdict_span[0], np.asarray(row.input_ids), np.asarray(row.turn)
        plain = Asked((ids[:start].tolist(),), self.lead, describe=self._describe(category))
        if grounding is not Grounding.GENERATE:
            return plain
        if tuple(plain.pieces[0][-len(self.lead):]) != self.lead:
            raise ValueError(f"{row.clip_id}: with this tokenizer the text before a verdict is not the same in every dialogue: use --ground prior")
        last = int(turn.max())
        begins = [int(np.flatnonzero(turn == number)[0]) for number in range(1, last + 1)]
        ends = [int(np.flatnonzero(turn == number)[-1]) for number in range(1, last)]      # each the place of a </s>
        if last == 1:
            return replace(plain, pieces=(ids[:begins[0]].tolist(), self.lead), leads=True)
        between = [ids[end:begin].tolist() for end, begin in zip(ends[:-1], begins[1:-1])]
        return replace(plain, pieces=(ids[:begins[0]].tolist(), *between, ids[ends[-1]:start].tolist()))

    def _describe(self, category: str) -> tuple[int, ...]:
        return further_question(description_question(category), self.tokenizer) if self.describe else ()
