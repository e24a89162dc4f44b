"""Dialogues about videos in the JSON of two other toolkits, written and read: nothing that a sample holds is lost on the way.

LLaMA-Factory's sharegpt form, as its `data/README.md` documents it (section "Multimodal Video Dataset", messages tagged as in "OpenAI
Format", as in its `mllm_video_demo.json`): `messages` with `role` and `content`, `videos` with as many paths as there are `<video>` marks,
`system` where there is one. Video-LLaVA's, as its `videollava/train/train.py` reads it: `id`, `video`, `conversations` with `from` and
`value`. Both pass over keys that they do not know; ours stand beside theirs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from vlmphys.prompts import VIDEO, VIDEO_FORM, Turn

SHAREGPT, VIDEO_LLAVA = "sharegpt", "video_llava"
FORMATS = (SHAREGPT, VIDEO_LLAVA)
OWN_KEYS = ("clip_id", "category", "state", "split", "variant")
# role_tag, content_tag, user_tag, assistant_tag, system_tag of a dataset's description; sharegpt's own names first.
TAGS = (("from", "value", "human", "gpt", "system"), ("role", "content", "user", "assistant", "system"))
DESCRIPTION = {"formatting": SHAREGPT, "columns": {"messages": "messages", "videos": "videos"},
               "tags": dict(zip(("role_tag", "content_tag", "user_tag", "assistant_tag", "system_tag"), TAGS[1]))}


@dataclass(frozen=True)
class Sample:
    """One dialogue about one video. The keys of `OWN_KEYS` are "" where another program wrote the file, `system` where there is none."""

    video: str
    turns: tuple[Turn, ...]
    system: str = ""
    clip_id: str = ""
    category: str = ""
    state: str = ""
    split: str = ""
    variant: str = ""


def to_sharegpt(sample: Sample) -> dict:
    """A row of LLaMA-Factory's sharegpt JSON. The video's mark stands first in the first question, as in our own dialogues."""
    messages = _messages(sample, *TAGS[1][:4])
    system = {"system": sample.system} if sample.system else {}
    return {"messages": messages, "videos": [sample.video], **system, **_own(sample)}


def to_video_llava(sample: Sample) -> dict:
    """A row of Video-LLaVA's JSON. Its trainer writes its own system sentence: ours is kept beside, it does not read it."""
    system = {"system": sample.system} if sample.system else {}
    name = "|".join(part for part in (sample.clip_id, sample.variant) if part) or sample.video
    return {"id": name, "video": sample.video, "conversations": _messages(sample, *TAGS[0][:4]), **system, **_own(sample)}


def description(file_name: str, system: bool) -> dict:
    """What a `dataset_info.json` says of one sharegpt file."""
    columns = {**DESCRIPTION["columns"], **({"system": "system"} if system else {})}
    return {"file_name": file_name, **DESCRIPTION, "columns": columns}


def read_samples(path: str | Path) -> list[Sample]:
    """All dialogues about a video in a JSON of either form; rows without a video (text and pictures) are passed over.

    Raises ValueError, naming the file and the row, for what is neither form, and for rows with several videos.
    """
    return [sample for _, sample in _samples(Path(path))]


def listed_videos(path: Path) -> Iterator[tuple[str, dict]]:
    """(file and row, the row's path and own keys) of each dialogue in a JSON of either form."""
    for place, sample in _samples(path):
        yield place, {"path": sample.video, **{key: value for key, value in _own(sample).items() if key != "variant"}}


def _own(sample: Sample) -> dict[str, str]:
    return {key: value for key, value in asdict(sample).items() if key in OWN_KEYS and value}


def _messages(sample: Sample, role: str, content: str, user: str, assistant: str) -> list[dict]:
    messages = []
    for number, turn in enumerate(sample.turns):
        messages.append({role: user, content: (VIDEO_FORM if number == 0 else "") + turn.question})
        messages.append({role: assistant, content: turn.answer})
    return messages


def _samples(path: Path) -> Iterator[tuple[str, Sample]]:
    try:
        rows = json.loads(path.read_bytes())
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(rows, list):
        raise ValueError(f"{path}: a list of dialogues is expected, in LLaMA-Factory's sharegpt form or Video-LLaVA's")
    for number, row in enumerate(rows, 1):
        place = f"{path}, row {number}"
        if not isinstance(row, dict) or not isinstance(row.get("messages", row.get("conversations")), list):
            raise ValueError(f"{place}: has neither 'messages' nor 'conversations': LLaMA-Factory's sharegpt form or Video-LLaVA's is expected")
        videos = row.get("videos", row.get("video"))
        videos = [videos] if isinstance(videos, str) else videos or []
        if not videos:
            continue
        if len(videos) > 1 or not isinstance(videos[0], str):
            raise ValueError(f"{place}: names {len(videos)} videos or none that is a path; a dialogue here is about one video file")
        system, turns = _turns(row.get("messages", row.get("conversations")), place)
        own = {key: row[key] for key in OWN_KEYS if row.get(key)}
        wrong = [key for key, value in {**own, "system": row.get("system") or ""}.items() if not isinstance(value, str)]
        if wrong:
            raise ValueError(f"{place}: {wrong[0]} must be a text")
        yield place, Sample(videos[0], turns, system or row.get("system") or "", **own)


def _turns(messages: list, place: str) -> tuple[str, tuple[Turn, ...]]:
    """The system sentence, "" for none, and the turns of a dialogue in either wording, the video's mark taken off the first question."""
    tags = next((tags for tags in TAGS if messages and isinstance(messages[0], dict) and tags[0] in messages[0]), None)
    if tags is None:
        raise ValueError(f"{place}: its messages have neither 'role' and 'content' nor 'from' and 'value'")
    role, content, user, assistant, system = tags
    said = [(message.get(role), message.get(content)) if isinstance(message, dict) else (None, None) for message in messages]
    sentence = said.pop(0)[1] if said[0][0] == system else ""
    expected = [user, assistant] * (len(said) // 2)
    if [speaker for speaker, _ in said] != expected or not said or not all(isinstance(text, str) for _, text in said):
        raise ValueError(f"{place}: its messages must be texts of {user} and {assistant} in turns, {user} first, {assistant} last")
    texts = [text for _, text in said]
    # The mark may stand before or behind the first question, on a line of its own or not: our own form keeps every letter.
    texts[0] = texts[0].removeprefix(VIDEO_FORM) if texts[0].startswith(VIDEO_FORM) else texts[0].replace(VIDEO, "", 1).strip("\n")
    return sentence or "", tuple(Turn(question, answer) for question, answer in zip(texts[::2], texts[1::2]))
