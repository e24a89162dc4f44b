"""The model card of an exported run: what it is tuned for, on what data, how well it scored, how it is loaded and asked.

What comes from files (names, categories, reasons) is put into the YAML by a YAML writer and into the Markdown with every sign escaped,
so that a category called `|x|` or a path with a line break stays text.
"""

from __future__ import annotations

import json
import re
import unicodedata
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from vlmphys.dialogue import verdict_continuations, write_dialogue
from vlmphys.files import read_json, write_atomic
from vlmphys.model import TINY, ModelFacts, read_facts, resolve_source
from vlmphys.priors import PARTS
from vlmphys.prompts import QUESTIONS, SYSTEM, VERDICT_LEAD, VERDICT_WORDS, VIDEO, Turn
from vlmphys.records import Variant, Verdict
from vlmphys.runs import Run, folder_fingerprint
from vlmphys.scoring import FIGURES
from vlmphys.tables import covered

TITLES = dict(zip(FIGURES, ("AUROC", "AUROC of the hard verdict", "average precision", "accuracy")))
# Keys of the config that decide what was learned; the rest says where and how fast it was computed.
SETTINGS = ("tune", "tune_o_proj", "lora_r", "lora_alpha", "lora_dropout", "bf16", "num_train_epochs", "max_steps", "learning_rate",
            "lr_scheduler_type", "warmup_ratio", "weight_decay", "adam_beta1", "adam_beta2", "max_grad_norm", "loss_mode", "turn_weights",
            "early_stopping_patience", "load_best_model_at_end", "seed")
LONGEST_TEXT = 300
VARIANTS = {
    Variant.MULTI_TURN: "four turns: the parts, what drives them and how they should move are answered first, then the verdict",
    Variant.SINGLE_TURN: "one turn: parts, drive, motion and verdict in one answer",
    Variant.NO_PHYSICS: "one turn: the verdict alone, without any physics before it"}


@dataclass(frozen=True)
class Exported:
    """What was written: whole weights or an adapter, in which precision, and whether base or weights hold an image tower."""

    whole: bool
    dtype: str
    image_tower: bool


def find_scores(run: Run, given: str | Path | None) -> dict[str, Any] | None:
    """The part of a scores.json that is about this run's model, or None where no file was given and none was found.

    Looked for in the run folder, in its `scores/`, and in the `scores/` beside it; a file there that is about other models is passed
    over, one that was `given` is refused with ValueError.
    """
    own = folder_fingerprint(run.model_folder)[:12]
    places = [run.folder / "scores.json", run.folder / "scores" / "scores.json", run.folder.absolute().parent / "scores" / "scores.json"]
    for path in [Path(given)] if given is not None else [place for place in places if place.is_file()]:
        document = read_json(path, "give the scores.json of launch/score.py")
        scored = document["runs"].values() if isinstance(document.get("runs"), dict) else [document]
        for one in scored:
            # Predictions name their model `run@digest`; the folder's name may have changed, the digest has not.
            if isinstance(one, dict) and str(one.get("model")).rpartition("@")[2] == own:
                if not isinstance(one.get("per_category"), dict) or not isinstance(one.get("average"), dict):
                    raise ValueError(f"{path}: lacks per_category or average; write it again with launch/score.py")
                return one
        if given is not None:
            raise ValueError(f"--scores {path}: none of its models is that of {run.folder} (…@{own}); "
                             "give the scores of this run's own predictions, or leave it out")
    return None


def write_card(path: Path, run: Run, exported: Exported, scores: dict[str, Any] | None, tokenizer) -> None:
    """Write the card as README.md; the same run gives the same bytes."""
    data = read_json(run.folder / "data.json", "the run folder is incomplete")
    facts = read_facts(run.config.model, tokenizer)
    text = front_matter(run, exported) + "\n\n".join(
        [*_purpose(run, exported, data), *_metrics(run, scores), *_usage(run, exported, data, facts, tokenizer),
         *_training(run, data), *_limits(run, exported, data)]) + "\n"
    write_atomic(path, text.encode())


