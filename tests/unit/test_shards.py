"""Packed tables: what is written comes back, as views; whatever does not match its manifest is refused with the file's name."""

from __future__ import annotations

import errno
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from vlmphys.files import finish_swap, json_bytes, old_folder, only_writer, swap_folder, write_atomic
from vlmphys.shard_files import VERSION, ShardWriter, manifest_of
from vlmphys.shards import DialogueTable, FramesTable, dialogues_schema, frames_schema, open_packed

pytestmark = pytest.mark.unit

META = {"version": VERSION, "frames": 4, "height": 6, "width": 6, "rule": "official", "fit": "crop"}
DIALOGUE_META = {"version": VERSION, "tokenizer_sha256": "a" * 64, "priors_sha256": "b" * 64, "prompt_ids": {"format": "format-1"},
                 "frames": 4, "tokens_per_frame": 2, "video_token_id": 9, "variants": ["multi_turn", "no_physics"], "seed": 0,
                 "system": False, "controls": {"shuffle_labels": None}}


def frames_row(number: int) -> dict:
    frames_THWC = np.random.default_rng(number).integers(0, 256, (4, 6, 6, 3), dtype=np.uint8)
    return {"clip_id": f"fan/test/stuck/{number:04d}", "category": "fan", "state": "stuck", "label": 1, "frames": frames_THWC,
            "frame_index": [0, 3, 6, number], "source_sha256": f"{number:064x}", "source_fps": 59.94, "source_frames": 100 + number}


def dialogue_row(number: int, variant: str) -> dict:
    length = 12 + number
    return {"clip_id": f"fan/test/stuck/{number:04d}", "variant": variant, "input_ids": list(range(length)),
            "turn": [0] * (length - 2) + [1, 1], "verdict_span": (length - 2, length - 1)}


def write_table(folder: Path, kind: str, meta: dict, schema, shards: list[list[dict]], rows_per_batch: int = 2) -> Path:
    folder.mkdir(parents=True)
    lines = []
    for index, rows in enumerate(shards):
        writer = ShardWriter(folder / f"{kind}-{index:05d}.arrow", schema, rows_per_batch)
        for row in rows:
            writer.add(row)
        lines.append(writer.close())
    write_atomic(folder / "manifest.json", json_bytes(manifest_of(kind, meta, lines)))
    return folder


@pytest.fixture
def packed(tmp_path) -> Path:
    numbers = [7, 8, 9, 10, 11]
    rows = [frames_row(number) for number in numbers]
    write_table(tmp_path / "frames", "frames", META, frames_schema(META), [rows[:3], rows[3:]])
    dialogues = [dialogue_row(n, variant) for n in numbers for variant in DIALOGUE_META["variants"]]
    write_table(tmp_path / "dialogues", "dialogues", DIALOGUE_META, dialogues_schema(DIALOGUE_META), [dialogues[:7], dialogues[7:]], 3)
    sides = {f"fan/test/stuck/{n:04d}": side for n, side in zip([*numbers, 12], ("train", "test", "test", "train", "val", "test"))}
    (tmp_path / "split.json").write_bytes(json_bytes({"version": 1, "protocol": "weak", "seed": 0, "options": {}, "clips": sides}))
    return tmp_path


def test_frames_come_back_as_views(packed):
    table = FramesTable.open(packed / "frames")
    assert table.meta == META and table.clip_ids == [f"fan/test/stuck/{n:04d}" for n in range(7, 12)]
    for number in (11, 7, 9):
        row, wanted = table.row(f"fan/test/stuck/{number:04d}"), frames_row(number)
        assert np.array_equal(row.frames_THWC, wanted["frames"]) and row.frames_THWC.dtype == np.uint8
        assert not row.frames_THWC.flags.owndata and not row.frames_THWC.flags.writeable
        assert row.frame_index.tolist() == wanted["frame_index"] and row.frame_index.dtype == np.int32
        for name in ("clip_id", "category", "state", "label", "source_sha256", "source_fps", "source_frames"):
            assert getattr(row, name) == wanted[name]
    with pytest.raises(ValueError, match="has no row 'fan/test/stuck/0001'"):
        table.row("fan/test/stuck/0001")


