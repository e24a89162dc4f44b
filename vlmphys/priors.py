"""Physics priors: for each category three sentences on how it should move, and texts for each of its states.

One YAML file a category, named after it; a user adds a category by adding a file to a folder of their own. S_com, S_dyn and S_mot
are the components of the multi-turn paper (section 3.2): they hold for every clip of a category, so no verdict may stand in them.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Iterable

import yaml

from vlmphys.leak_words import leaks, leaks_before_verdict, leaks_in_anomalous, leaks_in_normal
from vlmphys.records import NORMAL_STATES, nearest, nearest_state, sha256_text, shortened

PRIORS_FOLDER = Path(__file__).parent / "priors"
PARTS = ("component", "dynamic", "motion")
QUESTION_KEYS = (*PARTS, "verdict", "single_turn")
KINDS = ("descriptions", "explanations")
NORMAL_STATE = NORMAL_STATES[0]
TEXTS_PER_STATE = 5  # of each kind: what PAEval compares with
NOT_READ = "named .yml, only .yaml are read: rename it"
# Signs that may stand around a sentence, and those that end it.
AROUND = "\"'“”‘’«»()[] "
ENDS = (".", "!", "?", "。", "！", "？")
# Strings that mean something to the dialogue's format or to the tokenizer: inside a text they would move the label mask.
CONTROL_PATTERN = re.compile(r"<(?:video|image|pad|unk|s|/s)>|\bUSER:|\bASSISTANT:|\bVerdict:|\bReason:|[\x00-\x1f]")


@dataclass(frozen=True)
class StateTexts:
    """What is seen in a state, and why: reason sentences only, the verdict's form is added in `prompts`."""

    descriptions: tuple[str, ...]
    explanations: tuple[str, ...]


@dataclass(frozen=True)
class Prior:
    """The texts of one category. `questions` holds only those that replace the defaults of `prompts`, by question key."""

    category: str
    component: str
    dynamic: str
    motion: str
    questions: dict[str, tuple[str, ...]]
    states: dict[str, StateTexts]
    source: str = field(default="", compare=False)

    def texts_of(self, state: str) -> StateTexts:
        """The texts of a state; the folder `train` holds clips of the state `anomaly_free`. ValueError for a state without texts."""
        key = NORMAL_STATE if state in NORMAL_STATES else state
        if key not in self.states:
            shipped = self.source and Path(self.source).parent == PRIORS_FOLDER
            cure = f"copy {self.source} into a folder of yours, add it there and give that with --priors" if shipped else \
                f"add it to {self.source}"
            where = f" ({cure})" if self.source else ""
            raise ValueError(f"category {self.category!r} has no texts for the state {state!r}{nearest_state(state, self.states)}; "
                             f"it has: {', '.join(self.states)}{where}")
        return self.states[key]


def known_categories(extra_dir: Path | str | None = None) -> tuple[str, ...]:
    """Every category with a prior, sorted; those of the user's folder included."""
    return tuple(sorted(_prior_files(extra_dir)))


def load_priors(categories: Iterable[str], extra_dir: Path | str | None = None) -> dict[str, Prior]:
    """The priors of `categories`, in sorted order; a file of `extra_dir` takes the place of the package's own of that name.

    Raises ValueError for an unknown category (with the nearest name) and for a file that is broken (with file and line).
    """
    files = _prior_files(extra_dir)
    wanted = sorted(set(categories))
    unknown = [category for category in wanted if category not in files]
    if unknown:
        listed = "; ".join(f"{category!r}{nearest(category, files)}" for category in unknown)
        raise ValueError(f"no prior for the category {listed}. Known: {shortened(sorted(files))}. "
                         "To add a category, put <category>.yaml into a folder and give that folder with --priors DIR")
    return {category: read_prior(files[category]) for category in wanted}


def load_prior(category: str, extra_dir: Path | str | None = None) -> Prior:
    """The prior of one category; errors as `load_priors`."""
    return load_priors([category], extra_dir)[category]