def plain(value: object) -> str:
    """A value from a file as Markdown that shows it and nothing else: one line, no control characters, every sign escaped."""
    text = "".join(" " if unicodedata.category(letter).startswith(("C", "Z")) else letter for letter in str(value))
    text = re.sub(r" +", " ", text).strip()
    text = text if len(text) <= LONGEST_TEXT else text[:LONGEST_TEXT] + "…"
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", text)


def base_name(run: Run) -> str:
    """The base model as a card may name it: a hub id, or a folder's own name, for its path says where somebody keeps it."""
    model = run.config.model
    return model if model == TINY or not Path(resolve_source(model)).is_dir() else Path(model).absolute().name


def front_matter(run: Run, exported: Exported) -> str:
    """The YAML that the hub reads. `license` is left out: what it is follows from the base and from the videos, not from this run."""
    values = {"base_model": base_name(run), "base_model_relation": "finetune" if exported.whole else "adapter",
              "library_name": "transformers" if exported.whole else "peft", "pipeline_tag": "video-text-to-text",
              "tags": ["vlmphys", "video-llava", "anomaly-detection", "industrial-inspection", run.variant.value]}
    return f"---\n{yaml.safe_dump(values, sort_keys=False, allow_unicode=True)}---\n\n"


def _purpose(run: Run, exported: Exported, data: dict[str, Any]) -> list[str]:
    categories = data.get("categories")
    kind = f"whole weights in {exported.dtype}" if exported.whole else f"a LoRA adapter in {exported.dtype}, without its base"
    rows = {"base model": plain(base_name(run)), "weights": kind, "variant": f"`{run.variant.value}`, {VARIANTS[run.variant]}",
            "categories": ", ".join(map(plain, categories)) if categories else "not recorded",
            "train clips": str(int(data["train_clips"])), "split": f"protocol {plain(data['protocol'])}, sha256 {_code(data['split'])}",
            "packed data": f"fingerprint {_code(data['fingerprint'])}", "base's fingerprint": _code(data["model_fingerprint"]),
            "run": _code(folder_fingerprint(run.model_folder))}
    return [f"# {plain(base_name(run))}, tuned to inspect mechanisms",
            "This model looks at a short video of a mechanism and says whether it moves as it should: a verdict, a score by which clips "
            "can be ranked, and a reason. It was fine-tuned with vlmphys.",
            _table(("", ""), [[key, value] for key, value in rows.items()])]


def _metrics(run: Run, scores: dict[str, Any] | None) -> list[str]:
    title = "## Metrics"
    if scores is None:
        best = _best_validation(run)
        said = f"Its best mean AUROC on the validation clips was {best}. It has not been scored on test clips." if best else "Not scored."
        return [title, said]
    average = scores["average"]
    rows = [[plain(name), *_figures(record)] for name, record in sorted(scores["per_category"].items())]
    meant = covered(average, "auroc")
    rows.append([f"mean of {meant}" + (f" of {len(rows)}" if meant < len(rows) else ""), *_figures(average)])
    parts = [title, f"Test clips: {_number(scores.get('n'), 0)}, of them {_number(scores.get('n_anomalous'), 0)} anomalous; split protocol "
             f"{plain(scores.get('protocol') or 'not recorded')}. A missing figure is undefined, and not zero.",
             _table(("category", "clips", "AUROC", "95 % interval", *list(TITLES.values())[1:]), rows)]
    warnings = [f"- {plain(warning)}" for warning in scores.get("warnings") or []]
    return [*parts, "\n".join(["What makes these figures doubtful:", "", *warnings])] if warnings else parts


def _figures(record: dict[str, Any]) -> list[str]:
    low, high = record.get("auroc_ci95") or (None, None)
    interval = f"{_number(low)} to {_number(high)}" if low is not None else "-"
    auroc, *others = (_number(record.get(key)) for key in FIGURES)
    return [_number(record.get("n"), 0), auroc, interval, *others]


def _best_validation(run: Run) -> str | None:
    """The best validation of a run that had any, in words."""
    if not (run.folder / "best.json").is_file():
        return None
    best = read_json(run.folder / "best.json", "the run folder is damaged")
    where = "these weights" if run.config.load_best_model_at_end else "the weights here are those of the last step"
    return f"{_number(best.get('auroc'))}, at step {_number(best.get('step'), 0)} ({where})"


