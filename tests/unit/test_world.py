"""One process among others: what it sums, what the ranks agree upon, and which of them says it."""

from __future__ import annotations

import pytest
import torch
from launching import load_script

from vlmphys import world
from vlmphys.config import TrainConfig
from vlmphys.world import Agreed, World, connect

pytestmark = pytest.mark.unit
ALONE = World(0, 1, torch.device("cpu"))


def test_a_sum_is_a_new_tensor_also_on_a_single_rank():
    values = torch.ones(3)
    ALONE.sum(values).add_(1)
    assert values.tolist() == [1, 1, 1]


def test_what_several_ranks_complain_of_is_named_once(monkeypatch):
    monkeypatch.setattr(World, "gather_texts", lambda self, texts: [*texts, "no folder", "no disk"])
    with pytest.raises(Agreed, match="^no folder; no disk$"):
        ALONE.agree(["no folder"])


def test_ranks_wait_longer_for_each_other_than_the_first_one_may_need_alone(monkeypatch):
    told = {}
    monkeypatch.setattr(world.distributed, "init_process_group", lambda backend, **more: told.update(more))
    for key, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "1")):
        monkeypatch.setenv(key, value)
    connect(TrainConfig(engine="fsdp"))
    assert told["timeout"].total_seconds() >= 3600


@pytest.fixture
def launch(repository, monkeypatch):
    """`launch/train.py`, whose training ends as it is told."""
    module = load_script(repository / "launch" / "train.py")
    monkeypatch.setattr("sys.argv", ["launch/train.py"])

    def ending(error, **environment):
        def train(*_):
            raise error
        monkeypatch.setattr("vlmphys.train.train", train)
        for key in ("RANK", "LOCAL_RANK"):
            monkeypatch.delenv(key, raising=False)
        for key, value in environment.items():
            monkeypatch.setenv(key, value)
        return module.main()
    return ending


def test_a_rank_that_fails_alone_says_so_and_one_voice_is_enough_for_what_all_met(launch, monkeypatch, capsys):
    assert launch(ValueError("no folder")) == 2 and capsys.readouterr().err == "error: no folder\n"
    # Another machine, then another rank of this one.
    assert launch(ValueError("no folder"), RANK="1") == 2 and capsys.readouterr().err == "rank 1: error: no folder\n"
    assert launch(ValueError("no folder"), RANK="1", LOCAL_RANK="1") == 2 and capsys.readouterr().err == ""
    # Once they are connected, each has its own troubles, but for those that they told each other.
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    assert launch(ValueError("no shard"), RANK="1", LOCAL_RANK="1") == 2 and capsys.readouterr().err == "rank 1: error: no shard\n"
    assert launch(OSError("no disk"), RANK="1", LOCAL_RANK="1") == 2 and capsys.readouterr().err == "rank 1: error: no disk\n"
    for error in (Agreed("no disk"), FloatingPointError("not finite")):
        assert launch(error, RANK="1", LOCAL_RANK="1") == 2 and capsys.readouterr().err == ""


def test_ctrl_c_outside_of_the_steps_is_one_line(launch, capsys):
    assert launch(KeyboardInterrupt()) == 130
    said = capsys.readouterr().err
    assert said.startswith("stopped by SIGINT") and said.count("\n") == 1
