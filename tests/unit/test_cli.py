"""`vlmphys plan` and `vlmphys doctor`: exit statuses, JSON, one sentence for bad input, and a start that loads nothing heavy."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from vlmphys import cli

pytestmark = pytest.mark.unit


@pytest.fixture
def here(repository, monkeypatch):
    monkeypatch.chdir(repository)


def run(*arguments):
    return cli.main([str(argument) for argument in arguments])


def test_plan_of_the_quick_start_as_json(here, capsys):
    assert run("plan", "--config", "launch/recipes/quickstart.yaml", "--host-gib", 16, "--json", "--set", "data=no_such_folder") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["fits"] and result["model"] == "tiny" and result["machine"]["host"] == 16 << 30
    assert result["as_given"]["sharding"] == "ds_configs/zero2_offload.json"


def test_plan_as_tables(here, capsys, tiny_model_folder, packed_folder):
    settings = (f"model={tiny_model_folder}", "deepspeed=ds_configs/zero2.json", "tune=lora", "lora_r=4")
    assert run("plan", "--data", packed_folder, "--gpu-gib", 24, "--gpus", 2, "--host-gib", 16, "--set", *settings) == 0
    out = capsys.readouterr().out
    for part in ("published, with both towers", "LoRA", "each card", "host memory", "disk", "backward pass", "zero2_offload",
                 "of 24.00 GiB", "steps: 10, 32 clips each", "time: not known", "it fits as it is"):
        assert part in out, part


def test_what_fits_a_machine_of_unknown_disk_says_so(here, capsys, tiny_model_folder, packed_folder):
    """As `tune=full` on a card that is too small for it: a JSON that moves all to a disk is no answer where the disk is too small."""
    arguments = ("plan", "--data", packed_folder, "--host-gib", 16, "--set", f"model={tiny_model_folder}", "deepspeed=ds_configs/zero2.json")
    for enough, status, said in ((8, 0, "it fits as it is"), (1.3, 1, "this fits")):
        assert run(*arguments, "--gpu-gib", enough) == status
        out = capsys.readouterr().out
        assert "of host memory, disk: not checked, give --disk-gib" in out
        assert re.search(said + r", if [0-9.]+ .iB of disk are free", out)
        assert run(*arguments, "--gpu-gib", enough, "--disk-gib", 100) == status
        out = capsys.readouterr().out
        assert said in out and "not checked" not in out and "of disk are free" not in out


def test_plan_of_several_machines_as_tables(here, capsys, tiny_model_folder, packed_folder):
    machine = ("--gpu-gib", 24, "--gpus", 2, "--machines", 3, "--host-gib", 16, "--disk-gib", 0.001)
    assert run("plan", "--data", packed_folder, *machine, "--set", f"model={tiny_model_folder}", "engine=fsdp") == 1
    out = capsys.readouterr().out
    for part in ("batch 16 x 1 x 6", "each host", "steps: 10, 96 clips each", "it does not fit: 1.0 MiB are free on the disk"):
        assert part in out, part


def test_a_run_that_does_not_fit_says_what_does_with_status_1(here, capsys, tiny_model_folder, packed_folder):
    assert run("plan", "--data", packed_folder, "--set", f"model={tiny_model_folder}", "--gpu-gib", 0.01, "--host-gib", 16) == 1
    out = capsys.readouterr().out
    assert "it does not fit: each card has 10.2 MiB" in out and "nothing fits; the least: --set" in out


def test_settings_alone_for_scripts(here, capsys, tiny_model_folder, packed_folder):
    settings = ("--data", packed_folder, "--host-gib", 16, "--settings", "--set", f"model={tiny_model_folder}", "engine=plain")
    assert run("plan", *settings) == 0
    assert capsys.readouterr().out == ""
    peaks = []
    for batch in (20, 1):
        run("plan", *(word for word in settings if word != "--settings"), f"per_device_train_batch_size={batch}", "--gpu-gib", 8, "--json")
        peaks.append(json.loads(capsys.readouterr().out)["as_given"]["gpu_peak"])
    between = sum(peaks) / 2 / (1 << 30)
    assert run("plan", *settings, "per_device_train_batch_size=20", "--gpu-gib", between, "--only-batch") == 0
    words = dict(word.split("=") for word in capsys.readouterr().out.split())
    assert set(words) == {"per_device_train_batch_size", "gradient_accumulation_steps"}
    assert int(words["per_device_train_batch_size"]) * int(words["gradient_accumulation_steps"]) == 20
    assert run("plan", *settings, "per_device_train_batch_size=20", "--gpu-gib", 0.5, "--only-batch") == 1
    answer = capsys.readouterr()
    assert answer.out == "" and answer.err.startswith("error: it does not fit (1 x 0.5 GiB") and "each card has" in answer.err
    assert "even with per_device_train_batch_size=1" in answer.err


@pytest.mark.parametrize(("arguments", "message"), [
    (("--config", "no_such.yaml"), "no such config file"),
    (("--set", "learning_rat=1"), "did you mean 'learning_rate'"),
    (("--set", "model=no/such/model"), "is no folder: give a Hugging Face Video-LLaVA folder"),
    (("--data", "no_such_folder"), "no such folder"),
    (("--gpu-gib", "-1"), "--gpu-gib is -1.0: it must be above 0"),
    (("--run", "no_such_run"), "no run folder with config.yaml")])
def test_bad_input_is_one_sentence_and_status_2(here, capsys, arguments, message):
    assert run("plan", *arguments) == 2
    answer = capsys.readouterr()
    assert answer.out == "" and answer.err.startswith("error: ") and message in answer.err and answer.err.count("\n") == 1


@pytest.mark.parametrize("arguments", [(), ("detect",), ("plan", "--gpus", "two")])
def test_a_command_line_that_argparse_refuses_is_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        run(*arguments)
    assert caught.value.code == 2 and "usage: vlmphys" in capsys.readouterr().err


def test_doctor_as_json_and_as_tables(here, capsys, monkeypatch):
    from vlmphys import doctor
    # Whatever else runs here: compiling holds a lock, and memory comes and goes.
    monkeypatch.setattr(doctor, "_built", lambda name: [])
    monkeypatch.setattr(doctor, "host_memory", lambda: doctor.HostMemory(16 << 30, 12 << 30))
    status = run("doctor", "--json")
    result = json.loads(capsys.readouterr().out)
    assert status == (0 if result["quickstart"] else 1)
    assert set(result["packages"]) == set(doctor.PACKAGES) and result["packages"]["torch"] and result["cpu"]["cores"] >= 1
    assert run("doctor") == status
    out = capsys.readouterr().out
    for part in ("torch", "host memory", "cpu_adam", "pyav: works; decord: works", "quick start"):
        assert part in out, part


def test_doctor_prints_long_paths_whole(here, capsys, monkeypatch):
    from vlmphys import doctor
    lock = f"/{'deep/' * 40}cpu_adam/lock"
    monkeypatch.setattr(doctor, "_built", lambda name: [lock] if name == "lock" else [])
    run("doctor")
    out = capsys.readouterr().out
    last_cells = [line.strip("│ ").rpartition("│")[2].strip() for line in out.splitlines()]
    assert "…" not in out and lock in "".join(last_cells)


def test_doctor_where_something_is_missing_is_status_1(here, capsys, monkeypatch):
    from vlmphys import doctor
    monkeypatch.setattr(doctor, "tiny_facts", lambda: {"folder": "x", "missing": ["model.safetensors"]})
    monkeypatch.setattr(doctor, "_built", lambda name: [])
    assert run("doctor") == 1
    assert "x lacks model.safetensors; make it with python" in capsys.readouterr().out.replace("\n", " ")


def test_help_loads_nothing_heavy():
    check = ("import sys; from vlmphys.cli import parser; parser().format_help(); "
             "print([name for name in ('torch', 'transformers', 'numpy', 'rich') if name in sys.modules])")
    assert subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True).stdout.strip() == "[]"