def _usage(run: Run, exported: Exported, data: dict[str, Any], facts: ModelFacts, tokenizer) -> list[str]:
    frames = data.get("frame_settings") or {}
    count = int(frames.get("frames", 8))
    fit = frames.get("fit", "crop")
    parts = ["## How to load and ask it", f"```python\n{_code_of(run, exported, data, facts, tokenizer, count)}```",
             f"`frames` are {count} pictures of the clip, spread over it by the rule {plain(frames.get('rule', 'official'))}: "
             f"`official` is `np.linspace(0, N - 1, {count}).astype(int)` of its N frames, `hf` is "
             f"`np.arange(0, N, N / {count}).astype(int)`; `vlmphys.frame_rules.frame_indices` has them all. "
             + (f"Before all else the region {plain(json.dumps(frames['regions']))} (x, y, width, height; `*`: of all categories) was cut out "
                "of each picture: do the same, with `vlmphys.regions.cut`. " if frames.get("regions") else "")
             + ("The processor cuts their middle out, as it was done in training." if fit == "crop" else
                f"In training they were brought to {facts.image_size} x {facts.image_size} pixels by {plain(fit)} first: do the same, with "
                "`vlmphys.pixels.fit_frames`, and the processor leaves them as they are.")]
    asked = ("as the val and test clips were asked: of each question the first wording (training used them all)." if data.get("wordings") else
             "in the first wording of each question. The val and test clips of this run, packed by an earlier version, were asked in any of them.")
    parts.append(f"`PROMPT` asks {asked} A category whose prior brings questions of its own was asked those: put them in the place of these.")
    if run.variant is not Variant.NO_PHYSICS:
        parts.append("`component`, `dynamic` and `motion` are the three sentences of the category's prior (`vlmphys/priors/`): which parts "
                     "there are, what drives them, how they should move. They are given to the model, not asked from it.")
    if not exported.whole:
        base = run.config.model if not Path(resolve_source(run.config.model)).is_dir() else "FOLDER_OF_THE_BASE_MODEL"
        parts.append("The first line that loads finds the base by `adapter_config.json`. Where the base lies elsewhere, or to say which:")
        parts.append("```python\nfrom peft import PeftModel\n\n"
                     f"base = VideoLlavaForConditionalGeneration.from_pretrained({base!r}, dtype=torch.{exported.dtype})\n"
                     "model = PeftModel.from_pretrained(base, folder).eval()\n```")
    if not exported.image_tower:
        parts.append("The base holds no image tower, so there is none here: transformers fills one with random weights and says so. Video "
                     "does not use it; still pictures cannot be asked about.")
    return parts


def _code_of(run: Run, exported: Exported, data: dict[str, Any], facts: ModelFacts, tokenizer, frames: int) -> str:
    """Python that needs transformers and nothing of vlmphys."""
    verdicts = {VERDICT_WORDS[verdict]: list(tokens) for verdict, tokens in verdict_continuations(tokenizer).items()}
    form = prompt_form(run.variant, str(tokenizer.eos_token), SYSTEM if data.get("system") else "")
    fields = "" if run.variant is Variant.NO_PHYSICS else ", component=..., dynamic=..., motion=..."
    return f'''\
import torch
from transformers import AutoTokenizer, VideoLlavaForConditionalGeneration, VideoLlavaImageProcessor

folder = "."    # where this card lies
model = VideoLlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.{exported.dtype}).eval()
tokenizer = AutoTokenizer.from_pretrained(folder)
processor = VideoLlavaImageProcessor.from_pretrained(folder)
PROMPT = {form!r}
VERDICTS = {verdicts!r}     # the tokens of each verdict after such a prompt


def log_odds(frames, prompt):
    """How much likelier "Anomalous" is than "Normal", as the logarithm of a ratio: above 0 anomalous. frames: uint8, T x H x W x 3."""
    (pixels,) = processor(images=list(frames), return_tensors="pt", input_data_format="channels_last").values()
    text = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    place = text.index({facts.video_token_id})
    ids = [{tokenizer.bos_token_id}, *text[:place], *[{facts.video_token_id}] * len(frames) * {facts.tokens_per_frame}, *text[place + 1:]]
    found = {{}}
    for verdict, tokens in VERDICTS.items():
        inputs = torch.tensor([ids + tokens], device=model.device)
        with torch.no_grad():
            outputs = model(input_ids=inputs, pixel_values_videos=pixels[None].to(model.device, model.dtype))
        log_p = outputs.logits[0].float().log_softmax(-1)
        found[verdict] = sum(log_p[len(ids) - 1 + place, token].item() for place, token in enumerate(tokens))
    return found["{VERDICT_WORDS[Verdict.ANOMALOUS]}"] - found["{VERDICT_WORDS[Verdict.NORMAL]}"]


# log_odds(frames, PROMPT.format(category="fan"{fields}))     frames: {frames} of them
'''


