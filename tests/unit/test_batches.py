"""The order of clips as laws (nothing dropped, nothing repeated, the same for any split), and what a micro-batch holds."""

from __future__ import annotations

import itertools
from collections import Counter
from functools import partial

import numpy as np
import pytest
import torch

from vlmphys.batches import ClipOrder, StepReader, collate, deal, load_step
from vlmphys.records import Split, Variant
from vlmphys.shards import open_packed

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(("clips", "batch"), [(1, 1), (7, 8), (16, 8), (37, 8), (100, 7)])
def test_every_epoch_holds_every_clip_once(clips, batch):
    order = ClipOrder([f"c{number}" for number in range(clips)], batch, seed=3)
    epochs = []
    for epoch in range(3):
        steps = range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch)
        blocks = [order.clips_of_step(step) for step in steps]
        assert all(len(block) == batch for block in blocks[:-1]) and 1 <= len(blocks[-1]) <= batch
        epochs.append([clip for block in blocks for clip in block])
        assert Counter(epochs[-1]) == Counter(order.clip_ids)
    if clips > 10:
        assert epochs[0] != epochs[1] != epochs[2]


def test_order_hangs_on_seed_and_step_alone():
    clips = [f"c{number}" for number in range(50)]
    order, again, other = (ClipOrder(clips, 8, seed=0), ClipOrder(clips[::-1], 8, seed=0), ClipOrder(clips, 8, seed=1))
    steps = [17, 3, 8, 0, 17]
    assert [order.clips_of_step(step) for step in steps] == [again.clips_of_step(step) for step in steps]
    assert order.clips_of_step(3) != other.clips_of_step(3)


def test_each_epoch_sees_another_frame_set():
    clips, sets = [f"c{number}" for number in range(50)], 3
    order, again, other = (ClipOrder(clips, 8, seed=0), ClipOrder(clips[::-1], 8, seed=0), ClipOrder(clips, 8, seed=1))
    for clip in clips:
        seen = [{order.frame_set(epoch * order.steps_per_epoch + step, clip, sets) for step in range(order.steps_per_epoch)} for epoch in range(6)]
        assert all(len(one) == 1 for one in seen), "one set an epoch"
        assert seen[:3] == seen[3:] and set.union(*seen[:3]) == {0, 1, 2}, "all of them in as many epochs"
    assert {order.frame_set(0, clip, sets) for clip in clips} == {0, 1, 2}, "not every clip begins with the same"
    assert [order.frame_set(9, clip, sets) for clip in clips] == [again.frame_set(9, clip, sets) for clip in clips]
    assert [order.frame_set(9, clip, sets) for clip in clips] != [other.frame_set(9, clip, sets) for clip in clips]
    assert not any(order.frame_set(step, clip, 1) for step in range(30) for clip in clips)


def test_total_steps():
    order = ClipOrder([f"c{number}" for number in range(10)], 4, seed=0)
    assert order.steps_per_epoch == 3
    assert (order.total_steps(2, -1), order.total_steps(1.5, -1), order.total_steps(0.01, -1), order.total_steps(9, 5)) == (6, 5, 1, 5)


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("micro", [1, 3, 4])
@pytest.mark.parametrize("clips", [1, 5, 12])
def test_deal_gives_each_clip_to_one_rank_in_equal_rounds(ranks, micro, clips):
    block = [f"c{number}" for number in range(clips)]
    hands = [deal(block, rank, ranks, micro) for rank in range(ranks)]
    assert len({len(own) for own in hands}) == 1, "every rank must make the same number of collective calls"
    assert all(len(hand) <= micro for own in hands for hand in own)
    # Round by round, rank by rank, the hands put together are the block itself.
    assert [clip for round_of in zip(*hands) for hand in round_of for clip in hand] == block
    assert any(own[-1] for own in hands), "no round may be empty on every rank"


def test_collate_pads_on_the_right_and_points_one_before_each_target(packed_folder):
    packed = open_packed(packed_folder)
    clips = packed.clip_ids(Split.TRAIN)[:6]
    rows = [packed.dialogues.row(clip, Variant.MULTI_TURN) for clip in clips]
    lengths = [len(row.input_ids) for row in rows]
    assert len(set(lengths)) > 1, "the fixture must be ragged"
    batch = collate(packed, clips, Variant.MULTI_TURN, pad_token_id=5)
    length = max(lengths)
    assert batch.input_ids_BL.shape == (6, length) and batch.frames_BTHWC.dtype == torch.uint8
    assert batch.tokens == sum(lengths) and batch.clip_ids == tuple(clips)
    flat = batch.input_ids_BL.flatten()
    assert torch.equal(flat[batch.keep_N + 1], batch.target_N)
    expected = [(index, position) for index, row in enumerate(rows) for position in np.flatnonzero(row.turn)]
    assert [divmod(int(keep) + 1, length) for keep in batch.keep_N] == expected
    assert [int(turn) for turn in batch.turn_N] == [int(rows[index].turn[position]) - 1 for index, position in expected]
    for index, row in enumerate(rows):
        assert (batch.input_ids_BL[index, lengths[index]:] == 5).all()
        start, end = row.verdict_span
        assert (batch.verdict_row_N == index).sum() == end - start
        assert np.array_equal(batch.frames_BTHWC[index].numpy(), packed.frames.row(clips[index]).frames_THWC)