def priors_sha256(priors: dict[str, Prior]) -> str:
    """A digest of every text, independent of the order of categories and states and of where the files lie."""
    content = {
        category: {"questions": prior.questions, **{part: getattr(prior, part) for part in PARTS},
                   "states": {state: {kind: getattr(texts, kind) for kind in KINDS} for state, texts in prior.states.items()}}
        for category, prior in priors.items()}
    return sha256_text(json.dumps(content, sort_keys=True, ensure_ascii=False))


def read_prior(path: Path | str) -> Prior:
    """Read one YAML file, whose name is the category. Raises ValueError with file, line and cure; all of a file's problems at once.

    component: A fan has ...            # S_com: the parts
    dynamic: The motor drives ...       # S_dyn: what moves, and what drives it
    motion: The blades turn ...         # S_mot: how it should move
    questions:                          # may be left out: replaces default questions; {category} stands for the file's name
      motion: [How should it turn?]
    states:                             # anomaly_free and one entry for each anomaly folder
      anomaly_free:
        descriptions: [...]             # what is seen
        explanations: [...]             # the physical cause, without the verdict
    """
    path = Path(path)
    root = compose(path)
    problems: list[str] = []
    if CONTROL_PATTERN.search(path.stem):
        problems.append(f"the file's name is the category and holds {CONTROL_PATTERN.search(path.stem).group(0)!r}: rename it")
    top = take_mapping(root, f"the file (expected: {', '.join(PARTS)}, states)", (*PARTS, "questions", "states"), problems)
    sentences = {part: take_text(top[part], part, problems) for part in PARTS if part in top}
    problems += [f"{key!r} is missing" for key in (*PARTS, "states") if key not in top]
    questions = take_questions(top["questions"], problems) if "questions" in top else {}
    states: dict[str, StateTexts] = {}
    if "states" in top:
        for state, node in take_mapping(top["states"], "states", None, problems).items():
            lists = {kind: take_texts(item, f"states.{state}.{kind}", problems)
                     for kind, item in take_mapping(node, f"states.{state}", KINDS, problems).items()}
            problems += [f"states.{state}.{kind} is missing (line {node.start_mark.line + 1})" for kind in KINDS if kind not in lists]
            states[state] = StateTexts(**{kind: lists.get(kind, ()) for kind in KINDS})
        if NORMAL_STATE not in states:
            problems.append(f"states has no {NORMAL_STATE!r}: every category needs the texts of its normal clips")
        if "train" in states:
            problems.append(f"states has 'train': its clips take the texts of {NORMAL_STATE!r}; remove it")
    if problems:
        raise ValueError(f"prior {path}: " + "; ".join(problems))
    return Prior(category=path.stem, questions=questions, states=states, source=str(path), **sentences)


def prior_text(prior: Prior) -> str:
    """The YAML of a prior, laid out as the files that ship: `read_prior` gives the same prior back."""
    head: dict[str, object] = {part: getattr(prior, part) for part in PARTS}
    if prior.questions:
        head["questions"] = {key: list(questions) for key, questions in prior.questions.items()}
    return yaml_text({**head, "states": {state: {kind: list(getattr(texts, kind)) for kind in KINDS} for state, texts in prior.states.items()}})


def yaml_text(value: dict) -> str:
    """YAML of texts, lists and mappings, a text a line however long."""
    return yaml.dump(value, Dumper=_IndentedLists, sort_keys=False, allow_unicode=True, width=float("inf"))


def lint(prior: Prior) -> list[str]:
    """Problems that do not stop a file from loading but spoil an experiment; an empty list where there is none.

    A verdict or an anomaly's name in what the model reads before its verdict, texts of a state that say the other verdict, or of the normal
    one that name a fault, and texts that stand twice.
    """
    problems = []
    anomalies = [state for state in prior.states if state not in NORMAL_STATES]
    before_verdict = [(part, text, leaks_before_verdict(text, anomalies)) for part in PARTS for text in (getattr(prior, part),)]
    # A question may ask how a part moves when all is as it should be: it does not say that it is.
    before_verdict += [(f"questions.{part}", text, leaks(text, anomalies)) for part in PARTS for text in prior.questions.get(part, ())]
    for where, text, found in before_verdict:
        problems += [f"{prior.category}: {where} names {leak!r} before the verdict: {text!r}{place_in_file(prior, text)}" for leak in found]
    for state, texts in prior.states.items():
        for where, text in ((f"states.{state}.{kind}", text) for kind in KINDS for text in getattr(texts, kind)):
            other = leaks_in_normal(text, anomalies) if state in NORMAL_STATES else leaks_in_anomalous(text)
            what = "in a text of normal clips" if state in NORMAL_STATES else "in a text of anomalous clips"
            problems += [f"{prior.category}: {where} says {leak!r} {what}: {text!r}{place_in_file(prior, text)}" for leak in other]
    return problems + duplicates({prior.category: prior})


