"""The frame order's bench: each clip's own permutation, the same at every call, and of nothing but the frames."""

from __future__ import annotations

import numpy as np
import pytest
from launching import load_script

from vlmphys.shards import open_packed

pytestmark = pytest.mark.unit


def test_each_clip_has_an_order_of_its_own_that_is_not_the_filmed_one(repository, packed_folder):
    bench = load_script(repository / "tests/bench/frame_order.py")
    packed = open_packed(packed_folder)
    clip_ids = packed.frames.clip_ids[:4]
    frames = packed.video(clip_ids)
    one, other = (bench.Shuffled(**{**vars(packed), "shuffle": shuffle}) for shuffle in (0, 1))
    orders = [one.order(clip_id, 8).tolist() for clip_id in clip_ids]
    assert all(sorted(order) == list(range(8)) != order for order in orders) and len(set(map(tuple, orders))) > 1
    assert np.array_equal(one.video(clip_ids), np.stack([clip[order] for clip, order in zip(frames, orders)]))
    assert any(one.order(clip_id, 8).tolist() != other.order(clip_id, 8).tolist() for clip_id in clip_ids)
    with pytest.raises(ValueError, match="one frame a clip"):
        one.order("fan/test/stuck/0", 1)
    assert all(one.order(f"fan/test/stuck/{number}", 2).tolist() == [1, 0] for number in range(20))


def test_what_cannot_be_compared_is_told_in_one_sentence(repository, packed_folder, tmp_path, capsys):
    bench = load_script(repository / "tests/bench/frame_order.py")
    arguments = ["--run", str(tmp_path), "--data", str(packed_folder)]
    assert bench.main([*arguments, "--shuffles", "0"]) == 2
    assert capsys.readouterr().err == "error: --shuffles is 0: at least 1 is needed\n"
    assert bench.main(arguments) == 2
    assert capsys.readouterr().err.startswith("error: ")
