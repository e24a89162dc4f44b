"""The linter of priors, before any video is packed: what verify.py --priors prints. Every file is read, whatever the one before it holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from vlmphys.dialogue import tokenize_dialogue
from vlmphys.mechanisms import known_mechanisms, load_mechanism
from vlmphys.priors import KINDS, NOT_READ, PRIORS_FOLDER, Prior, duplicates, few_texts, lint, misnamed_files, read_prior
from vlmphys.prompts import SYSTEM, longest_dialogue
from vlmphys.records import NORMAL_STATES, Variant, counted

PACKAGE = "package"
FRAMES = 8
SHOWN = 3           # problems that a warning lists


@dataclass
class PriorsReport:
    """What was read (files, states, texts), what spoils an experiment, and hints: what is worth knowing and no fault."""

    files: int = 0
    states: int = 0
    texts: int = 0
    problems: list[str] = field(default_factory=list)
    hints: list[str] = field(default_factory=list)


def lint_priors(folder: str | Path, model: str = "tiny", frames: int = FRAMES) -> PriorsReport:
    """Lint every YAML file of `folder`; `package` means the files that ship with vlmphys, which must also cover its mechanisms.

    Dialogues are measured with the tokenizer and the positions of `model` at `frames` frames a clip, with Vicuna's system sentence before them,
    which pack.py adds with --system. Raises ValueError for a folder that is not there or holds no prior, and for an unusable model.
    """
    report, priors = PriorsReport(), {}
    for path in _files(folder):
        report.files += 1
        if path.suffix != ".yaml":
            report.problems.append(f"prior {path}: is {NOT_READ}")
            continue
        try:
            priors[path.stem] = read_prior(path)
        except ValueError as error:
            report.problems.append(str(error))
    for prior in priors.values():
        report.states += len(prior.states)
        report.texts += sum(len(getattr(texts, kind)) for texts in prior.states.values() for kind in KINDS)
        # What stands twice is told once, below, over all files.
        report.problems += [problem for problem in lint(prior) if problem not in duplicates({prior.category: prior})]
        report.hints += few_texts(prior)
        if any(letter.isspace() for letter in prior.category):
            report.hints.append(f"{prior.category}: the name holds a blank, which launch/reproduce_paper.sh --per-category does not take")
    report.problems += duplicates(priors) + too_long(priors, model, frames)
    if str(folder) == PACKAGE:
        report.problems += uncovered(priors)
    return report


def lint_warning(priors: dict[str, Prior], folder: str | Path | None) -> str:
    """What a command that uses these priors says of their problems: how many, the first three, and the command that shows all; nothing where
    there is none. `folder` is the user's own, None for the package's."""
    problems = [problem for prior in priors.values() for problem in lint(prior)]
    problems = list(dict.fromkeys([*problems, *duplicates(priors)]))
    if not problems:
        return ""
    head = (f"warning: {counted(len(problems), 'problem')} in the priors spoil what is trained on them; python data_prep/verify.py --priors "
            f"{PACKAGE if folder is None else folder} shows all, the first:")
    return "\n".join([head, *(f"  {problem}" for problem in problems[:SHOWN])])


def _files(folder: str | Path) -> list[Path]:
    place = PRIORS_FOLDER if str(folder) == PACKAGE else Path(folder).expanduser()
    if not place.is_dir():
        reason = f"is a file: give its folder, {place.parent}" if place.is_file() else f"does not exist: give a folder of YAML files, or {PACKAGE!r}"
        raise ValueError(f"priors folder {place} {reason}")
    files = sorted([*(path for path in place.glob("*.yaml") if not path.name.startswith(".")), *misnamed_files(place)])
    if not files:
        raise ValueError(f"priors folder {place} holds no <category>.yaml file")
    return files


def too_long(priors: dict[str, Prior], model: str, frames: int) -> list[str]:
    """A sentence for each state whose longest dialogue, of any variant, does not fit the model, or cannot be tokenised by it."""
    unfitting = unfitting_of(model, frames)
    return [problem for prior in priors.values() for state in prior.states for problem in unfitting(prior, state)]


def unfitting_of(model: str, frames: int = FRAMES) -> Callable[[Prior, str], list[str]]:
    """What finds, for a prior and one of its states, the variants whose longest dialogue does not fit this model: a sentence for each.

    Raises ValueError for an unusable model.
    """
    # Transformers and torch take seconds to import, which those who check packed data need not wait for.
    from vlmphys.model import load_tokenizer, read_facts

    tokenizer = load_tokenizer(model)
    facts = read_facts(model, tokenizer)

    def length(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    def unfitting(prior: Prior, state: str) -> list[str]:
        problems = []
        for variant in Variant:
            try:
                tokenize_dialogue(longest_dialogue(prior, state, variant, length), tokenizer, frames * facts.tokens_per_frame,
                                  facts.max_positions, f"{prior.category}: states.{state} ({variant.value})", SYSTEM)
            except ValueError as error:
                problems.append(str(error))
        return problems
    return unfitting


def uncovered(priors: dict[str, Prior]) -> list[str]:
    """A sentence for each mechanism without a prior, and for each of its states without texts."""
    problems = [f"{category}: is simulated, but has no prior" for category in known_mechanisms() if category not in priors]
    for category in set(known_mechanisms()) & set(priors):
        problems += [f"{category}: the state {state!r} is simulated, but has no texts"
                     for state in (NORMAL_STATES[0], *load_mechanism(category).ANOMALIES) if state not in priors[category].states]
    return sorted(problems)
