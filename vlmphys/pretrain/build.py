"""The whole build of the tiny base: both stages, a check on clips of other seeds, and the model card."""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from vlmphys.heap import keep_freed_memory
from vlmphys.mechanisms import known_mechanisms, load_mechanism
from vlmphys.model import embed, tokens_per_frame
from vlmphys.pretrain.language import IGNORE, DialogueWriter, train_language
from vlmphys.pretrain.pool import FRAMES, MAX_PARTS, Pool, build_pool
from vlmphys.pretrain.questions import LENGTH_QUESTIONS, TURN_QUESTIONS, vocabulary
from vlmphys.pretrain.tower import frame_features, train_tower
from vlmphys.priors import Prior, load_priors
from vlmphys.prompts import QUESTIONS, all_texts, spoken
from vlmphys.records import sha256_text
from vlmphys.tiny import build_random, save_model_folder, tiny_config, train_tokenizer

NUMBER_QUESTIONS = ("trace", "steps", "fastest", "far", "end")
CHECK_CLIPS = 660


@dataclass(frozen=True)
class BuildConfig:
    """Sizes, steps and seed of a build; together they decide the result on one machine and thread count."""

    seed: int = 0
    workers: int = 2
    image_size: int = 64
    vision_hidden: int = 128
    vision_layers: int = 5
    text_hidden: int = 128
    text_layers: int = 4
    vocab_size: int = 2000
    tower_clips: int = 26000
    tower_sound_share: float = 0.5
    tower_steps: int = 4500
    tower_batch: int = 128
    language_clips: int = 40000
    language_sound_share: float = 0.35
    language_steps: int = 9000      # of a round
    language_rounds: int = 2        # each with clips of its own and the rate from its peak again
    language_batch: int = 8
    tower_rate: float = 1.5e-3
    language_rate: float = 1.2e-3


def build_tiny_base(out: Path, work: Path, config: BuildConfig) -> None:
    """Run the build and write a Hugging Face folder with a card into `out`, once both stages are done.

    `work` keeps the tower and each round of the language stage, which a second run of the same settings takes up.
    """
    console, started = Console(), time.monotonic()
    categories = known_mechanisms()
    priors, parts_of = load_priors(categories), {category: load_mechanism(category).PARTS for category in categories}
    tokenizer = train_tokenizer(all_texts(priors) + vocabulary(categories, parts_of), config.vocab_size)
    torch.set_num_threads(config.workers)
    keep_freed_memory()
    network = build_random(tiny_config(len(tokenizer), config.image_size, vision_hidden=config.vision_hidden, vision_layers=config.vision_layers,
                                       text_hidden=config.text_hidden, text_layers=config.text_layers), config.seed)
    network.set_attn_implementation("eager")  # on a CPU the faster one at this length
    tower = network.model.video_tower

    def simulate(clips: int, stage: str, sound_share: float) -> Pool:
        console.print(f"[{time.monotonic() - started:5.0f} s] simulating {clips} clips for {stage}")
        return build_pool(categories, clips, config.image_size, f"{config.seed}-{stage}", config.workers, sound_share)

    def reporter(stage: str, steps: int, every: int = 100):
        recent: list[dict[str, float]] = []

        def report(step: int, figures: dict[str, float]) -> None:
            recent.append(figures)
            if (step + 1) % every == 0 or step + 1 == steps:
                means = "  ".join(f"{name} {np.mean([row[name] for row in recent]):.3f}" for name in figures)
                console.print(f"[{time.monotonic() - started:5.0f} s] {stage} step {step + 1}/{steps}  {means}")
                recent.clear()
        return report

    turns_CP = np.zeros((len(categories), MAX_PARTS), bool)
    for row, category in enumerate(categories):
        turns_CP[row, :len(parts_of[category])] = [part.is_turn for part in parts_of[category]]
    work.mkdir(parents=True, exist_ok=True)
    of_tower = [value for name, value in asdict(config).items() if not name.startswith(("language", "text"))]
    saved_tower = work / f"tower-{sha256_text(str(of_tower))[:12]}.safetensors"
    if saved_tower.exists():
        console.print(f"tower: taken from {saved_tower}")
        tower.load_state_dict(load_file(saved_tower))
        tower.eval()
    else:
        pool = simulate(config.tower_clips, "tower", config.tower_sound_share)
        train_tower(tower, pool, turns_CP, config.tower_steps, config.tower_batch, config.tower_rate, config.seed,
                    reporter("tower", config.tower_steps))
        save_whole(tower.state_dict(), saved_tower)

    video_tokens = FRAMES * tokens_per_frame(network.config.vision_config)
    writer = DialogueWriter(tokenizer, spoken_sentences(priors), video_tokens, network.config.video_token_id)
    settings = sha256_text(str([value for name, value in asdict(config).items() if name != "language_rounds"]))[:12]
    for number in range(config.language_rounds):
        saved_round = work / f"language_{number}-{settings}.safetensors"
        if saved_round.exists():
            console.print(f"round {number + 1} of the language stage: taken from {saved_round}")
            network.load_state_dict(load_file(saved_round))
            continue
        pool = simulate(config.language_clips, "language" if number == 0 else f"language-{number}", config.language_sound_share)
        train_language(network, writer, pool, frame_features(tower, pool.frames_NTHWC), config.language_steps, config.language_batch,
                       config.language_rate, config.seed + number, reporter(f"language round {number + 1}", config.language_steps))
        save_whole(network.state_dict(), saved_round)
    network.eval()
    check = simulate(CHECK_CLIPS, "check", config.language_sound_share)
    table = check_answers(network, writer, check, frame_features(tower, check.frames_NTHWC), np.random.default_rng(config.seed))
    save_model_folder(network.to(torch.float16), tokenizer, out)
    (out / "README.md").write_text(model_card(config, table, sum(p.numel() for p in network.parameters())))
    console.print(f"[{time.monotonic() - started:5.0f} s] {out} written")


