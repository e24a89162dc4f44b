"""Questions about motion with answers computed from true trajectories: what moves, how far, does it come back, is it steady, does it shake.

They are asked of sound and of faulty clips alike, and no answer is a verdict. Numbers are bins: a place is 0 to 23 (a share of a full
turn, or of the part's range), a step between two frames is 0 to 24 with 12 for
rest (half a turn, or the part's whole range, to either side).

Shape suffixes: T frames, P parts.
"""

from __future__ import annotations

import numpy as np

from vlmphys.mechanisms.parts import Part

BINS = 24
REST = BINS // 2
STILL_STEP = {True: 0.025, False: 0.04}
SHAKE_STEP = 0.12
STEADY_SPREAD, UNEVEN_SPREAD = 0.18, 0.3

Turn = tuple[str, str]


def motion_turns(rng: np.random.Generator, category: str, parts: tuple[Part, ...], places_TP: np.ndarray, count: int,
                 only_numbers: bool = False) -> list[Turn]:
    """`count` questions about one clip with their answers, drawn by lot. `places_TP` holds shares in [0, 1], one column a part.

    `only_numbers` asks for places and steps alone, eight numbers at a time: what all other answers are made of.
    """
    turns = []
    while len(turns) < count:
        kind = rng.random()
        if only_numbers:
            index = int(rng.integers(len(parts)))
            ask = trace if kind < 0.5 else steps
            turns.append((ask.__doc__.format(part=parts[index].name), ask(parts[index], places_TP[:, index])))
        elif kind < 0.06:
            turns.append(("What is shown?", f"A {category.replace('_', ' ')}."))
        elif kind < 0.18:
            turns.append(("Which parts move?", moving_parts(parts, places_TP)))
        else:
            index = int(rng.integers(len(parts)))
            part, places = parts[index], places_TP[:, index]
            ask = rng.choice(TURN_QUESTIONS if part.is_turn else LENGTH_QUESTIONS)
            answer = ask(part, places)
            if answer is not None:
                turns.append((ask.__doc__.format(part=part.name), answer))
    return turns


def steps_of(part: Part, places: np.ndarray) -> np.ndarray:
    """Signed steps between frames, the short way round for a turn, as shares."""
    steps = np.diff(places)
    return np.mod(steps + 0.5, 1.0) - 0.5 if part.is_turn else steps


def numbers(values: np.ndarray) -> str:
    """Bins as a row of numbers."""
    return " ".join(str(int(value)) for value in values)


def trace(part: Part, places: np.ndarray) -> str:
    """Trace the {part}."""
    return numbers(np.minimum((places * BINS).astype(int), BINS - 1))


def steps(part: Part, places: np.ndarray) -> str:
    """Give the steps of the {part}."""
    shares = steps_of(part, places) * (BINS if part.is_turn else REST)
    return numbers(np.clip(np.round(shares) + REST, 0, BINS))


def moves(part: Part, places: np.ndarray) -> str:
    """Does the {part} move?"""
    moving = np.abs(steps_of(part, places)) > STILL_STEP[part.is_turn]
    if not moving.any():
        return "At no time."
    return "All the time." if moving.all() else f"Part of the time, {moving.sum()} steps."


def steady(part: Part, places: np.ndarray) -> str | None:
    """Is the turn of the {part} steady?"""
    lengths = np.abs(steps_of(part, places))
    if lengths.max() < STILL_STEP[True]:
        return "It rests."
    if (lengths < STILL_STEP[True]).sum() >= 2:
        return "It stops."
    spread = lengths.std() / lengths.mean()
    if spread < STEADY_SPREAD:
        return "It is steady."
    return "It is uneven." if spread > UNEVEN_SPREAD else None


def side(part: Part, places: np.ndarray) -> str | None:
    """Which way does the {part} turn?"""
    middle = float(np.median(steps_of(part, places)))
    if abs(middle) < STILL_STEP[True]:
        return "It rests."
    return "To the right." if middle > 0 else "To the left."


def fastest(part: Part, places: np.ndarray) -> str:
    """What are the largest and the smallest step of the {part}?"""
    lengths = np.abs(steps_of(part, places)) * BINS
    return numbers(np.round([lengths.max(), lengths.min()]))


def far(part: Part, places: np.ndarray) -> str:
    """How far does the {part} go?"""
    return numbers(np.minimum([(places.max() - places.min()) * BINS, places.max() * BINS, places.min() * BINS], BINS - 1))


def back(part: Part, places: np.ndarray) -> str | None:
    """Does the {part} come back?"""
    reach = places.max() - places.min()
    if reach < 2 * STILL_STEP[False]:
        return "It does not move."
    away = abs(places[-1] - places[0]) / reach
    if away < 0.25:
        return "It comes back."
    return "It stays away." if away > 0.4 else None


def shake(part: Part, places: np.ndarray) -> str | None:
    """Does the {part} shake?"""
    jumps = np.abs(np.diff(places)) > SHAKE_STEP
    turns = np.sum((np.diff(places)[:-1] * np.diff(places)[1:] < 0) & jumps[:-1] & jumps[1:])
    if turns >= 2:
        return "It shakes."
    return "It does not shake." if turns == 0 else None


def end(part: Part, places: np.ndarray) -> str:
    """Where does the {part} start and end?"""
    return numbers(np.minimum(places[[0, -1]] * BINS, BINS - 1))


def moving_parts(parts: tuple[Part, ...], places_TP: np.ndarray) -> str:
    """All parts that move, by name, in the mechanism's order."""
    names = [part.name for index, part in enumerate(parts)
             if (np.abs(steps_of(part, places_TP[:, index])) > 2 * STILL_STEP[part.is_turn]).any()]
    return f"The {' and the '.join(names)}." if names else "None."


TURN_QUESTIONS = (trace, steps, moves, steady, steady, steady, side, fastest)
LENGTH_QUESTIONS = (trace, steps, moves, far, back, shake, end)


def vocabulary(categories: list[str], parts_of: dict[str, tuple[Part, ...]]) -> list[str]:
    """Texts that hold every word of the questions and answers, for training the tokenizer."""
    texts = ["".join(f" {number}" for number in range(BINS + 1))] * 20
    words = ["At no time.", "All the time.", "Part of the time, 3 steps.", "It rests.", "It stops.", "It is steady.", "It is uneven.", "To the right.",
             "To the left.", "It does not move.", "It comes back.", "It stays away.", "It shakes.", "It does not shake.", "None.",
             "What is shown?", "Which parts move?", "Say:"]
    for category in categories:
        texts.append(f"A {category.replace('_', ' ')}.")
        for part in parts_of[category]:
            asked = TURN_QUESTIONS if part.is_turn else LENGTH_QUESTIONS
            texts += [question.__doc__.format(part=part.name) for question in asked] + [f"The {part.name} and the {part.name}."]
    return texts + words * 5
