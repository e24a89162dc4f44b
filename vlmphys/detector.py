"""One clip in, one verdict out, with a model that stays loaded: `from vlmphys import Detector; Detector(run).detect(path, category="fan")`.

The frames are chosen and fitted, and the dialogue is written, as they were for the run's training; the score is that of launch/predict.py.
Shape suffixes: T frames, H W pixels, C colour channels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vlmphys.dialogue import tokenize_dialogue, verdict_continuations
from vlmphys.files import read_json
from vlmphys.frame_rules import frame_indices
from vlmphys.guessing import Guess, guess_category
from vlmphys.inference import Judged, judge_batch
from vlmphys.model import load_tokenizer, normalise_frames, read_facts, video_features
from vlmphys.pixels import fit_frames
from vlmphys.out_of_memory import halving
from vlmphys.predict import PredictOptions, device_and_dtype, find_source, last_answer, load_network
from vlmphys.predictions import Explain
from vlmphys.priors import NORMAL_STATE, Prior, known_categories, load_prior, load_priors
from vlmphys.prompts import SYSTEM, dialogue_text
from vlmphys.records import AUTO, Variant, nearest
from vlmphys.regions import EVERY, Regions, cut, region_of
from vlmphys.video import Shape, read_picked
from vlmphys.windows import Window, read_windows

WINDOWS_A_BATCH = 8


@dataclass(frozen=True)
class Moment:
    """What is said of one window, in seconds from the video's first frame."""

    start_seconds: float
    stop_seconds: float
    score: float
    probability: float
    verdict: str


@dataclass(frozen=True)
class Detection:
    """What is said of one clip.

    score: raw log-odds of Anomalous over Normal. probability, verdict (`normal` or `anomalous`): by the run's calibration, where it has one;
    anomalous_from: the probability from which the verdict is anomalous, 0.5 without a calibration.
    reason: the model's own words, None where none was asked for. frames, seconds: numbers and times of the frames that were looked at
    (seconds None where the file has no frame rate). category_probability: of the category among those of the run, where it was guessed.
    timeline: every window of a video that was cut into some; score, reason and frames are then those of the highest one.
    pictures: these frames as the model saw them, T x H x W x C, uint8.
    """

    source: str
    category: str
    verdict: str
    probability: float
    score: float
    reason: str | None
    frames: tuple[int, ...]
    seconds: tuple[float | None, ...]
    category_probability: float | None = None
    timeline: tuple[Moment, ...] = ()
    anomalous_from: float = 0.5
    pictures: np.ndarray | None = field(default=None, repr=False, compare=False)

    def as_json(self) -> dict[str, Any]:
        """All but the pictures."""
        return {key: value for key, value in asdict(replace(self, pictures=None)).items() if key != "pictures"}


