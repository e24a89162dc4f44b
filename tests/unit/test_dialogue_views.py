"""What pack.py --show and --statistics print: exactly the supervised text in colour, and figures that a plain count gives."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from launching import load_script

from vlmphys.dialogue_views import coloured, pieces, spread, statistics
from vlmphys.model import load_tokenizer
from vlmphys.priors import load_priors
from vlmphys.prompts import dialogue_text
from vlmphys.shards import open_packed

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def packed(packed_folder):
    return open_packed(packed_folder)


def test_what_is_coloured_is_each_answer_to_the_letter(packed, tiny_model_folder):
    tokenizer, table = load_tokenizer(str(tiny_model_folder)), packed.dialogues
    video = table.meta["video_token_id"]
    for clip_id, variant in table.keys:
        row = table.row(clip_id, variant)
        category, state = packed.frames.states()[clip_id]
        prior, paraphrased = load_priors({category})[category], packed.split.clips[clip_id] == "train"
        turns = dialogue_text(prior, state, variant, f"{clip_id}|{variant}|0", paraphrased=paraphrased)
        found = pieces(row, tokenizer, video)
        assert [(text, turn) for text, turn in found if turn] == [(f" {turn.answer}</s>", number) for number, turn in enumerate(turns, 1)]
        said = "".join(text for text, _ in found)
        assert said.startswith(f"<s>USER: <video> x {8 * table.meta['tokens_per_frame']}\n{turns[0].question} ASSISTANT:")
        text = coloured(row, tokenizer, video, marks=False)
        assert text.plain == said and [said[span.start:span.end] for span in text.spans] == [text for text, turn in found if turn]
        marked = coloured(row, tokenizer, video, marks=True).plain
        assert f"ASSISTANT:[[1 {turns[0].answer}</s>]]" in marked and marked.count("[[") == len(turns)


def test_statistics_are_those_of_a_plain_count(packed):
    found = {one.variant: one for one in statistics(packed.dialogues)}
    assert list(found) == packed.dialogues.meta["variants"]
    for variant, one in found.items():
        rows = [packed.dialogues.row(clip_id, variant) for clip_id in packed.frames.clip_ids]
        assert one.lengths.tolist() == [len(row.input_ids) for row in rows]
        supervised = sum(int((row.turn > 0).sum()) for row in rows)
        assert one.supervised_share == pytest.approx(supervised / sum(len(row.input_ids) for row in rows))
        shares = [sum(int((row.turn == turn).sum()) for row in rows) / supervised for turn in range(1, one.answers.shape[1] + 1)]
        assert np.allclose(one.turn_shares, shares) and len(shares) == (4 if variant == "multi_turn" else 1)


def test_a_few_of_many():
    assert spread(list("abcdefgh"), 3) == ["a", "d", "h"] and spread([1, 2], 5) == [1, 2] and spread([1, 2], 1) == [1]
    with pytest.raises(ValueError, match="--show 0"):
        spread([1], 0)


def test_pack_shows_what_is_packed_and_changes_nothing(packed_folder, repository, tiny_model_folder, monkeypatch, capsys):
    before = {path: path.stat().st_mtime_ns for path in packed_folder.rglob("*")}
    monkeypatch.setenv("COLUMNS", "200")    # rich reads it once, when the script makes its console
    module = load_script(repository / "data_prep/pack.py")
    words = ["pack.py", "--only", "dialogues", "--out", str(packed_folder), "--model", str(tiny_model_folder)]
    monkeypatch.setattr(sys, "argv", [*words, "--show", "2", "--statistics"])
    assert module.main() == 0
    said = capsys.readouterr().out
    assert said.count("USER: <video> x 40\n") == 2 and "[[4 Verdict: " in said and "multi_turn" in said and "tokens: least" in said
    monkeypatch.setattr(sys, "argv", [*words, "--show", "0"])
    assert module.main() == 2 and "--show 0: must be at least 1" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in packed_folder.rglob("*")} == before


def test_a_look_alone_reads_and_writes_nothing(packed_folder, repository, tiny_model_folder, monkeypatch, capsys):
    before = {path: path.stat().st_mtime_ns for path in packed_folder.rglob("*")}
    monkeypatch.setenv("COLUMNS", "200")
    module = load_script(repository / "data_prep/pack.py")
    monkeypatch.setattr(module, "pack_dialogues", lambda *_: pytest.fail("a look packed dialogues"))
    # Other settings than those packed with, which packing would write: a look has none.
    words = ["pack.py", "--out", str(packed_folder), "--model", str(tiny_model_folder), "--variants", "single_turn", "--show", "2"]
    monkeypatch.setattr(sys, "argv", [*words, "--statistics"])
    assert module.main() == 0
    said = capsys.readouterr().out
    assert said.count("USER: <video> x 40\n") == 2 and "multi_turn" in said and "tokens: least" in said
    monkeypatch.setattr(sys, "argv", [*words, "--check"])
    assert module.main() == 2 and "leave one of them out" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in packed_folder.rglob("*")} == before
