"""Protocols of several files, and all protocols on clips counted as Phys-AD's, as laws: each clip on one side, each class where it belongs."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest
from test_splits import clips_of

from vlmphys.held_out import SEVERAL, file_of, make_splits
from vlmphys.layout import Clip
from vlmphys.records import label_of
from vlmphys.splits import PROTOCOLS, PUBLISHED_CLIPS_PER_ANOMALY, make_split

pytestmark = pytest.mark.unit

# Phys-AD as published: anomaly folders, normal train clips, normal and anomalous test clips of each category.
PHYS_AD = {
    "ball": ("leak unfull", 90, 45, 90), "button": ("no_light Unpress Unrebound_light Unrebound_nolight", 120, 60, 240),
    "car": ("all_wheel back_wheel front_wheel", 300, 150, 450), "caster_wheel": ("axis_stuck1 axis_stuck2", 30, 15, 45),
    "clip": ("unable_press unable_rebound", 240, 120, 240), "clock": ("stuck vibrate", 150, 73, 151), "fan": ("stuck uneven vibrate", 180, 90, 270),
    "gear": ("double single stuck triple", 180, 90, 360), "hinge": ("angle_limited falloff", 30, 15, 45), "liquid": ("foreign_obj leak", 30, 15, 30),
    "lock": ("jam structure_detache", 120, 60, 120), "magnet": ("degaussing drop", 60, 30, 60), "rolling_bearing": ("ball_stuck", 60, 30, 30),
    "rubber_band": ("crack", 60, 30, 30), "screw": ("stripped unable_goin", 30, 15, 30),
    "servo": ("angle_limited centered_anomaly vibrate", 120, 60, 180),
    "slide": ("ball_drop derailment jam", 60, 30, 120), "spherical_bearing": ("jam", 60, 30, 30), "sticky_roller": ("falloff stuck", 30, 15, 30),
    "toothpaste": ("leak", 90, 45, 45), "usb": ("jam", 240, 120, 120), "zipper": ("stuck unable_close", 120, 60, 120)}


def phys_ad() -> list[Clip]:
    """Clips named and counted as in Phys-AD; how a category's anomalies fall to its folders is not published: evenly here."""
    found = []
    for category, (names, train, normal, anomalous) in PHYS_AD.items():
        states = names.split()
        places = [("anomaly_free", "train", train), ("anomaly_free", "test/anomaly_free", normal)]
        places += [(state, f"test/{state}", len(range(index, anomalous, len(states)))) for index, state in enumerate(states)]
        for state, folder, count in places:
            ids = [f"{category}/{folder}/{number:04d}" for number in range(count)]
            found += [Clip(clip_id, Path(f"/videos/{clip_id}.mp4"), category, state, label_of(state)) for clip_id in ids]
    return found


def contents_of(clips: list[Clip], protocol: str, seed: int = 0, **options) -> dict[str, dict]:
    """All files of any protocol."""
    if protocol in SEVERAL:
        return make_splits(clips, protocol, seed, **options)
    return {"": make_split(clips, protocol, seed, **options)}


def on_side(content: dict, side: str) -> set[str]:
    return {clip_id for clip_id, own in content["clips"].items() if own == side}


@pytest.mark.parametrize("protocol", [*(name for name in PROTOCOLS if name != "given"), *SEVERAL])
def test_every_protocol_on_clips_counted_as_phys_ad(protocol):
    clips = phys_ad()
    assert Counter(clip.in_train_folder for clip in clips) == {True: 2400, False: 4034} and sum(clip.label for clip in clips) == 2836
    if protocol == "leave_category_out":    # a file a category: four of them are as good as 22, and soon done
        clips = [clip for clip in clips if clip.category in ("ball", "button", "clock", "hinge")]
    contents = contents_of(clips, protocol, 3)
    shuffled = clips[:]
    random.Random(1).shuffle(shuffled)
    assert contents_of(shuffled, protocol, 3) == contents
    assert contents_of(clips, protocol, 4) != contents
    without_val = contents_of(clips, protocol, 3, val_share=0.0)
    for name, content in contents.items():
        assert set(content["clips"]) == {clip.clip_id for clip in clips} and set(content["clips"].values()) == {"train", "val", "test"}
        assert on_side(content, "test") == on_side(without_val[name], "test")
        trained = Counter(clip.label for clip in clips if content["clips"][clip.clip_id] != "test")
        held = Counter(clip.label for clip in clips if content["clips"][clip.clip_id] == "val")
        assert all(abs(held[label] - 0.1 * trained[label]) <= 1 for label in (0, 1))


def test_weak_supervision_tests_what_the_paper_leaves():
    content = make_split(phys_ad(), "weak", val_share=0)
    moved = sum(PUBLISHED_CLIPS_PER_ANOMALY[category] * len(names.split()) for category, (names, *_) in PHYS_AD.items())
    assert moved == 176 and len(on_side(content, "train")) == 2400 + moved and len(on_side(content, "test")) == 4034 - moved


