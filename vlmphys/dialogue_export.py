"""Our dialogues as samples for other toolkits: the very texts that pack.py tokenises, without tokens and without a decoded frame."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

from vlmphys.bridges import FORMATS, SHAREGPT, VIDEO_LLAVA, Sample, description, to_sharegpt, to_video_llava
from vlmphys.files import json_bytes, read_json, write_atomic, writing
from vlmphys.layout import Clip
from vlmphys.priors import Prior
from vlmphys.prompts import SYSTEM, dialogue_text
from vlmphys.records import Split
from vlmphys.splits import SplitFile

INFO = "dataset_info.json"


def make_samples(clips: list[Clip], split: SplitFile, priors: dict[str, Prior], variant: str, seed: int, system: bool,
                 relative_to: Path | None) -> list[Sample]:
    """The dialogue of each clip that the split names, in one variant, in order of clip ids.

    Video paths are whole ones, or relative to a folder. Raises ValueError for a state without texts, and for folders of frames, which
    neither form can name.
    """
    samples = []
    for clip in sorted(clips, key=lambda clip: clip.clip_id):
        if os.path.isdir(clip.path):
            raise ValueError(f"{clip.clip_id}: is a folder of frames, and the forms {', '.join(FORMATS)} name video files: encode it first")
        side = split.clips[clip.clip_id]
        turns = dialogue_text(priors[clip.category], clip.state, variant, f"{clip.clip_id}|{variant}|{seed}", paraphrased=side is Split.TRAIN)
        path = os.path.relpath(clip.path, relative_to) if relative_to else str(clip.path.absolute())
        samples.append(Sample(path, tuple(turns), SYSTEM if system else "", clip.clip_id, clip.category, clip.state, side.value, variant))
    return samples


def check_form(out: Path, variants: Iterable[str], form: str) -> None:
    """Raise ValueError, naming the file, where a folder holds dialogues of one of the variants in the other form, or something else of that name:
    before anything is written."""
    for path in (out / f"{variant}_{side.value}.json" for variant in variants for side in Split):
        if not path.exists():
            continue
        try:
            rows = json.loads(path.read_bytes())
        except (OSError, ValueError, RecursionError):
            rows = None
        first = rows[0] if isinstance(rows, list) and rows and isinstance(rows[0], dict) else {}
        found = SHAREGPT if "messages" in first else VIDEO_LLAVA if "conversations" in first else None
        if found != form:
            raise ValueError(f"--out {out}: {path.name} there holds {f'dialogues in the form {found}' if found else 'no dialogues of ours'}, which "
                             f"--format {form} would write over: give another --out, or move it away; nothing was written")


def write_samples(out: Path, samples: list[Sample], form: str) -> dict[str, int]:
    """Write `<variant>_<side>.json` for samples of one variant; for sharegpt an entry of each in `dataset_info.json`, whose others stay.

    Returns how many samples each file holds. Raises ValueError for a folder that cannot be written.
    """
    convert = to_sharegpt if form == SHAREGPT else to_video_llava
    counts, entries = {}, {}
    with writing("--out", out):
        out.mkdir(parents=True, exist_ok=True)
        for side in Split:
            own = [sample for sample in samples if sample.split == side.value]
            if own:
                name = f"{own[0].variant}_{side.value}"
                write_atomic(out / f"{name}.json", json_bytes([convert(sample) for sample in own]))
                counts[f"{name}.json"] = len(own)
                entries[f"vlmphys_{name}"] = description(f"{name}.json", bool(own[0].system))
        if form == SHAREGPT:
            known = read_json(out / INFO, "delete it, or give another --out") if (out / INFO).exists() else {}
            write_atomic(out / INFO, json_bytes({**known, **entries}))
    return counts