@pytest.mark.parametrize("sets", [2, 3])
def test_further_frame_sets_and_boxes_come_back(tmp_path, sets):
    meta = {**META, "sets": sets, "regions": {"*": [0.25, 0, 0.5, 1]}}
    pixels = np.random.default_rng(0).integers(0, 256, (5, sets, 4, 6, 6, 3), dtype=np.uint8)
    rows = []
    for number in range(5):
        more = [[1 + offset, 4, 7, number] for offset in range(1, sets)]
        rows.append({**frames_row(number), "frames": pixels[number, 0], "more_frames": pixels[number, 1:],
                     "more_index": [place for index in more for place in index], "box": [number, 0, 3, 6]})
    table = FramesTable.open(write_table(tmp_path / "frames", "frames", meta, frames_schema(meta), [rows[:3], rows[3:]]))
    assert table.sets == sets
    for number in (4, 0, 2):
        for frame_set in range(sets):
            row = table.row(f"fan/test/stuck/{number:04d}", frame_set)
            assert np.array_equal(row.frames_THWC, pixels[number, frame_set]) and not row.frames_THWC.flags.owndata
            assert row.frame_index.tolist() == ([0, 3, 6, number] if frame_set == 0 else [1 + frame_set, 4, 7, number])
            assert row.box == (number, 0, 3, 6)


def test_dialogues_come_back(packed):
    table = DialogueTable.open(packed / "dialogues")
    assert table.meta == DIALOGUE_META and len(table.keys) == 10
    for number in (7, 10, 11):
        for variant in DIALOGUE_META["variants"]:
            row, wanted = table.row(f"fan/test/stuck/{number:04d}", variant), dialogue_row(number, variant)
            assert row.input_ids.tolist() == wanted["input_ids"] and row.input_ids.dtype == np.int32
            assert row.turn.tolist() == wanted["turn"] and row.turn.dtype == np.int8
            assert row.verdict_span == wanted["verdict_span"]
    with pytest.raises(ValueError, match="multi_turn, no_physics, not single_turn.*--variants multi_turn,no_physics,single_turn"):
        table.row("fan/test/stuck/0007", "single_turn")


def test_a_table_travels_to_another_process(packed):
    data = open_packed(packed)
    there = pickle.loads(pickle.dumps(data))
    assert there.fingerprint == data.fingerprint
    assert np.array_equal(there.frames.row("fan/test/stuck/0008").frames_THWC, data.frames.row("fan/test/stuck/0008").frames_THWC)


def test_sides_hold_packed_clips_only(packed):
    data = open_packed(packed)
    assert data.clip_ids("train") == ["fan/test/stuck/0007", "fan/test/stuck/0010"]
    assert data.clip_ids("val") == ["fan/test/stuck/0011"]
    assert data.clip_ids("test") == ["fan/test/stuck/0008", "fan/test/stuck/0009"]  # 0012 is in the split, but was not packed


def test_the_fingerprint_knows_each_part(packed, tmp_path_factory):
    first = open_packed(packed).fingerprint
    copy = tmp_path_factory.mktemp("copy") / "packed"
    shutil.copytree(packed, copy)
    assert open_packed(copy).fingerprint == first
    split = json.loads((copy / "split.json").read_text())
    split["seed"] = 1
    (copy / "split.json").write_bytes(json_bytes(split))
    assert open_packed(copy).fingerprint != first


def test_the_same_rows_give_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        write_table(tmp_path / name, "frames", META, frames_schema(META), [[frames_row(n) for n in range(5)]])
    assert (tmp_path / "a/manifest.json").read_bytes() == (tmp_path / "b/manifest.json").read_bytes()


def change_manifest(folder: Path, **change) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, **change}))


def damage(packed: Path, kind: str) -> None:
    frames = packed / "frames"
    shard = frames / "frames-00001.arrow"
    if kind == "missing shard":
        shard.unlink()
    elif kind == "short shard":
        shard.write_bytes(shard.read_bytes()[:-100])
    elif kind == "shard of the right length that is no shard":
        shard.write_bytes(b"\0" * shard.stat().st_size)
    elif kind == "newer version":
        change_manifest(frames, version=VERSION + 1)
    elif kind == "other kind":
        change_manifest(frames, kind="dialogues")
    elif kind == "other settings":
        change_manifest(frames, meta={**META, "fit": "stretch"})
    elif kind == "same shard twice":
        manifest = json.loads((frames / "manifest.json").read_text())
        change_manifest(frames, shards=manifest["shards"][:1] * 2)
    elif kind == "no manifest":
        (frames / "manifest.json").unlink()
    elif kind == "half a manifest":
        (frames / "manifest.json").write_text('{"version": 1, "ki')
    elif kind == "frames of another number":
        change_manifest(packed / "dialogues", meta={**DIALOGUE_META, "frames": 8})
    elif kind == "clip without dialogue":
        shutil.rmtree(packed / "dialogues")
        rows = [dialogue_row(7, variant) for variant in DIALOGUE_META["variants"]]
        write_table(packed / "dialogues", "dialogues", DIALOGUE_META, dialogues_schema(DIALOGUE_META), [rows])