def test_folds_test_every_clip_once_and_every_state_evenly():
    clips = phys_ad()
    contents = make_splits(clips, "kfold", folds=5)
    assert list(contents) == [f"fold{number}of5" for number in range(1, 6)]
    tested = Counter(clip_id for content in contents.values() for clip_id in on_side(content, "test"))
    assert tested == Counter(clip.clip_id for clip in clips)
    for place in ({()}, {(clip.category,) for clip in clips}, {(clip.category, clip.state) for clip in clips}):
        for name in place:
            members = [clip.clip_id for clip in clips if (clip.category, clip.state)[:len(name)] == name]
            sizes = [sum(content["clips"][clip_id] == "test" for clip_id in members) for content in contents.values()]
            assert max(sizes) - min(sizes) <= 1, (name, sizes)
    assert [content["options"]["fold"] for content in contents.values()] == [1, 2, 3, 4, 5]
    with pytest.raises(ValueError, match=r"21 folds need 21 normal and 21 anomalous .*own has 20 anomalous clip\(s\)\. Give fewer --folds"):
        make_splits(clips_of(), "kfold", folds=21)


def test_a_category_left_out_is_tested_in_full_and_no_other_is():
    clips = clips_of()
    contents = make_splits(clips, "leave_category_out")
    assert list(contents) == ["without_clip", "without_fan", "without_own"]
    for name, content in contents.items():
        assert on_side(content, "test") == {clip.clip_id for clip in clips if name == f"without_{clip.category}"}
    (content,) = make_splits(clips, "leave_category_out", leave_out="own, fan").values()
    assert {clip_id.split("/")[0] for clip_id in on_side(content, "test")} == {"fan", "own"} and content["options"]["left_out"] == ["fan", "own"]


def test_an_anomaly_left_out_never_trains_and_nothing_else_changes():
    clips = clips_of()
    weak = make_split(clips, "weak", val_share=0)["clips"]
    contents = make_splits(clips, "leave_anomaly_out", val_share=0)
    left = [name for content in contents.values() for name in content["options"]["left_out"]]
    assert sorted(left) == ["clip/unable_press", "clip/unable_rebound", "fan/stuck", "fan/uneven", "fan/vibrate", "own/broken"]
    assert list(contents) == [f"without_anomaly{number}of3" for number in (1, 2, 3)]
    for content in contents.values():
        for clip in clips:
            own = content["clips"][clip.clip_id]
            if f"{clip.category}/{clip.state}" in content["options"]["left_out"]:
                assert own == "test"
            else:
                assert own == weak[clip.clip_id]
    (content,) = make_splits(clips, "leave_anomaly_out", leave_out="fan/stuck", per_anomaly=7, val_share=0).values()
    found = Counter(clip.state for clip in clips if clip.label and content["clips"][clip.clip_id] == "train")
    assert found == {"uneven": 7, "vibrate": 7, "unable_press": 7, "unable_rebound": 7, "broken": 7}


@pytest.mark.parametrize("arguments, words", [
    ({"protocol": "kfold", "folds": 1}, "at least 2"), ({"protocol": "kfold", "leave_out": "fan"}, "not to kfold"),
    ({"protocol": "kfold", "per_anomaly": 3}, "not to 'kfold'"), ({"protocol": "leave_anomaly_out", "per_anomaly": 0}, "at least 1"),
    ({"protocol": "leave_category_out", "leave_out": "fna"}, "no category 'fna' .did you mean 'fan'"),
    ({"protocol": "leave_category_out", "leave_out": "own,fan,clip"}, "nothing would be left to train on"),
    ({"protocol": "leave_anomaly_out", "leave_out": "fan/stack"}, "no anomaly 'fan/stack' .did you mean 'fan/stuck'"),
    ({"protocol": "leave_anomaly_out", "leave_out": " "}, "names no anomaly"), ({"protocol": "kfold", "val_share": 1.0}, "below 1")])
def test_wrong_options_are_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        make_splits(clips_of(), **arguments)


def test_sides_that_a_list_gives():
    sides = {"a": "train", "b": "test", "c": "train", "d": "test"}
    clips = [Clip(f"fan/test/{state}/{name}", Path(name), "fan", state, label_of(state), side)
             for state in ("anomaly_free", "stuck") for name, side in sides.items()]
    content = make_split(clips, "given", val_share=0)
    assert content["clips"] == {clip.clip_id: clip.side for clip in clips}
    clips[0] = Clip(clips[0].clip_id, Path("a"), "fan", "anomaly_free", 0, "val")
    assert make_split(clips, "given", val_share=0.5)["clips"] == {clip.clip_id: clip.side for clip in clips}
    assert {clip.clip_id for clip in clips if clip.in_train_folder} == {"fan/test/anomaly_free/a", "fan/test/anomaly_free/c"}
    with pytest.raises(ValueError, match="3 clip.s. have none, first 'own/test"):
        make_split([*clips, *clips_of({"own": (("broken",), 0)}, 3)[-3:]], "given")
    with pytest.raises(ValueError, match="'weak' leaves no normal clip to train on: .*kfold and leave_category_out need no train folder"):
        make_split(clips_of({"own": (("broken",), 0)}), "weak")


def test_names_of_several_files():
    assert [file_of("deep/split.json", "fold1of2").as_posix(), file_of("split", "x").as_posix()] == ["deep/split_fold1of2.json", "split_x.json"]
