"""Prediction files of other programs, whose rows are texts: LLaMA-Factory's, lmms-eval's and Phys-AD's. Each becomes rows of ours. No torch.

LLaMA-Factory, `generated_predictions.jsonl`: `{"prompt", "predict", "label"}` a line, texts, in the order of the data set, no id
(hiyouga/LLaMA-Factory, src/llamafactory/train/sft/trainer.py, save_predictions, and scripts/vllm_infer.py; issue 6070 asks for more columns).
lmms-eval, `*_samples_TASK.jsonl`: `doc_id` (place in the task's split), `target` (a text), `filtered_resps` (list of texts, nested in some
versions), `resps` only where it differs, `doc` left out (EvolvingLMMs-Lab/lmms-eval, lmms_eval/loggers/evaluation_tracker.py,
save_results_samples).
Phys-AD's text files (Chopper-233/Physics-AD): `path: answer` a line (src/VideoLLaVA/test.py), or a line with the path and one with `Q6: answer`
(src/VideoChatgpt/test.py); scores stand there as `{anomalyscore=0.7}` (src/VideoLLaMA/evaluator.py) or alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from vlmphys.prompts import parse_verdict, reason_of
from vlmphys.records import VIDEO_SUFFIXES, Split, Verdict, label_of
from vlmphys.rows import check_file, json_object, table_rows_of, unreadable

BENCHMARK_THRESHOLD = 0.5      # Phys-AD's own: a printed score of 0.5 or more is anomalous
ID_COLUMNS = ("clip_id", "id", "video", "path")
_WORDS = {"normal": Verdict.NORMAL, "abnormal": Verdict.ANOMALOUS, "anomalous": Verdict.ANOMALOUS}
_WORD = "(normal|abnormal|anomalous)"
_LEADING = re.compile(rf"^[\"'(\[*]*{_WORD}\b[\"')\]*]*\s*(?:[.,:;!\n]|$)", re.IGNORECASE)
_STATED = re.compile(rf"\b(?:is|are|looks|appears|seems)(?: to be)? {_WORD}\b", re.IGNORECASE)
# A sentence with one of these may deny, ask or guess.
_UNSURE = re.compile(r"\b(?:not|no|never|neither|nor|whether|if|or|should|would|could|might|may|cannot|can|unclear|unless|assum\w+)\b|n't",
                     re.IGNORECASE)
_SCORE = re.compile(r"\{\s*anomaly\s*score\s*[=:]\s*([0-9.]+)\s*\}", re.IGNORECASE)
_NUMBER = re.compile(r"(?:0|1|0?\.[0-9]+|[01]\.[0-9]+)")
_PATH = "|".join(re.escape(suffix) for suffix in VIDEO_SUFFIXES)
_PATH_AND_ANSWER = re.compile(rf"^(\S.*?(?:{_PATH}))\s*:(?!/)\s*(.*)$", re.IGNORECASE)
_PATH_ALONE = re.compile(rf"^(\S.*(?:{_PATH}))\s*$", re.IGNORECASE)
_QUESTION = re.compile(r"^Q[0-9]+:\s*")


def answer_verdict(text: str) -> Verdict:
    """The verdict of a free answer, read strictly: `Verdict: ...`, else the word alone or first and set off by a sign, else one plain statement
    ("the fan is abnormal") in the first sentence without a word that denies or doubts, else a printed score at 0.5; else `UNPARSED`.

    "Yes" and "no" are not read: which of them is a fault depends on a question that the file does not hold.
    """
    text = text.strip()
    if re.search(r"\bVerdict:", text, re.IGNORECASE):
        return parse_verdict(text)
    if leading := _LEADING.match(text):
        return _WORDS[leading.group(1).lower()]
    sentence = re.split(r"(?<=[.!?])\s|\n", text, maxsplit=1)[0]
    stated = {word.lower() for word in _STATED.findall(sentence)}
    spoken = {word.lower() for word in re.findall(rf"\b{_WORD}\b", sentence, re.IGNORECASE)}
    if len(stated) == 1 and spoken == stated and not _UNSURE.search(sentence):
        return _WORDS[stated.pop()]
    if (score := answer_score(text)) is not None:
        return Verdict.ANOMALOUS if score >= BENCHMARK_THRESHOLD else Verdict.NORMAL
    return Verdict.UNPARSED


def answer_score(text: str) -> float | None:
    """The score from 0 to 1 that an answer is, or gives as `{anomalyscore=0.7}`; None where it gives none, several, or one outside."""
    found = _SCORE.findall(text) or [text.strip().rstrip(".") if text.strip() != "." else ""]
    if len(found) != 1 or not _NUMBER.fullmatch(found[0]):
        return None
    value = float(found[0])
    return value if 0 <= value <= 1 else None


def clip_id_of_path(path: str) -> str:
    """The clip id in a video's path: without suffix, from the folder above `train` or `test` on, where there is such a folder."""
    pure = PurePosixPath(path.strip().replace("\\", "/"))
    parts = [part for part in pure.parts if part != "/"]
    if pure.suffix.lower() in VIDEO_SUFFIXES:
        parts[-1] = pure.stem
    sides = [place for place, part in enumerate(parts[:-1]) if place and part in (Split.TRAIN.value, Split.TEST.value)]
    return "/".join(parts[sides[-1] - 1:] if sides else parts)


