"""launch/predict.py on several ranks, killed and started again, and where a GPU's memory does not do."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import pytest
import torch
from launching import load_script, run, torchrun
from rich.console import Console

from vlmphys.predict import PredictOptions, Source, device_and_dtype, load_network, predict
from vlmphys.predictions import Explain, Grounding
from vlmphys.records import Split, Variant
from vlmphys.shards import open_packed

pytestmark = pytest.mark.integration


def rows_of(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def options(tmp_path, tiny_model_folder, packed_folder) -> PredictOptions:
    return PredictOptions(packed_folder, tmp_path / "p.jsonl", model=str(tiny_model_folder), variant=(Variant.MULTI_TURN,), explain=Explain.NONE,
                          max_new_tokens=6)


def test_kills_leave_every_clip_once_and_the_rows_of_an_uninterrupted_run(repository, tmp_path, monkeypatch):
    """The short form of tests/bench/predict_kills.py, which does the same with 500 clips and ten kills."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    kills = load_script(repository / "tests" / "bench" / "predict_kills.py")
    prepared = kills.prepared(tmp_path, 60)
    whole = replace(prepared, out=tmp_path / "whole" / "predictions.jsonl")
    assert kills.run(whole, 1, 0, 60) == 1
    for ranks in (1, 2):
        killed = replace(prepared, out=tmp_path / f"ranks{ranks}" / "predictions.jsonl")
        assert kills.run(killed, ranks, 4, 60) > 1, "nothing was killed"
        found = kills.differences(whole.out, killed.out)
        assert found.pop("rows") == 60 and found.pop("score") < kills.TOLERANCE and not any(found.values()), found


def test_torchrun_shares_the_clips(repository, tmp_path, tiny_model_folder, packed_folder):
    out = tmp_path / "p.jsonl"
    done = run(repository, ["launch/predict.py", "--model", str(tiny_model_folder), "--variant", "no_physics", "--data", str(packed_folder),
                            "--out", str(out), "--explain", "none"], torchrun(2))
    assert done.returncode == 0, done.stdout + done.stderr
    assert [row["clip_id"] for row in rows_of(out)] == open_packed(packed_folder).clip_ids(Split.TEST)
    assert [path.name for path in tmp_path.iterdir()] == ["p.jsonl"]
    assert done.stdout.count("predictions: ") == 1 and "7 clips of test are rank 1's of 2" in done.stdout


def test_too_little_memory_halves_the_batch_and_loses_no_clip(options, monkeypatch, capsys):
    import vlmphys.predict
    real, sizes = vlmphys.predict.judge_askings, []

    def judge(network, facts, features, askings, decoding):
        sizes.append(len(askings[0]))
        if len(askings[0]) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return real(network, facts, features, askings, decoding)
    monkeypatch.setattr(vlmphys.predict, "judge_askings", judge)
    assert predict(replace(options, batch_size=14), Console()) == 14
    assert [row["clip_id"] for row in rows_of(options.out)] == open_packed(options.data).clip_ids(Split.TEST)
    assert sizes == [14, 7, 3, 3, 3, 3, 2] and "going on with --batch-size 3" in capsys.readouterr().out


def test_several_ways_of_asking_get_a_file_each_and_go_on_each_from_its_own_rows(options, monkeypatch):
    asked = replace(options, variant=(Variant.MULTI_TURN, Variant.NO_PHYSICS), ground=(Grounding.PRIOR, Grounding.GENERATE, Grounding.NONE))
    assert predict(asked, Console(quiet=True)) == 14
    files = {name: options.out.with_name(f"p.{name}.jsonl")
             for name in ("multi_turn.prior", "multi_turn.generate", "multi_turn.none", "no_physics.none")}
    rows = {name: rows_of(path) for name, path in files.items()}
    assert len(list(options.out.parent.iterdir())) == 4 and all(len(of_file) == 14 for of_file in rows.values())
    for name, of_file in rows.items():
        assert {f"{row['variant']}.{row['grounding']}" for row in of_file} == {name}
        assert {len(row["answers"]) for row in of_file} == {1 if name.endswith("none") else 4}
    assert [row["answers"][0] for row in rows["multi_turn.generate"]] != [row["answers"][0] for row in rows["multi_turn.prior"]]
    for one, other in zip(rows["multi_turn.none"], rows["no_physics.none"]):
        assert one["score"] == pytest.approx(other["score"], abs=1e-5), "without grounding every variant is asked the same"
    files["multi_turn.none"].write_bytes(b"".join(files["multi_turn.none"].read_bytes().splitlines(keepends=True)[:3]))
    before = files["multi_turn.prior"].read_bytes()
    assert predict(asked, Console(quiet=True)) == 11
    assert len(rows_of(files["multi_turn.none"])) == 14 and files["multi_turn.prior"].read_bytes() == before
    alone = replace(options, out=options.out.with_name("alone.jsonl"), ground=(Grounding.GENERATE,))
    assert predict(alone, Console(quiet=True)) == 14
    for one, other in zip(rows_of(alone.out), rows["multi_turn.generate"], strict=True):
        assert one["answers"] == other["answers"] and one["score"] == pytest.approx(other["score"], abs=1e-4)


def test_descriptions_stand_in_the_rows_that_are_explained(options):
    assert predict(replace(options, explain=Explain.ALL, describe=True), Console(quiet=True)) == 14
    assert all(isinstance(row["description"], str) and row["explanation"] is not None for row in rows_of(options.out))
    with pytest.raises(ValueError, match="--describe asks after the whole answer"):
        predict(replace(options, describe=True), Console(quiet=True))
    with pytest.raises(ValueError, match="was predicted with --describe"):
        predict(replace(options, explain=Explain.ALL), Console(quiet=True))


def test_four_bits_need_a_gpu(options):
    with pytest.raises(ValueError, match="--dtype 4bit needs a CUDA GPU: use bf16 or fp32 here"):
        predict(replace(options, dtype="4bit", device="cpu"), Console(quiet=True))
    assert not options.out.exists()


def test_four_bits_are_packed_while_the_weights_are_read(options, monkeypatch):
    asked = []
    monkeypatch.setattr("vlmphys.predict.load_model", lambda *given, tower: asked.append((*given, tower)) or torch.nn.Identity())
    load_network(Source("tiny", "tiny", (Variant.MULTI_TURN,), None), replace(options, dtype="4bit"), torch.device("cuda"), torch.bfloat16)
    assert asked == [("tiny", torch.bfloat16, torch.device("cuda"), True)]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("vlmphys.predict.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="--dtype 4bit needs bitsandbytes"):
        device_and_dtype(replace(options, dtype="4bit", device="cuda"))


def test_each_rank_works_on_its_own_gpu(options, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device_and_dtype(replace(options, rank=5, ranks=8, local_rank=1)) == (torch.device("cuda", 1), torch.bfloat16)
    assert device_and_dtype(options) == (torch.device("cuda"), torch.bfloat16)