def few_texts(prior: Prior) -> list[str]:
    """A sentence for each list of a state that holds fewer texts than are wanted: it works, with less variety."""
    counts = ((state, kind, len(getattr(texts, kind))) for state, texts in prior.states.items() for kind in KINDS)
    return [f"{prior.category}: states.{state}.{kind} has {count} of the {TEXTS_PER_STATE} or more texts that are wanted"
            for state, kind, count in counts if count < TEXTS_PER_STATE]


def duplicates(priors: dict[str, Prior]) -> list[str]:
    """Sentences that stand twice within these priors, letter case, punctuation and spaces aside: each with both places.

    Questions may repeat: they say nothing of a state.
    """
    seen: dict[str, str] = {}
    problems = []
    for category, prior in priors.items():
        places = [(part, getattr(prior, part)) for part in PARTS]
        places += [(f"states.{state}.{kind}", text) for state, texts in prior.states.items() for kind in KINDS
                   for text in getattr(texts, kind)]
        for where, text in places:
            plain = " ".join(re.findall(r"\w+", text.lower()))
            here = f"{category}: {where}"
            if plain in seen:
                problems.append(f"{here} repeats {seen[plain]}: {text!r}{place_in_file(prior, text, last=True)}")
            seen.setdefault(plain, here)
    return problems


def place_in_file(prior: Prior, text: str, last: bool = False) -> str:
    """` (pump.yaml, line 3)`: where a text stands for the first time, or the last, in the file that a prior was read from; nothing where it was
    read from none. Reads the file again: for a message, not for a loop."""
    if not prior.source or not Path(prior.source).is_file():
        return ""
    lines, nodes = [], [compose(Path(prior.source))]
    while nodes:
        node = nodes.pop()
        if isinstance(node, yaml.ScalarNode) and node.value.strip() == text:
            lines.append(node.start_mark.line + 1)
        elif isinstance(node, yaml.SequenceNode):
            nodes += node.value
        elif isinstance(node, yaml.MappingNode):
            nodes += [value for _, value in node.value]
    line = f", line {max(lines) if last else min(lines)}" if lines else ""
    return f" ({prior.source}{line})"


def yaml_files(folder: Path) -> list[Path]:
    """The prior files of a folder, sorted; hidden ones are none. Raises ValueError for a file named .yml, which would be passed over."""
    if misnamed := misnamed_files(folder):
        raise ValueError(f"{misnamed[0]} is {NOT_READ}")
    return sorted(path for path in folder.glob("*.yaml") if not path.name.startswith("."))


def misnamed_files(folder: Path) -> list[Path]:
    """Files named .yml, sorted."""
    return sorted(path for path in folder.glob("*.yml") if not path.name.startswith("."))


def _prior_files(extra_dir: Path | str | None) -> dict[str, Path]:
    files = {path.stem: path for path in sorted(PRIORS_FOLDER.glob("*.yaml"))}
    if extra_dir is not None:
        folder = Path(extra_dir).expanduser()
        if folder.is_file():
            raise ValueError(f"priors folder {folder} is a file: give its folder, {folder.parent}")
        if not folder.is_dir():
            raise ValueError(f"priors folder {folder} does not exist: give a folder that holds <category>.yaml files")
        files.update({path.stem: path for path in yaml_files(folder)})
    return files


