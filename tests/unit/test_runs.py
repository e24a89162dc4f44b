"""The run folder's claim: what may be gone on with, and what a refusal names."""

from __future__ import annotations

import pytest

from vlmphys import runs
from vlmphys.config import TrainConfig, to_yaml
from vlmphys.files import json_bytes, read_json
from vlmphys.runs import check_claim, write_identity

pytestmark = pytest.mark.unit


def test_a_run_of_other_data_is_refused_with_both_folders(tmp_path):
    facts = {"data": "packed", "fingerprint": "a" * 64, "model_fingerprint": "m" * 64, "global_batch": 16, "train_clips": 9}
    config = TrainConfig(out=str(tmp_path), data="packed")
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    (tmp_path / "data.json").write_bytes(json_bytes(facts))
    check_claim(config, facts, "auto")
    check_claim(TrainConfig(out=str(tmp_path), data="moved"), {**facts, "data": "moved"}, "auto")
    other = {**facts, "data": "data/other", "fingerprint": "b" * 64, "train_clips": 7}
    with pytest.raises(ValueError) as caught:
        check_claim(TrainConfig(out=str(tmp_path), data="data/other"), other, "auto")
    message = str(caught.value)
    assert f"fingerprint ('{'a' * 64}' of packed there, '{'b' * 64}' of data/other here); train_clips (9 there, 7 here)" in message


def test_a_folder_without_config_is_taken_unless_it_holds_a_checkpoint_of_someone(tmp_path):
    config = TrainConfig(out=str(tmp_path))
    (tmp_path / "checkpoints" / "step_5").mkdir(parents=True)
    check_claim(config, {}, "auto")
    (tmp_path / "checkpoints" / "step_5" / "COMPLETE").write_text("{}")
    with pytest.raises(ValueError, match="not empty and no run folder"):
        check_claim(config, {}, "auto")


def test_the_ranks_can_be_signalled_by_what_the_folder_says(tmp_path):
    write_identity(TrainConfig(out=str(tmp_path / "run")), {}, 2, [11, 12])
    assert read_json(tmp_path / "run" / "env.json", "")["pids"] == [11, 12]


def test_the_process_ids_go_when_the_run_ends_and_nothing_else_of_env_json(tmp_path, monkeypatch):
    out = tmp_path / "run"
    write_identity(TrainConfig(out=str(out)), {}, 2, [11, 12])
    before = read_json(out / "env.json", "")

    def full(*_):
        raise OSError("No space left on device")
    with monkeypatch.context() as patch:
        patch.setattr(runs, "write_atomic", full)
        runs.forget_pids(out)
    assert read_json(out / "env.json", "") == before
    runs.forget_pids(out)
    assert read_json(out / "env.json", "") == {**before, "pids": []}
    (out / "env.json").unlink()
    runs.forget_pids(out)
    assert not (out / "env.json").exists()
