"""What many tests need: a tiny random model in a Hugging Face folder, and packed clips that no video stands behind. Made once a session."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from packed_clips import random_model, write_packed

# The tests share a small machine with each other; set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

REPOSITORY = Path(__file__).parents[1]
SIZE = 32
STATES = {"fan": ("stuck", "uneven", "vibrate"), "hinge": ("angle_limited", "falloff")}


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the repository, where the commands are run."""
    return REPOSITORY


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory) -> Path:
    """A random Video-LLaVA of about 0.2 M parameters with a tokenizer that knows the priors' words: 32 pixels, 5 tokens a frame."""
    return random_model(tmp_path_factory.mktemp("tiny_model"), STATES, SIZE)


@pytest.fixture(scope="session")
def packed_folder(tmp_path_factory, tiny_model_folder) -> Path:
    """Two categories, 20 train, 4 val and 14 test clips with their real dialogues in all variants; normal clips show a moving square."""
    return write_packed(tmp_path_factory.mktemp("packed"), tiny_model_folder, _clips(), SIZE)


def _clips() -> list[tuple[str, str, str, str]]:
    """(clip id, category, state, side), sorted by clip id."""
    found = []
    for category, anomalies in STATES.items():
        found += [(f"{category}/train/{number:04d}", category, "train", "train" if number < 5 else "val") for number in range(6)]
        found += [(f"{category}/test/anomaly_free/{number:04d}", category, "anomaly_free", "test") for number in range(2)]
        for index, state in enumerate(anomalies):
            sides = ("train", "train", "test", "test", *(("val",) if index == 0 else ()))
            found += [(f"{category}/test/{state}/{number:04d}", category, state, side) for number, side in enumerate(sides)]
    return sorted(found)
