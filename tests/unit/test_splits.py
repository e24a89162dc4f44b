"""Splits as laws: no clip on two sides, counts as the protocol says, the same for the same seed whatever the order of files."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import pytest

from vlmphys.held_out import make_splits
from vlmphys.layout import Clip
from vlmphys.records import Split, label_of
from vlmphys.splits import (PUBLISHED_CLIPS_PER_ANOMALY, check_same_settings, load_split, losses, make_split, of_categories, replaced, untested_normals,
                            write_split)

pytestmark = pytest.mark.unit

PLACES = {"fan": (("stuck", "uneven", "vibrate"), 30), "clip": (("unable_press", "unable_rebound"), 20), "own": (("broken",), 10)}


def clips_of(places=PLACES, per_state: int = 20) -> list[Clip]:
    found = []
    for category, (anomalies, train) in places.items():
        for state, folder, count in (("anomaly_free", "train", train), ("anomaly_free", "test/anomaly_free", 10),
                                     *((state, f"test/{state}", per_state) for state in anomalies)):
            ids = [f"{category}/{folder}/{number:04d}" for number in range(count)]
            found += [Clip(clip_id, Path(f"/videos/{clip_id}.mp4"), category, state, label_of(state)) for clip_id in ids]
    return found


def sides(content: dict, folder: str) -> Counter:
    return Counter(side for clip_id, side in content["clips"].items() if clip_id.startswith(folder))


def test_what_the_quarantine_takes_is_said_by_class_and_side(tmp_path):
    clips = clips_of({"fan": (("stuck", "uneven"), 10)}, per_state=6)
    write_split(tmp_path / "split.json", make_split(clips, "weak", per_anomaly=4, val_share=0.25))
    split = load_split(tmp_path / "split.json")
    places = {clip.clip_id: (clip.category, clip.state) for clip in clips}
    stuck = {side: [clip_id for clip_id in split.clip_ids(side) if "/stuck/" in clip_id] for side in Split}
    train, val, test = (len(stuck[side]) for side in Split)
    assert train and val and test == 2
    lines, empty = losses(places, split, stuck[Split.VAL] + stuck[Split.TEST][:1])
    assert lines == [f"fan/stuck: val {val} -> 0, test 2 -> 1"] and empty == ["no clip of fan/stuck is left on the val side"]
    assert losses(places, split, []) == ([], [])
    lines, empty = losses(places, split, [*stuck[Split.TRAIN], "fan/train/0000"])
    assert len(lines) == 2 and lines[1] == f"fan/stuck: train {train} -> 0" and empty == ["no clip of fan/stuck is left on the train side"]


def test_some_categories_alone():
    assert {clip.category for clip in of_categories(clips_of(), " fan,own ,")} == {"fan", "own"}
    assert of_categories(clips_of(), None) == clips_of()
    with pytest.raises(ValueError, match="no clip of category 'clpi' .did you mean 'clip'.*; 'fna' .did you mean 'fan'"):
        of_categories(clips_of(), "clpi, fna,own")
    with pytest.raises(ValueError, match="names no category: there are "):
        of_categories(clips_of(), " ")


def test_weak_takes_the_published_number_of_each_anomaly():
    content = make_split(clips_of(), "weak", val_share=0)
    for state in ("stuck", "uneven", "vibrate"):
        assert sides(content, f"fan/test/{state}") == {"train": 4, "test": 16}
    assert sides(content, "clip/test/unable_press") == {"train": 2, "test": 18}
    assert sides(content, "own/test/broken") == {"train": 4, "test": 16}
    assert content["options"] == {"val_share": 0, "clips_per_anomaly": {"clip": 2, "fan": 4, "own": 4}}
    for category in PLACES:
        assert set(sides(content, f"{category}/train")) == {"train"}
        assert set(sides(content, f"{category}/test/anomaly_free")) == {"test"}


def test_the_published_numbers_cover_all_categories():
    assert len(PUBLISHED_CLIPS_PER_ANOMALY) == 22
    assert {name: count for name, count in PUBLISHED_CLIPS_PER_ANOMALY.items() if count != 4} == {"button": 3, "caster_wheel": 2, "clip": 2}


def test_other_protocols():
    assert sides(make_split(clips_of(), "weak", val_share=0, per_anomaly=7), "fan/test/stuck") == {"train": 7, "test": 13}
    ratio = make_split(clips_of(), "ratio", val_share=0)
    assert sides(ratio, "fan/test/stuck") == {"train": 2, "test": 18} and ratio["options"]["ratio"] == 0.1
    assert sides(make_split(clips_of(), "ratio", val_share=0, ratio=0.01), "fan/test/stuck") == {"train": 1, "test": 19}
    assert sides(make_split(clips_of(), "unsupervised", val_share=0), "fan/test") == {"test": 70}


@pytest.mark.parametrize("protocol", ["weak", "ratio", "unsupervised"])
def test_validation_comes_from_train_alone_and_is_stratified(protocol):
    without, with_val = (make_split(clips_of(), protocol, 3, val_share=share)["clips"] for share in (0, 0.1))
    tested = [{clip_id for clip_id, side in clips.items() if side == "test"} for clips in (without, with_val)]
    assert tested[0] == tested[1]
    for label in (0, 1):
        counts = Counter((clip.category, with_val[clip.clip_id]) for clip in clips_of() if clip.label == label)
        for category, (_, train) in PLACES.items():
            total = counts[category, "train"] + counts[category, "val"]
            assert abs(counts[category, "val"] - 0.1 * total) <= 1
            assert counts[category, "train"] > 0 or total == 0
        totals = sum(count for (_, side), count in counts.items() if side != "test")
        assert abs(sum(count for (_, side), count in counts.items() if side == "val") - 0.1 * totals) <= 1


def test_deterministic_and_seeded():
    clips = clips_of()
    first = make_split(clips, "weak", 5)
    random.Random(0).shuffle(clips)
    assert make_split(clips, "weak", 5) == first
    assert make_split(clips, "weak", 6)["clips"] != first["clips"]
    assert set(first["clips"]) == {clip.clip_id for clip in clips}


def test_one_more_clip_changes_no_other_choice():
    places = {"fan": (("stuck",), 30)}
    before = make_split(clips_of(places), "weak", 1, val_share=0)["clips"]
    after = make_split(clips_of(places, per_state=21), "weak", 1, val_share=0)["clips"]
    chosen, now = ({clip_id for clip_id, side in clips.items() if side == "train"} for clips in (before, after))
    assert len(chosen - now) <= 1


def test_a_class_without_test_clips_is_refused_by_name():
    with pytest.raises(ValueError, match=r"fan/stuck has 4 and would give 4; .*own/broken has 4 and would give 4.*--per-anomaly"):
        make_split(clips_of(per_state=4), "weak")
    make_split(clips_of(per_state=5), "weak")
    one = {"fan": (("stuck",), 5)}
    for protocol in ("weak", "ratio"):      # no number is low enough
        with pytest.raises(ValueError, match="fan/stuck has 1 and would give 1.*a single clip cannot both train and be tested") as error:
            make_split(clips_of(one, per_state=1), protocol, per_anomaly=1 if protocol == "weak" else None)
        assert "lower" not in str(error.value)
    with pytest.raises(ValueError, match="lower --ratio, or add clips"):
        make_split(clips_of(one, per_state=3), "ratio", ratio=0.9)
    with pytest.raises(ValueError, match="protocol 'leave_anomaly_out' takes its clips.*lower --per-anomaly"):
        make_splits(clips_of(per_state=4), "leave_anomaly_out")


def test_a_split_of_other_settings_is_not_written_over_and_one_of_other_clips_is_told(tmp_path):
    path, clips = tmp_path / "split.json", clips_of()
    content = make_split(clips, "weak", per_anomaly=2)
    check_same_settings(path, content)
    assert replaced(path, content) == ""
    write_split(path, content)
    check_same_settings(path, content)
    assert replaced(path, content) == ""
    for other, words in ((make_split(clips, "weak", 7, per_anomaly=2), "seed 0 -> 7"), (make_split(clips, "ratio"), "protocol weak -> ratio"),
                         (make_split(clips, "weak", per_anomaly=3), "clips of each anomaly in clip 2 -> 3"),
                         (make_split(clips, "weak", per_anomaly=2, val_share=0.2), "val_share 0.1 -> 0.2")):
        with pytest.raises(ValueError, match=f"{words}.*give another --out, or --overwrite"):
            check_same_settings(path, other)
    more = [clip for clip in clips_of({**PLACES, "gear": (("stuck",), 10)}) if clip.clip_id != "fan/test/anomaly_free/0003"]
    fresh = make_split(more, "weak", per_anomaly=2)
    check_same_settings(path, fresh)
    assert replaced(path, fresh).startswith("replaces an earlier split: 40 clips more, 1 gone, ")


@pytest.mark.parametrize("folder", ["good", "normal", "ok", "OK", "anomaly-free", "Anomaly_Free"])
def test_a_category_without_normal_test_clips_is_warned_of_with_the_folder_that_may_hold_them(folder):
    clips = clips_of()
    assert untested_normals(clips, make_split(clips, "weak")) == []
    renamed = [clip if not clip.clip_id.startswith("fan/test/anomaly_free") else Clip(
        clip.clip_id.replace("anomaly_free", folder), clip.path, "fan", folder, label_of(folder)) for clip in clips]
    (warning,) = untested_normals(renamed, make_split(renamed, "weak"))
    assert warning.startswith("fan has no normal test clip") and f"fan/test/{folder} counts as an anomaly" in warning
    assert warning.endswith("rename it to fan/test/anomaly_free")
    none = [clip for clip in clips if not clip.clip_id.startswith("own/test/anomaly_free")]
    assert untested_normals(none, make_split(none, "weak")) == [
        "own has no normal test clip, so that its AUROC will be undefined; put normal clips into own/test/anomaly_free"]


def test_a_state_named_like_normal_clips_is_warned_of_beside_anomaly_free():
    clips = clips_of()
    clips += [Clip(f"fan/test/good/{number:04d}", Path(f"/videos/{number}.mp4"), "fan", "good", label_of("good")) for number in range(20)]
    assert untested_normals(clips, make_split(clips, "ratio")) == [
        "fan/test/good counts as an anomaly: if its clips are normal, rename it to fan/test/anomaly_free"]


@pytest.mark.parametrize("arguments, words", [
    ({"protocol": "week"}, "weak, ratio, unsupervised"), ({"protocol": "weak", "val_share": 1.0}, "below 1"),
    ({"protocol": "weak", "per_anomaly": 0}, "at least 1"), ({"protocol": "ratio", "per_anomaly": 2}, "belongs to protocol weak"),
    ({"protocol": "ratio", "ratio": 1.5}, "above 0 and below 1")])
def test_wrong_options_are_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        make_split(clips_of(), **arguments)


def test_file_round_trip(tmp_path):
    path, content = tmp_path / "deep" / "split.json", make_split(clips_of(), "weak", 2)
    write_split(path, content)
    split = load_split(path)
    assert (split.protocol, split.seed, split.options) == ("weak", 2, content["options"])
    assert {clip_id: side.value for clip_id, side in split.clips.items()} == content["clips"]
    assert sum(len(split.clip_ids(side)) for side in Split) == len(content["clips"])
    first = path.read_bytes()
    write_split(path, make_split(clips_of()[::-1], "weak", 2))
    assert path.read_bytes() == first and [entry.name for entry in path.parent.iterdir()] == ["split.json"]


def test_a_file_that_is_no_split_is_never_written_over(tmp_path):
    content = make_split(clips_of(), "weak")
    for name, text in (("clips.csv", "path,category\n"), ("other.json", '{"clips": []}')):
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=f"{name}: .*give another --out, or move it away"):
            write_split(tmp_path / name, content)
        assert (tmp_path / name).read_text() == text
    with pytest.raises(ValueError, match="is a folder; give the name of a file"):
        write_split(tmp_path, content)
    (tmp_path / "empty.json").touch()
    write_split(tmp_path / "empty.json", content)
    assert load_split(tmp_path / "empty.json").protocol == "weak"


@pytest.mark.parametrize("change, words", [
    ({"version": 2}, "version 2"), ({"clips": {}}, "names no clip"),
    ({"clips": {"fan/train/1": "trian"}}, "'trian', allowed: test, train, val")])
def test_broken_files_are_refused_by_name(tmp_path, change, words):
    path = tmp_path / "split.json"
    path.write_text(json.dumps({**make_split(clips_of(), "weak"), **change}))
    with pytest.raises(ValueError, match=f"split.json: .*{words}"):
        load_split(path)
    path.write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        load_split(path)
    with pytest.raises(ValueError, match="no such file"):
        load_split(tmp_path / "splt.json")
