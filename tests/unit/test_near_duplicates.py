"""Duplicates across a split's border: planted copies are found, whatever was done to them; different clips are not; nothing is hashed twice."""

from __future__ import annotations

import json
import os
import shutil
import sys

import cv2
import numpy as np
import pytest
from clip_files import encode_clip
from launching import load_script

from vlmphys import near_duplicates
from vlmphys.layout import scan_videos
from vlmphys.near_duplicates import HashCache, Pair, candidates, crossing, difference, identical_pairs, near_pairs, perceptual_hash, read_pictures
from vlmphys.simulation import SimulationConfig, simulate_bench

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Simulated clips of two mechanisms, 64 pixels."""
    root = tmp_path_factory.mktemp("near") / "videos"
    simulate_bench(root, SimulationConfig.create("lock,usb", 3, 3, 64, "physad", 0), workers=1)
    return root


def plant(repository, source, target, **how):
    load_script(repository / "tests/bench/near_duplicates.py").copy_clip(source, target, **how)
    return target


def everything(first: str, second: str) -> bool:
    return True


def test_planted_copies_are_found_and_different_clips_are_not(videos, repository, tmp_path):
    root = tmp_path / "videos"
    shutil.copytree(videos, root)
    cache = HashCache(tmp_path / "hashes.json")
    clips = scan_videos(root)
    assert near_pairs(clips, everything, cache, 0) == ([], [])
    planted = {"lock/test/jam/copy1": ("lock/train/0000", dict(crf=26)), "lock/test/jam/copy2": ("lock/train/0001", dict(crop=0.04)),
               "usb/test/jam/copy3": ("usb/train/0002", dict(gain=1.2, offset=4)), "usb/test/jam/copy4": ("lock/train/0002", dict(size=48))}
    for clip_id, (source, how) in planted.items():
        plant(repository, root / f"{source}.mp4", root / f"{clip_id}.mp4", **how)
    pairs, unread = near_pairs(scan_videos(root), everything, cache, 0)
    assert {(pair.first, pair.second) for pair in pairs} == {tuple(sorted((clip_id, source))) for clip_id, (source, _) in planted.items()}
    assert not unread and all(0 < pair.difference <= near_duplicates.LARGEST_DIFFERENCE for pair in pairs)
    assert near_pairs(scan_videos(root), lambda first, second: False, cache, 0) == ([], [])


def test_hashes_are_kept_until_a_clip_changes(videos, tmp_path, monkeypatch):
    root = tmp_path / "videos"
    shutil.copytree(videos / "lock/train", root / "lock/train")
    (root / "lock/train/broken.mp4").write_bytes(b"no video")
    read = []
    monkeypatch.setattr(near_duplicates, "read_pictures", lambda path, own=read_pictures: read.append(path) or own(path))

    def look():
        read.clear()
        return near_pairs(scan_videos(root), lambda first, second: False, HashCache(tmp_path / "hashes.json"), 0)

    pairs, unread = look()
    assert len(read) == 4 and pairs == [] and [line.split(":")[0] for line in unread] == ["lock/train/broken"]
    look()
    assert [os.path.basename(path) for path in read] == ["broken.mp4"]
    os.utime(root / "lock/train/0001.mp4", ns=(1, 1))
    look()
    assert sorted(os.path.basename(path) for path in read) == ["0001.mp4", "broken.mp4"]
    (tmp_path / "hashes.json").write_text("{")
    look()
    assert len(read) == 4


def test_the_same_bytes_are_found_without_decoding(tmp_path, monkeypatch):
    root = tmp_path / "videos"
    for name, content in (("fan/train/1", b"one"), ("fan/test/stuck/1", b"one"), ("fan/test/stuck/2", b"two"), ("gear/test/stuck/1", b"one"),
                          ("fan/train/0", b""), ("fan/test/stuck/0", b""), ("fan/train/long", b"three")):
        path = root / f"{name}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (root / "fan/train/gone.mp4").symlink_to(root / "nowhere")
    os.link(root / "fan/train/1.mp4", root / "fan/train/linked.mp4")
    hashed = []
    own = near_duplicates.sha256_clip
    monkeypatch.setattr(near_duplicates, "sha256_clip", lambda path: hashed.append(path.name) or own(path))
    pairs = identical_pairs(scan_videos(root), HashCache(tmp_path / "hashes.json"))
    assert pairs == [Pair("fan/test/stuck/1", name) for name in ("fan/train/1", "fan/train/linked", "gear/test/stuck/1")]
    assert len(hashed) == 4, "a size that no other file has, and a hard link, are not read"
    content = {"clips": {"fan/test/stuck/1": "test", "fan/train/1": "train", "fan/train/linked": "train", "gear/test/stuck/1": "test"}}
    assert crossing(pairs, content) == pairs[:2]


def test_candidates_are_those_of_a_plain_loop():
    bits = np.random.default_rng(0).integers(0, 2, (40, 1008), dtype=np.uint8)
    for index in range(0, 40, 4):
        bits[index + 1] = bits[index]
        bits[index + 1, :150 + 10 * index] ^= 1
    hashes = [np.packbits(row).tobytes().hex() for row in bits]
    plain = [(i, j) for i in range(40) for j in range(i + 1, 40) if (bits[i] != bits[j]).mean() <= near_duplicates.CANDIDATE_SHARE]
    assert 0 < len(plain) < 10 and sorted(candidates(hashes, rows=7)) == plain
    assert list(candidates([])) == []


def test_difference_sees_the_part_that_moves_and_not_the_light():
    generator = np.random.default_rng(1)
    scene = cv2.GaussianBlur(generator.integers(0, 200, (48, 48)).astype(np.float32), (0, 0), 2)
    scene = (scene - scene.min()) * 2
    clip = np.stack([scene] * 16).astype(np.uint8)
    brighter = np.clip(clip * 1.2 + 10, 0, 255).astype(np.uint8)
    moved = clip.copy()
    moved[9, 20:26, 20:26] = 255 - moved[9, 20:26, 20:26]
    assert difference(clip, brighter) < 0.1 < near_duplicates.LARGEST_DIFFERENCE < difference(clip, moved)
    assert difference(clip, clip[:, ::-1].copy()) > near_duplicates.LARGEST_DIFFERENCE
    assert difference(np.full_like(clip, 9), np.full_like(clip, 9)) == float("inf")
    assert len(perceptual_hash(clip)) == 1008 // 4


def test_short_clips_are_compared_by_eight_frames(tmp_path):
    assert read_pictures(str(encode_clip(tmp_path / "a.mp4", 9))).shape == (16, 48, 48)
    assert "has 7 frame" in str(read_pictures(str(encode_clip(tmp_path / "b.mp4", 7))))


def test_split_lists_and_refuses_what_crosses_the_border(videos, repository, tmp_path, monkeypatch, capsys):
    root, out = tmp_path / "videos", tmp_path / "split.json"
    shutil.copytree(videos, root)
    plant(repository, root / "usb/train/0002.mp4", root / "usb/test/anomaly_free/copy.mp4", crop=0.04)
    module = load_script(repository / "data_prep/split.py")

    def split(*words) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["split.py", "--videos", str(root), "--out", str(out), "--protocol", "weak",
                                          "--per-anomaly", "1", "--val-share", "0", "--workers", "0", *words])
        status, said = module.main(), capsys.readouterr()
        return status, said.out + said.err

    assert split()[0] == 0 and not (tmp_path / "split.hashes.json").exists()
    out.unlink()
    status, said = split("--near-duplicates")
    assert status == 2 and not out.exists() and "usb/test/anomaly_free/copy (test) and usb/train/0002 (train): near-duplicates" in said
    assert "1 pair of duplicates across two sides" in said and "21 clips looked at" not in said and (tmp_path / "split.hashes.json").exists()
    status, said = split("--near-duplicates", "--allow-duplicates")
    assert status == 0 and json.loads(out.read_text())["options"]["duplicates_allowed"] == 1
    (root / "usb/test/anomaly_free/copy.mp4").unlink()
    assert split("--near-duplicates")[0] == 0
    shutil.copy(root / "lock/train/0001.mp4", root / "lock/test/jam/0001.mp4")
    status, said = split()
    assert status == 2 and "lock/test/jam/0001 (" in said and "and lock/train/0001 (train): the same file" in said
    # The same bytes under two labels are a mistake on one side, too.
    (root / "lock/test/jam/0001.mp4").unlink()
    shutil.copy(root / "lock/test/anomaly_free/0001.mp4", root / "lock/test/jam/0009.mp4")
    status, said = split()
    assert status == 2 and "lock/test/anomaly_free/0001 (lock/anomaly_free) and lock/test/jam/0009 (lock/jam): the same file under two labels" in said
    assert "1 pair of clips with the same bytes under two labels" in said and "across two sides" not in said and ": the same file\n" not in said
    (root / "lock/test/jam/0009.mp4").unlink()
    # A split of another seed is not written over in silence.
    assert split("--overwrite")[0] == 0 and split()[0] == 0
    before = out.read_bytes()
    status, said = split("--seed", "5")
    assert status == 2 and "holds a split with other settings (seed 0 -> 5)" in said and out.read_bytes() == before
    assert split("--seed", "5", "--overwrite")[0] == 0 and out.read_bytes() != before
    assert split("--workers", "-1")[0] == 2
    for words in (("--ratio", "0.2"), ("--folds", "3"), ("--leave-out", "usb")):
        status, said = split(*words)
        assert status == 2 and f"{words[0]} belongs to the protocol " in said and "not to 'weak'" in said