def test_load_step_is_the_same_set_for_any_split_and_fills_empty_hands(packed_folder):
    packed = open_packed(packed_folder)
    order = ClipOrder(packed.clip_ids(Split.TRAIN), 8, seed=0)
    last = order.steps_per_epoch - 1
    assert len(order.clips_of_step(last)) == 4, "the fixture must leave an incomplete batch"
    for step in (0, last):
        found = {}
        for ranks, micro in itertools.product((1, 2), (2, 4)):
            batches = [batch for rank in range(ranks)
                       for batch in load_step(packed, order, step, rank, ranks, micro, Variant.MULTI_TURN, 5)]
            found[ranks, micro] = (Counter(clip for batch in batches if not batch.weightless for clip in batch.clip_ids),
                                   sum(len(batch.target_N) for batch in batches), sum(batch.tokens for batch in batches))
        assert len({str(sorted(value[0].items())) + str(value[1:]) for value in found.values()}) == 1, found
    (stand_in,) = load_step(packed, order, last, rank=1, ranks=2, micro_batch=4, variant=Variant.MULTI_TURN, pad_token_id=5)
    assert stand_in.weightless and len(stand_in.target_N) == 0 and stand_in.tokens == 0 and len(stand_in.input_ids_BL) == 1


CPU = torch.device("cpu")


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("ranks", [1, 2])
def test_no_clip_is_dropped_or_repeated_for_any_ranks_workers_epoch_and_resume(ranks, workers, packed_folder):
    packed = open_packed(packed_folder)
    order = ClipOrder(packed.clip_ids(Split.TRAIN), 8, seed=0)
    epochs, steps = 3, order.steps_per_epoch
    expected = [order.clips_of_step(step) for step in range(epochs * steps)]
    for resume in range(epochs * steps):
        seen = [[] for _ in expected]
        # In one round of deal after the other, as the ranks' hands lie in the global batch.
        for rank in range(ranks):
            read = partial(load_step, packed, ClipOrder(order.clip_ids, 8, seed=0), rank=rank, ranks=ranks, micro_batch=8 // ranks,
                           variant=Variant.NO_PHYSICS, pad_token_id=5)
            reader = StepReader(lambda step: read(step=step), epochs * steps, workers, CPU)
            for step in range(resume, epochs * steps):
                seen[step] += [clip for batch in reader.batches_of(step) if not batch.weightless for clip in batch.clip_ids]
            reader.close()
        assert seen[resume:] == expected[resume:]
    for epoch in range(epochs):
        assert sorted(itertools.chain(*expected[epoch * steps:(epoch + 1) * steps])) == order.clip_ids


def test_batches_read_ahead_hold_what_batches_read_when_needed_hold(packed_folder):
    packed = open_packed(packed_folder)
    order = ClipOrder(packed.clip_ids(Split.TRAIN), 8, seed=0)
    def read(step):
        return load_step(packed, order, step, 0, 1, 4, Variant.MULTI_TURN, 5)
    reader = StepReader(read, 6, 2, CPU)
    for step in range(6):
        for ahead, needed in zip(reader.batches_of(step), read(step), strict=True):
            assert torch.equal(ahead.input_ids_BL, needed.input_ids_BL) and torch.equal(ahead.frames_BTHWC, needed.frames_BTHWC)
            assert torch.equal(ahead.target_N, needed.target_N) and ahead.tokens_squared == needed.tokens_squared > ahead.tokens
    reader.close()


def test_an_error_while_reading_ahead_surfaces_at_its_own_step():
    asked = []
    def read(step):
        asked.append(step)
        if step == 3:
            raise ValueError("shard is gone")
        return [step]
    reader = StepReader(read, 10, 2, CPU)
    assert [reader.batches_of(step) for step in range(3)] == [[0], [1], [2]]
    with pytest.raises(ValueError, match="shard is gone"):
        reader.batches_of(3)
    reader.close()
    assert max(asked) <= 5, "no more than two steps ahead"