def answer_rows(path: Path, order: Sequence[str] | None = None) -> Iterator[tuple[int, dict]] | None:
    """Line number and row (our columns) of another program's file of texts; None where the file is none of those.

    order: the clip ids in the order of the data that the program read, for rows without an id. The iterator raises ValueError, with file
    and line, where ids are needed and missing, and where there are not as many rows as clips.
    """
    path = Path(path)
    check_file(path)
    if path.suffix.lower() == ".txt":
        return _phys_ad_rows(path)
    if path.suffix.lower() == ".csv":
        return None
    try:
        with open(path, "rb") as stream:
            first = next((line for line in stream if line.strip()), b"")
    except OSError as error:
        raise ValueError(unreadable(path, error)) from error
    # A file that is no JSONL is refused by the reader of rows, with its line.
    keys = json_object(first, path, 1).keys() if first.lstrip().startswith(b"{") and first.rstrip().endswith(b"}") else set()
    if "doc_id" in keys and keys & {"filtered_resps", "resps"}:
        return _lmms_eval_rows(path, order)
    if "predict" in keys and "score" not in keys:
        return _llama_factory_rows(path, order)
    return None


def _row(clip_id: str, answer: str, label: int | None) -> dict:
    """One row in our columns."""
    row = {"clip_id": clip_id, "score": answer_score(answer), "verdict": answer_verdict(answer).value,
           "explanation": reason_of(answer) or answer.strip()}
    return row if label is None else {**row, "label": label}


def _label_of_text(text: object) -> int | None:
    """0 or 1 where the reference answer states a verdict."""
    verdict = answer_verdict(str(text)) if text is not None else Verdict.UNPARSED
    return None if verdict is Verdict.UNPARSED else int(verdict is Verdict.ANOMALOUS)


def _llama_factory_rows(path: Path, order: Sequence[str] | None) -> Iterator[tuple[int, dict]]:
    place = -1
    for place, (number, row) in enumerate(table_rows_of(path, ())):
        named = next((row[column] for column in ID_COLUMNS if isinstance(row.get(column), str) and row[column]), None)
        if named is None and order is None:
            raise ValueError(f"{path}:{number}: a row of LLaMA-Factory names no clip: give --labels with the clips in the order of its data set "
                             f"(or --data, for the order of the packed test clips), or add a clip_id to each row")
        if named is None and place >= len(order):
            raise ValueError(f"{path}:{number}: there are more rows than the {len(order)} clips of --labels or --data: give the list "
                             "that was predicted")
        if not isinstance(row.get("predict"), str):
            raise ValueError(f"{path}:{number}: predict is a {type(row.get('predict')).__name__}, a text is expected")
        yield number, _row(clip_id_of_path(named) if named else order[place], row["predict"], _label_of_text(row.get("label")))
    if order is not None and place >= 0 and named is None and place + 1 != len(order):
        raise ValueError(f"{path} has {place + 1} rows without a clip id, and --labels or --data {len(order)} clips: the order would not tell "
                         "which is which; give the list that was predicted")


def _lmms_eval_rows(path: Path, order: Sequence[str] | None) -> Iterator[tuple[int, dict]]:
    for number, row in table_rows_of(path, ()):
        document = row["doc"] if isinstance(row.get("doc"), dict) else row
        named = next((document[column] for column in ID_COLUMNS if isinstance(document.get(column), str) and document[column]), None)
        place = row.get("doc_id")
        if named is None and order is None:
            raise ValueError(f"{path}:{number}: a sample of lmms-eval names no clip: give --labels with the clips in the order of the task's data "
                             "(or --data, for the order of the packed test clips)")
        if named is None and (type(place) is not int or not 0 <= place < len(order)):
            raise ValueError(f"{path}:{number}: doc_id {place!r} is no place among the {len(order)} clips of --labels or --data: give the list "
                             "that the task read")
        answer = row.get("filtered_resps", row.get("resps"))
        while isinstance(answer, list) and len(answer) == 1:
            answer = answer[0]
        if not isinstance(answer, str):
            raise ValueError(f"{path}:{number}: filtered_resps is {row.get('filtered_resps', row.get('resps'))!r:.80}, one text is expected")
        yield number, _row(clip_id_of_path(named) if named else order[place], answer, _label_of_text(row.get("target")))


def _phys_ad_rows(path: Path) -> Iterator[tuple[int, dict]]:
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: lines of the form path: answer are expected") from error
    except OSError as error:
        raise ValueError(unreadable(path, error)) from error
    start, video, answer = 0, None, []
    for number, line in enumerate([*lines, None], start=1):
        match = (_PATH_AND_ANSWER.match(line) or _PATH_ALONE.match(line)) if line is not None else None
        if line is not None and match is None:
            if video is None and line.strip():
                raise ValueError(f"{path}:{number}: an answer before any video's path: lines of the form path: answer are expected")
            answer.append(line)
            continue
        if video is not None:
            clip_id = clip_id_of_path(video)
            parts = clip_id.split("/")
            # The published scripts take the label from the path in the same way.
            yield start, _row(clip_id, _QUESTION.sub("", "\n".join(answer).strip()), label_of(parts[-2]) if len(parts) > 2 else None)
        if match:
            start, video, answer = number, match.group(1), list(match.groups()[1:])