@pytest.mark.parametrize("kind, words", [
    ("missing shard", "frames-00001.arrow: is missing"), ("short shard", "frames-00001.arrow: has .* bytes, its manifest says"),
    ("shard of the right length that is no shard", "frames-00001.arrow: is no whole Arrow file"),
    ("newer version", "frames/manifest.json: version 2 is not known"), ("other kind", "lists 'dialogues', 'frames' is expected"),
    ("other settings", "frames-00000.arrow: has other columns or settings"), ("same shard twice", "a second time"),
    ("no manifest", "frames/manifest.json: no such file"), ("half a manifest", "frames/manifest.json: not valid JSON"),
    ("frames of another number", "dialogues.*other columns or settings"), ("clip without dialogue", "no dialogue for the packed clip")])
def test_damage_is_refused_by_name(packed, kind, words):
    open_packed(packed)
    damage(packed, kind)
    with pytest.raises(ValueError, match=words):
        open_packed(packed)


@pytest.mark.parametrize("shard", ["frames/frames-00001.arrow", "dialogues/dialogues-00000.arrow"])
def test_a_changed_byte_is_found_by_the_shards_name(packed, shard):
    open_packed(packed).check_bytes()
    flip_a_byte(packed / shard)
    with pytest.raises(ValueError, match=f"{shard}: its bytes are not those that were written"):
        open_packed(packed).check_bytes()


def flip_a_byte(shard: Path) -> None:
    """Change one value of the first row and nothing that says where rows are: opening does not notice."""
    whole = bytearray(shard.read_bytes())
    value = frames_row(10)["frames"].tobytes() if "frames" in shard.name else np.arange(12, dtype=np.int32).tobytes()
    whole[whole.index(value) + 4] ^= 255
    shard.write_bytes(whole)


def test_another_model_is_refused(packed):
    data = open_packed(packed)
    data.check("a" * 64, 6, 2)
    for arguments, words in ((("c" * 64, 6, 2), "dialogues: was packed with tokenizer_sha256 aaaaaaaaaaaa, the one in use is cccccccccccc"),
                             (("a" * 64, 224, 2), "frames: holds frames of 6 x 6 pixels"), (("a" * 64, 6, 3), "tokens_per_frame 2")):
        with pytest.raises(ValueError, match=words):
            data.check(*arguments)


def test_a_swap_that_was_cut_in_two_is_finished(tmp_path):
    def folder(name: str, text: str) -> Path:
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text(text)
        return tmp_path / name

    target, ready = folder("frames", "old"), folder("frames.partial", "new")
    swap_folder(ready, target)
    assert (target / "manifest.json").read_text() == "new" and sorted(path.name for path in tmp_path.iterdir()) == ["frames"]
    target.rename(old_folder(target))
    folder("frames.partial", "newer")
    finish_swap(ready, target, "manifest.json")
    assert (target / "manifest.json").read_text() == "newer" and not old_folder(target).exists()
    target.rename(old_folder(target))
    ready.mkdir()
    finish_swap(ready, target, "manifest.json")
    assert (target / "manifest.json").read_text() == "newer"
    # A person's own backup is neither taken for one nor removed.
    backup = folder("frames.old", "mine")
    swap_folder(folder("frames.next", "newest"), target)
    finish_swap(ready, target, "manifest.json")
    assert (backup / "manifest.json").read_text() == "mine" and (target / "manifest.json").read_text() == "newest"


def test_a_file_system_without_locks_is_warned_of(tmp_path, monkeypatch):
    def no_lock(handle, how):
        raise OSError(errno.EBADF, "Bad file descriptor")

    monkeypatch.setattr("fcntl.flock", no_lock)
    with pytest.warns(UserWarning, match="cannot lock a folder"):
        with only_writer(tmp_path / "run", "training"):
            (tmp_path / "run" / "kept").write_text("")
    assert (tmp_path / "run" / "kept").exists()


def test_only_a_folder_that_was_made_is_taken_away_again(tmp_path):
    (tmp_path / "mine").mkdir()
    for name in ("mine", "made"):
        with only_writer(tmp_path / name):
            assert (tmp_path / name).is_dir()
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_one_writer_at_a_time(tmp_path):
    with only_writer(tmp_path / "packed"):
        with pytest.raises(ValueError, match="another process is packing"):
            with only_writer(tmp_path / "packed"):
                pass
        with pytest.raises(ValueError, match="another process is training"):
            with only_writer(tmp_path / "packed", "training"):
                pass
    assert not (tmp_path / "packed").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file: this folder cannot be made"):
        with only_writer(tmp_path / "file"):
            pass