class Detector:
    """A finished run, loaded once. `priors`: a folder of one's own, as in training; `device`: `auto`, `cpu` or `cuda`; `dtype`: `auto` (bf16 on a
    GPU, fp32 on a CPU), `fp32`, `bf16`, or `4bit` on a GPU.

    Raises ValueError for a folder that is no finished run, weights that cannot be read, a calibration of other weights, and a device or a dtype
    that this machine has not.
    """

    def __init__(self, run: str | Path, priors: str | Path | None = None, device: str = "auto", dtype: str = "auto") -> None:
        options = PredictOptions(Path(), Path(), run=Path(run), device=device, dtype=dtype)
        source = find_source(options)
        place, precision = device_and_dtype(options)
        self.priors_folder = None if priors is None else Path(priors)
        if self.priors_folder is not None and not self.priors_folder.is_dir():
            raise ValueError(f"--priors {priors}: no such folder; give the one that holds <category>.yaml")
        facts = read_json(source.run.folder / "data.json", "the run folder is incomplete")
        absent = [key for key in ("frame_settings", "system", "categories") if key not in facts]
        if absent:
            raise ValueError(f"{source.run.folder / 'data.json'} does not say {', '.join(absent)}: it is of an earlier version; train again")
        self.label, self.variant, self.calibration = source.label, source.variant, source.calibration
        self.frame_settings: dict[str, Any] = facts["frame_settings"]
        self.regions: Regions = self.frame_settings.get("regions", {})
        self.system: str = SYSTEM if facts["system"] else ""
        self.categories: tuple[str, ...] = tuple(facts["categories"])
        self.tokenizer = load_tokenizer(source.facts_from)
        self.facts = read_facts(source.facts_from, self.tokenizer)
        self.continuations = verdict_continuations(self.tokenizer)
        self.network = load_network(source, options, place, precision)
        self._prompts: dict[str, _Prompt] = {}
        self._candidates: dict[str, Prior] | None = None

    def check_category(self, category: str) -> None:
        """Raise ValueError for a category without a prior, and for `auto` where the run cannot name one."""
        if not isinstance(category, str):
            raise ValueError(f"category={category!r}: give the name of one that has a prior ({', '.join(self.categories)} in training), or 'auto'")
        if category != AUTO:
            self._prompt(category)
        elif set(self.regions) - {EVERY}:
            raise ValueError("--category auto: the run was trained on a region of interest of its own for some categories (pack.py --roi), and where "
                             "to look must be known before the category can be guessed; give --category")
        elif self.variant is Variant.NO_PHYSICS:
            raise ValueError("--category auto needs a run that names the parts of what it sees: this one was trained on no_physics; give --category")
        else:
            self._known()

    def detect(self, path: str | Path, category: str, explain: Explain | str = Explain.ALL) -> Detection:
        """Judge one clip. `category` has a prior, or is `auto`.

        Raises VideoError (a ValueError) with the reason for a file that is no usable video, and ValueError as `check_category`.
        """
        explain = _explain(explain)
        self.check_category(category)
        settings = self.frame_settings
        clip = read_picked(path, lambda n_frames: frame_indices(n_frames, settings["frames"], settings["rule"]), shape=self._shape(category))
        pictures_THWC = clip.frames_THWC
        category, sure = self._category(category, pictures_THWC)
        judged = self._judge(category, [pictures_THWC], explain)[0]
        seconds = tuple(round(int(number) / clip.fps, 3) if clip.fps else None for number in clip.frame_index)
        return self._detection(path, category, sure, judged, clip.frame_index, seconds, pictures_THWC)

    def detect_windows(self, path: str | Path, category: str, window_seconds: float, stride_seconds: float,
                       explain: Explain | str = Explain.ALL) -> Detection:
        """Judge a long video window by window; the verdict is that of the window with the highest score, which alone is explained.

        A category is guessed once, on the first window. Raises ValueError as `detect`, and for windows that hold too few frames.
        """
        explain = _explain(explain)
        self.check_category(category)
        settings = self.frame_settings
        windows = read_windows(path, window_seconds, stride_seconds, settings["rule"], settings["frames"], self._shape(category))
        sure, best, moments = None, None, []
        for batch in _batches(windows, WINDOWS_A_BATCH):
            if not moments:
                category, sure = self._category(category, batch[0].clip.frames_THWC)
            for window, judged in zip(batch, self._judge(category, [window.clip.frames_THWC for window in batch], Explain.NONE)):
                moments.append(Moment(round(window.start_seconds, 3), round(window.stop_seconds, 3), judged.score,
                                      self.calibration.probability(judged.score), judged.verdict.value))
                if best is None or judged.score > best[1].score:
                    best = window, judged
        window, judged = best
        if explain.wants(judged.verdict):
            # Alone, its score can differ in the last digits from that in the batch: the timeline's is kept.
            judged = replace(judged, generated=self._judge(category, [window.clip.frames_THWC], Explain.ALL)[0].generated)
        found = self._detection(path, category, sure, judged, window.clip.frame_index, tuple(window.seconds_T.round(3).tolist()),
                                window.clip.frames_THWC)
        return replace(found, timeline=tuple(moments))

    def _shape(self, category: str) -> Shape:
        """What makes a decoded picture the model's, as in packing. A category to be guessed has the region of all."""
        region = region_of(self.regions, category)
        return lambda image_HWC: fit_frames(cut(image_HWC, region)[None], self.facts.image_size, self.frame_settings["fit"])[0]

    def _detection(self, path, category: str, sure: float | None, judged: Judged, frame_index, seconds, pictures_THWC) -> Detection:
        given = self._prompt(category).given
        _, reason = last_answer(given, self.continuations[judged.verdict], judged.generated, self.tokenizer)
        return Detection(str(path), category, judged.verdict.value, self.calibration.probability(judged.score), judged.score, reason,
                         tuple(int(number) for number in frame_index), seconds, sure, (), self.calibration.anomalous_from, pictures_THWC)

    def _judge(self, category: str, clips: Sequence[np.ndarray], explain: Explain) -> list[Judged]:
        prompt = self._prompt(category).ids
        # Where a GPU's memory does not do for all of them, half as many are judged at a time.
        parts = halving(len(clips), lambda smaller: None)(len(clips), lambda start, stop: judge_batch(
            self.network, self.facts, [prompt] * (stop - start), np.stack(clips[start:stop]), self.continuations, self.tokenizer.eos_token_id,
            explain, threshold=self.calibration.threshold))
        judged = [one for part in parts for one in part]
        if not all(math.isfinite(one.score) for one in judged):
            raise ValueError(f"{self.label} gives a score that is no number: its weights are damaged, or --dtype fp32 is needed")
        return judged

    def _prompt(self, category: str) -> _Prompt:
        """The dialogue up to its verdict, the same for every clip of a category, as val and test clips are asked."""
        if category not in self._prompts:
            turns = dialogue_text(load_prior(category, self.priors_folder), NORMAL_STATE, self.variant, "", paraphrased=False)
            dialogue = tokenize_dialogue(turns, self.tokenizer, self.frame_settings["frames"] * self.facts.tokens_per_frame,
                                         self.facts.max_positions, category, self.system)
            start, last = dialogue.verdict_span[0], max(dialogue.turn)
            self._prompts[category] = _Prompt(dialogue.input_ids[:start],
                                              [token for token, turn in zip(dialogue.input_ids[:start], dialogue.turn) if turn == last])
        return self._prompts[category]

    def _known(self) -> dict[str, Prior]:
        """The priors of the categories that the run was trained on: what `auto` chooses from."""
        if self._candidates is None:
            absent = sorted(set(self.categories) - set(known_categories(self.priors_folder)))
            if absent:
                raise ValueError(f"--category auto: the run was trained on {', '.join(absent)}, which has no prior here"
                                 f"{nearest(absent[0], known_categories(self.priors_folder))}: give the folder that holds it with --priors")
            self._candidates = load_priors(self.categories, self.priors_folder)
        return self._candidates

    def _category(self, category: str, pictures_THWC: np.ndarray) -> tuple[str, float | None]:
        """The category as given, or the likeliest one and its probability."""
        if category != AUTO:
            return category, None
        guess = self.guess(pictures_THWC)[0]
        return guess.category, guess.probability

    @torch.inference_mode()
    def guess(self, pictures_THWC: np.ndarray) -> list[Guess]:
        """The run's categories by the likelihood of their component turns, likeliest first; for pictures as `Detection` holds them."""
        frames = torch.from_numpy(np.ascontiguousarray(pictures_THWC))[None].to(self.network.device)
        features = video_features(self.network, normalise_frames(frames, self.facts.image_mean, self.facts.image_std, self.network.dtype))
        return guess_category(self.network, self.facts, self.tokenizer, self._known(), features, self.variant, self.system)


@dataclass(frozen=True)
class _Prompt:
    """Token ids up to the verdict, and those of them that belong to the last answer."""

    ids: list[int]
    given: list[int]


def _explain(given: Explain | str) -> Explain:
    if given not in list(Explain):
        raise ValueError(f"explain={given!r}: {', '.join(Explain)} are allowed")
    return Explain(given)


def _batches(windows: Iterator[Window], size: int) -> Iterator[list[Window]]:
    batch: list[Window] = []
    for window in windows:
        batch.append(window)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
