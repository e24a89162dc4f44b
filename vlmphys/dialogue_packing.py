"""Priors to dialogue shards: a dialogue of each packed clip in each variant, tokenised for one model; no video is opened."""

from __future__ import annotations

import json
import random
import shutil
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from vlmphys.dialogue import TokenizedDialogue, tokenize_dialogue
from vlmphys.files import clear_disk_errors, finish_swap, json_bytes, swap_folder, write_atomic
from vlmphys.packing import PackReport, report_of
from vlmphys.priors import Prior, priors_sha256
from vlmphys.prompts import PROMPT_IDS, SYSTEM, dialogue_text
from vlmphys.records import Split, Variant, sha256_text, stable_int
from vlmphys.shard_files import MANIFEST, VERSION, ShardWriter, manifest_of, read_manifest
from vlmphys.shards import DIALOGUES, DIALOGUES_PER_BATCH, DialogueTable, dialogues_schema
from vlmphys.splits import SplitFile
from vlmphys.standing import is_sound, stored_inputs
from vlmphys.unfinished import check_partial

DIALOGUES_PER_SHARD = 8192
# The side whose questions are asked in several wordings; dialogues of earlier versions, where all sides were, have no such key.
WORDINGS = Split.TRAIN.value


@dataclass(frozen=True)
class DialogueSettings:
    """What decides a dialogue besides priors and tokenizer; `shuffle_labels` is a control experiment's seed, or None."""

    variants: tuple[str, ...]
    seed: int = 0
    system: bool = False
    shuffle_labels: int | None = None

    def __post_init__(self):
        known = [variant.value for variant in Variant]
        wrong = [variant for variant in self.variants if variant not in known]
        if wrong or not self.variants or len(set(self.variants)) != len(self.variants):
            raise ValueError(f"variants {','.join(self.variants)!r}: must be one or more of {', '.join(known)}, each once")


class DialogueMaker:
    """Makes the dialogue of any clip for one model: `facts` and `tokenizer` of the model, `priors` by category, T frames a clip."""

    def __init__(self, facts, tokenizer, priors: dict[str, Prior], frames: int, settings: DialogueSettings):
        self.facts, self.tokenizer, self.priors, self.frames, self.settings = facts, tokenizer, priors, frames, settings

    def make(self, clip_id: str, category: str, state: str, variant: str, paraphrased: bool) -> TokenizedDialogue:
        """Tokenise one dialogue; ValueError, naming the clip, where it does not fit.

        Train clips are `paraphrased`; val and test clips are all asked in the same words, so that no score depends on a clip's name.
        """
        turns = dialogue_text(self.priors[category], state, variant, f"{clip_id}|{variant}|{self.settings.seed}", paraphrased=paraphrased)
        return tokenize_dialogue(turns, self.tokenizer, self.frames * self.facts.tokens_per_frame, self.facts.max_positions,
                                 f"{clip_id} ({variant})", SYSTEM if self.settings.system else "")

    def check(self, states: dict[str, tuple[str, str]]) -> None:
        """Make one dialogue of each category, state and variant, so that what cannot work is found before hours of decoding.

        `states`: (category, state) by clip id. Raises ValueError for a state without texts and for dialogues that do not fit.
        """
        first = {place: clip_id for clip_id, place in reversed(states.items())}
        for (category, state), clip_id in first.items():
            for variant in self.settings.variants:
                self.make(clip_id, category, state, variant, paraphrased=True)

    def meta(self) -> dict:
        """What a dialogue shard carries about its making."""
        return {"version": VERSION, "tokenizer_sha256": self.facts.tokenizer_sha256, "priors_sha256": priors_sha256(self.priors),
                "prompt_ids": PROMPT_IDS, "frames": self.frames, "tokens_per_frame": self.facts.tokens_per_frame,
                "video_token_id": self.facts.video_token_id, "variants": list(self.settings.variants), "seed": self.settings.seed,
                "system": self.settings.system, "wordings": WORDINGS, "controls": {"shuffle_labels": self.settings.shuffle_labels}}


def pack_dialogues(states: dict[str, tuple[str, str]], split: SplitFile, out: Path, maker: DialogueMaker, repair: bool = False) -> PackReport:
    """Write `out/dialogues` for the packed clips, (category, state) by clip id; nothing is decoded, nothing happens where it is all there:
    each shard of the size that was written, with `repair` of the same bytes, and the manifest whole.

    The former folder stands until the new one is complete. Raises ValueError, naming the clip, for a dialogue that does not fit.
    """
    target, partial = out / DIALOGUES, out / f"{DIALOGUES}.partial"
    finish_swap(partial, target, MANIFEST)
    settings = maker.settings
    if settings.shuffle_labels is not None:
        states = shuffled_states(states, split, settings.shuffle_labels)
    meta, train = maker.meta(), set(split.clip_ids(Split.TRAIN))
    inputs = sha256_text(json.dumps([meta, DIALOGUES_PER_SHARD, sorted(states.items()), sorted(train)], sort_keys=True))
    if stored_inputs(target, anew=True) == inputs and all(is_sound(target, line, repair) for line in read_manifest(target, DIALOGUES)["shards"]):
        return report_of(DialogueTable.open(target).manifest, True)
    with clear_disk_errors(out, "finished shards"):
        check_partial(partial)
        if partial.exists():
            shutil.rmtree(partial)
        partial.mkdir()
        keys = [(clip_id, variant) for clip_id in sorted(states) for variant in settings.variants]
        shards = []
        try:
            for start in range(0, len(keys), DIALOGUES_PER_SHARD):
                writer = ShardWriter(partial / f"{DIALOGUES}-{len(shards):05d}.arrow", dialogues_schema(meta), DIALOGUES_PER_BATCH)
                for clip_id, variant in keys[start:start + DIALOGUES_PER_SHARD]:
                    dialogue = maker.make(clip_id, *states[clip_id], variant, paraphrased=clip_id in train)
                    writer.add({"clip_id": clip_id, "variant": variant, "input_ids": dialogue.input_ids, "turn": dialogue.turn,
                                "verdict_span": dialogue.verdict_span})
                shards.append(writer.close())
            manifest = manifest_of(DIALOGUES, meta, shards, inputs_sha256=inputs)
            write_atomic(partial / MANIFEST, json_bytes(manifest))
            swap_folder(partial, target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return report_of(manifest, False)


def shuffled_states(states: dict[str, tuple[str, str]], split: SplitFile, seed: int) -> dict[str, tuple[str, str]]:
    """A control: the states of each category's train clips dealt out anew among them; val and test keep the truth."""
    groups: dict[str, list[str]] = defaultdict(list)
    for clip_id in split.clip_ids(Split.TRAIN):
        if clip_id in states:
            groups[states[clip_id][0]].append(clip_id)
    dealt = dict(states)
    for category, clip_ids in groups.items():
        hand = [states[clip_id] for clip_id in clip_ids]
        random.Random(stable_int(seed, "shuffle_labels", category)).shuffle(hand)
        dealt.update(zip(clip_ids, hand))
    return dealt