def save_whole(weights: dict[str, torch.Tensor], path: Path) -> None:
    """Write weights so that an interruption leaves no half file under that name."""
    partial = path.with_suffix(".partial")
    save_file(weights, partial)
    os.replace(partial, path)


def spoken_sentences(priors: dict[str, Prior]) -> list[str]:
    """What the base is asked to repeat, so that it knows every word: sentences of the priors and questions, never a verdict's answer."""
    sentences = [question.format(category=spoken(category)) for questions in QUESTIONS.values() for question in questions for category in priors]
    for prior in priors.values():
        sentences += [prior.component, prior.dynamic, prior.motion]
        sentences += [text for state in prior.states.values() for text in (*state.descriptions, *state.explanations)]
    # The words of the verdict's form, in an order that no answer has, so that embeddings and head know them.
    return sentences + ["Anomalous Reason Normal Verdict: Reason: Normal. Anomalous."] * (len(sentences) // 20)


@torch.no_grad()
def check_answers(network, writer: DialogueWriter, pool: Pool, features_NVD: torch.Tensor, rng: np.random.Generator) -> dict[str, tuple[float, int]]:
    """Share of right answers to each kind of question on clips the base has not seen: whole answers, or single numbers for rows of numbers."""
    right: dict[str, list[float]] = {}
    for clip in range(len(pool.category_N)):
        parts = load_mechanism(pool.categories[pool.category_N[clip]]).PARTS
        index = int(rng.integers(len(parts)))
        part = parts[index]
        for ask in dict.fromkeys(TURN_QUESTIONS if part.is_turn else LENGTH_QUESTIONS):
            answer = ask(part, pool.places_NTP[clip, :, index])
            if answer is None:
                continue
            ids, labels = writer.write([(ask.__doc__.format(part=part.name), answer)])
            projected = network.model.multi_modal_projector(features_NVD[clip:clip + 1].float())
            logits = network(inputs_embeds=embed(network, torch.tensor([ids]), projected)).logits[0, :-1]
            targets = torch.tensor(labels[1:])
            hits = (logits.argmax(-1) == targets)[targets != IGNORE][:-1]
            right.setdefault(ask.__name__, []).append(float(hits.float().mean()) if ask.__name__ in NUMBER_QUESTIONS else float(hits.all()))
    return {name: (float(np.mean(values)), len(values)) for name, values in sorted(right.items())}


def model_card(config: BuildConfig, table: dict[str, tuple[float, int]], parameters: int) -> str:
    """The card that ships with the weights: how they were made and what they answer."""
    rows = "\n".join(f"| {name} | {'single numbers' if name in NUMBER_QUESTIONS else 'whole answers'} | {share:.3f} | {count} |"
                     for name, (share, count) in table.items())
    settings = "\n".join(f"| {name} | {value} |" for name, value in asdict(config).items())
    return f"""# The tiny base of vlmphys

A Video-LLaVA of {parameters / 1e6:.2f} M parameters (`VideoLlavaForConditionalGeneration`: CLIP tower, two-layer projector, Llama), without an image
tower, in float16 safetensors. Made by `python launch/build_tiny_base.py --out vlmphys/tiny_base --overwrite` from the simulator alone.

Its tower learned to read the place of each part from single frames; then, tower frozen, projector and language model learned to answer
questions about motion (`vlmphys/pretrain/questions.py`) on clips of sound and of faulty mechanisms, from seeds that no benchmark uses. It has
repeated sentences of the dialogues at random, so that it knows their words. It has never been asked for a verdict, and its zero-shot
verdicts are at chance; `tests/bench/quality.py` prints what it scores before and after fine-tuning.

## Answers on {CHECK_CLIPS} clips of other seeds (teacher-forced)

| question | counted | right | answers |
|---|---|---|---|
{rows}

## Settings

| setting | value |
|---|---|
{settings}
"""
