"""The plan beside what is measured, on the CPU: the benchmark of a 7B run with a model of two layers, and each engine's host memory."""

from __future__ import annotations

import json

import pytest
import torch
from launching import run

from vlmphys import memory, plan
from vlmphys.config import load_config

pytestmark = pytest.mark.integration
ENGINES = {"plain": "engine=plain", "zero2_offload": "deepspeed=ds_configs/zero2_offload.json", "zero3": "deepspeed=ds_configs/zero3.json",
           "fsdp": "engine=fsdp"}
# What a process held at most, after it trained.
MEASURED = """
import json, sys
sys.path.insert(0, "tests")
from peak_memory import peak_resident_bytes
from vlmphys.config import from_mapping
from vlmphys.train import train
config = from_mapping(json.loads(sys.argv[1]))
train(config)
print("held", peak_resident_bytes())
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="for a machine without GPU: with one the command measures it")
def test_the_benchmark_of_one_card_goes_through_on_a_cpu(repository, tmp_path):
    done = run(repository, ["tests/bench/gpu_7b.py", "--model", "tiny", "--runs", "full", "--steps", "2", "--out", str(tmp_path / "bench")])
    assert done.returncode == 0, done.stdout + done.stderr
    header, _, row = [line for line in done.stdout.splitlines() if line.startswith("|")]
    cells = dict(zip(header.strip("| ").split(" | "), row.strip("| ").split(" | ")))
    assert cells["run"] == "full tuning, micro-batch 1 (2 layers)" and float(cells["tokens/s"].replace(",", "")) > 0
    assert all(float(part) >= 0 for part in cells["data / forward / backward / update, s"].split(" / "))
    assert float(cells["plan: host GiB"]) > 0 and float(cells["host GiB (resident, mapped files too)"]) > 0
    assert run(repository, ["tests/bench/gpu_7b.py", "--model", "7b"]).returncode == 2


@pytest.mark.skipif(torch.version.cuda is not None, reason="a build for CUDA maps libraries that the plan does not count without a GPU")
@pytest.mark.parametrize("engine", ENGINES)
def test_the_plan_is_within_15_percent_of_what_a_run_takes(repository, packed_folder, tiny_model_folder, tmp_path, monkeypatch, engine):
    monkeypatch.chdir(repository)
    config = load_config(None, [ENGINES[engine], "max_steps=2", "save_steps=0", "per_device_train_batch_size=16", "warmup_ratio=0"],
                         {"model": str(tiny_model_folder), "data": str(packed_folder), "out": str(tmp_path / "run")})
    done = run(repository, ["-c", MEASURED, json.dumps(vars(config))])
    assert done.returncode == 0, done.stdout + done.stderr
    (held,) = (int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("held "))
    size = plan.model_size(config)
    planned = plan.estimate(plan.case_of(config, size, plan.read_data(config.data, config, size), plan.machine_of(config)))
    assert planned.case.size.trained > 0 and memory.peak(planned.host)[1] == pytest.approx(held, rel=0.15)