def prompt_form(variant: Variant, eos: str, system: str = "") -> str:
    """The prompt of a variant up to its verdict, with `{category}`, `{component}`, `{dynamic}`, `{motion}` left open.

    Of each question's paraphrases the first is taken, as for val and test clips.
    """
    assert "{" not in eos + system
    sentences = [f"{{{part}}}" for part in PARTS]
    turns = [Turn(QUESTIONS["verdict"][0], VERDICT_LEAD)]
    if variant is Variant.SINGLE_TURN:
        turns = [Turn(QUESTIONS["single_turn"][0], " ".join([*sentences, VERDICT_LEAD]))]
    elif variant is Variant.MULTI_TURN:
        turns = [Turn(QUESTIONS[part][0], sentence) for part, sentence in zip(PARTS, sentences)] + turns
    text = write_dialogue(turns, eos, system).text
    assert text.endswith(VERDICT_LEAD + eos) and text.count(VIDEO) == 1
    return text.removesuffix(eos)


def _training(run: Run, data: dict[str, Any]) -> list[str]:
    versions = read_json(run.folder / "env.json", "the run folder is incomplete").get("packages") or {}
    hidden = {"lora_r", "lora_alpha", "lora_dropout"} if run.config.tune == "full" else set()
    values = {key: value for key, value in asdict(run.config).items() if key in SETTINGS and key not in hidden}
    rows = [[f"`{key}`", plain(value) if isinstance(value, str) else str(value)] for key, value in values.items()]
    rows += [["clips a step", str(int(data["global_batch"]))], ["optimizer steps, at most", str(int(data["total_steps"]))]]
    rows += [[plain(name), plain(version)] for name, version in sorted(versions.items()) if version]
    return ["## Training", "Trained were the q, k, v projections and the feed-forward layers of the language model"
            + (" and its attention's output projection" if run.config.tune_o_proj else "")
            + "; vision tower and projector stayed as in the base.",
            _table(("setting", "value"), rows)]


def _limits(run: Run, exported: Exported, data: dict[str, Any]) -> list[str]:
    limits = ["It knows the categories above. Of other mechanisms, other cameras or other faults its score may be worth nothing; test it "
              "on clips of your own before you rely on it.",
              "The score ranks clips of one category. Where the line between normal and anomalous is best drawn has to be chosen on clips "
              "of your own; 0 is only where both verdicts are equally likely.",
              "The reason that it writes is a text that fits the verdict, not a measurement.",
              "It sees a few single frames of a clip: what happens between them is not seen.",
              "It is no safety device."]
    if data.get("controls") and data["controls"].get("shuffle_labels") is not None:
        limits.insert(0, "**It was trained on shuffled labels, as a control experiment: its verdicts mean nothing.**")
    if run.config.tune == "qlora" and exported.whole:
        limits.append("The adapter was trained over a base packed into 4 bits and is merged here into the unpacked one: scores differ a "
                      "little.")
    limits.append("No licence is stated here: those of the base model and of the videos apply.")
    return ["## Limits", "\n".join(f"- {limit}" for limit in limits)]


def _table(head: tuple[str, ...], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _code(value: object) -> str:
    """A digest as code; anything else than letters and digits is shown as text."""
    return f"`{value}`" if re.fullmatch(r"[0-9A-Za-z]+", str(value)) else plain(value)


def _number(value: object, digits: int = 3) -> str:
    """A figure, `-` for one that is undefined."""
    return f"{value:.{digits}f}" if isinstance(value, (int, float)) and not isinstance(value, bool) else "-"