class _IndentedLists(yaml.SafeDumper):
    """Lists stand two spaces below their key."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        return super().increase_indent(flow, False)


def compose(path: Path) -> yaml.Node | None:
    """The YAML tree of a file: nodes know their lines and show a key given twice, which `yaml.safe_load`'s dictionaries do not.

    No object is ever constructed from it; only plain texts, lists and mappings are taken out.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"prior {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"prior {path} is not UTF-8 text (byte {error.start}): save it as UTF-8") from error
    try:
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise ValueError(f"prior {path}{line}: broken YAML ({error.problem or error.context}); "
                         "a text that holds ': ', ' #' or starts with a bracket needs quotes, indents are spaces") from error
    except yaml.YAMLError as error:
        raise ValueError(f"prior {path}: broken YAML ({str(error).splitlines()[0]})") from error


def take_mapping(node: yaml.Node | None, where: str, allowed: tuple[str, ...] | None, problems: list[str]) -> dict[str, yaml.Node]:
    """Keys to nodes of a mapping; what is no mapping, unknown keys and keys given twice go to `problems`."""
    if not isinstance(node, yaml.MappingNode) or node.tag != "tag:yaml.org,2002:map":
        line = f" (line {node.start_mark.line + 1})" if node is not None else ""
        problems.append(f"{where}{line}: a mapping of names to values is expected")
        return {}
    found: dict[str, yaml.Node] = {}
    for key_node, value in node.value:
        key, line = str(key_node.value), key_node.start_mark.line + 1
        if key in found:
            problems.append(f"{where}: {key!r} stands twice (again in line {line})")
        elif allowed is not None and key not in allowed:
            problems.append(f"{where}: unknown key {key!r} in line {line}{nearest(key, allowed)}; allowed: {', '.join(allowed)}")
        else:
            found[key] = value
    return found


def take_text(node: yaml.Node, where: str, problems: list[str]) -> str:
    """A sentence; what is none goes to `problems`."""
    line = node.start_mark.line + 1
    if not isinstance(node, yaml.ScalarNode) or node.tag != "tag:yaml.org,2002:str":
        problems.append(f"{where} (line {line}): one text is expected; put it in quotes")
        return ""
    text = node.value.strip()
    if not text:
        problems.append(f"{where} (line {line}) is empty")
    elif not is_sentence(text):
        problems.append(f"{where} (line {line}): {text!r} does not begin with a capital or digit and end in . ! or ?: does it need quotes? "
                        "In [...] a comma that is not in quotes begins another text")
    control = CONTROL_PATTERN.search(text)
    if control:
        problems.append(f"{where} (line {line}) holds {control.group(0)!r}, which belongs to the dialogue's format: leave it out")
    return text


def is_sentence(text: str) -> bool:
    """Whether a text begins and ends as a sentence does; a piece of one that YAML has cut at a comma does not.

    Scripts without capitals pass, and so do quotes and brackets around it, and a question that begins with its {category}.
    """
    bare = text.strip(AROUND)
    first = bare[:1]
    return (first.isalnum() and not first.islower() or first == "{") and bare.endswith(ENDS)


def take_questions(node: yaml.Node, problems: list[str]) -> dict[str, tuple[str, ...]]:
    """Question keys to their wordings; unknown keys and slots go to `problems`."""
    questions = {}
    for key, item in take_mapping(node, "questions", QUESTION_KEYS, problems).items():
        questions[key] = take_texts(item, f"questions.{key}", problems)
        slots = {slot for question in questions[key] for slot in re.findall(r"\{[^}]*\}?", question)} - {"{category}"}
        problems += [f"questions.{key} (line {item.start_mark.line + 1}): {slot!r} is no slot; allowed: '{{category}}'" for slot in sorted(slots)]
    return questions


def take_texts(node: yaml.Node, where: str, problems: list[str]) -> tuple[str, ...]:
    """A list of at least one sentence; what is none goes to `problems`."""
    line = node.start_mark.line + 1
    if not isinstance(node, yaml.SequenceNode) or node.tag != "tag:yaml.org,2002:seq" or not node.value:
        problems.append(f"{where} (line {line}): a list of at least one text is expected")
        return ()
    return tuple(take_text(item, where, problems) for item in node.value)
