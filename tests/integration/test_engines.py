"""Every engine on two ranks against torch alone on one: same numbers, exact resume, checkpoints that any other engine takes."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

sys.path.insert(0, __file__.rpartition("/")[0])
import engine_worker as worker  # noqa: E402

from vlmphys import checkpoint  # noqa: E402
from vlmphys.world import World  # noqa: E402

pytestmark = pytest.mark.integration
WORLD = World(0, 1, torch.device("cpu"))
ENGINES = ("plain", "fsdp", *worker.SHARDING)
MIXED = ("fsdp_bf16_lora", "zero2_bf16_lora", "zero3_offload_bf16_lora")


@pytest.fixture(scope="module")
def examined(repository, tmp_path_factory):
    """What plain comes to on one rank, and the folder in which the worker left what all engines come to on two."""
    folder = tmp_path_factory.mktemp("engines")
    whole, half = (worker.start(WORLD, folder, "plain") for _ in range(2))
    norms = worker.advance(whole, 0, worker.STEPS)
    worker.advance(half, 0, worker.HALF)
    checkpoint.save(half, folder / "reference", worker.marker(worker.HALF), keep=1)
    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
                           "tests/integration/engine_worker.py", str(folder)], cwd=repository, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-5000:]
    return worker.state_of(whole), norms, folder, json.loads((folder / "findings.json").read_text())


@pytest.mark.parametrize("name", ENGINES)
def test_two_ranks_end_with_the_state_of_one(name, examined):
    expected, norms, folder, findings = examined
    assert findings[name]["norms"] == pytest.approx(norms, rel=1e-5)
    assert max(norms) > 0.5, "the clipping must have something to do"
    for state in (load_file(folder / f"{name}.safetensors"), load_file(folder / f"{name}_after_plain.safetensors")):
        assert state.keys() == expected.keys()
        for key, value in expected.items():
            assert torch.allclose(state[key], value, rtol=1e-4, atol=1e-6), key


@pytest.mark.parametrize("name", [*ENGINES, *MIXED])
def test_a_resumed_engine_is_bit_identical(name, examined):
    found = examined[3][name]
    assert found["saving_changes_nothing"] and found["resumed_is_identical"] and found["evaluations_agree"]


@pytest.mark.parametrize("name", ENGINES)
def test_one_rank_goes_on_from_the_checkpoint_of_two(name, examined):
    expected, _, folder, _ = examined
    engine = worker.start(WORLD, folder, "plain", fresh=False)
    worker.load(engine, folder / name)
    worker.advance(engine, worker.HALF, worker.STEPS)
    for key, value in worker.state_of(engine).items():
        assert torch.allclose(expected[key], value, rtol=1e-4, atol=1e-6), key


@pytest.mark.parametrize("name", [*ENGINES, *MIXED])
def test_weights_are_whole_and_only_those_asked_for(name, examined):
    found = examined[3][name]
    shapes = {key: list(value.shape) for key, value in worker.Toy().network.state_dict().items()}
    assert found["shapes"] == shapes and found["some"] == ["layers.0.up.weight"]
    assert found["dtypes"] == ["torch.bfloat16" if name in MIXED else "torch.float32"]
    assert any(key.endswith("down.weight") for key in found["frozen"]) == (name in MIXED)
