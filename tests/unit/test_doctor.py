"""The doctor: real decoding of a real clip here, control groups' limits, and each verdict from made-up facts."""

from __future__ import annotations

import copy
import json
import os

import pytest

from vlmphys import doctor
from vlmphys.doctor import GIB

pytestmark = pytest.mark.unit

WHOLE = {
    "packages": dict.fromkeys(doctor.PACKAGES, "1.0"), "gpus": [],
    "cpu": {"cores": 2, "name": "a CPU", "avx2": True, "avx512f": True, "avx512_bf16": False, "amx_bf16": False},
    "host_memory": {"total": 16 * GIB, "available": 12 * GIB}, "free_disk": 20 * GIB, "compiler": "c++ 12", "ninja": "ninja 1.11",
    "aio": {"compatible": True, "error": None}, "bitsandbytes": "0.49",
    "cpu_adam": {"compatible": True, "compiled": False, "lock": None, "lock_held": False, "seconds": None, "error": None},
    "video": {"codecs": {"h264": True, "hevc": True, "av1": True}, "h264_encoder": "libx264",
              "readers": {"pyav": "works", "decord": "works"}},
    "tiny_base": {"folder": "tiny_base", "missing": []}}
CARD = {"name": "a card", "total": 24 * GIB, "free": 23 * GIB, "bf16": True}


def judged(**changes):
    """The checks of a machine on which everything works but for `changes`, by part."""
    facts = copy.deepcopy(WHOLE)
    for key, value in changes.items():
        facts[key] = {**facts[key], **value} if isinstance(facts[key], dict) else value
    return {check.part: check for check in doctor.checks(facts)}


def test_everything_works_on_a_whole_machine():
    found = judged(gpus=[CARD])
    assert all(check.works for check in found.values()) and list(found)[-1] == "quick start"
    assert "doctor --build" in found["CPU optimizer"].remark and found["quick start"].remark == "bash launch/quickstart.sh"


@pytest.mark.parametrize(("changes", "part", "cure"), [
    ({"packages": {"torch": None, "peft": None}}, "packages", "not installed: torch, peft; run python -m pip install"),
    ({"video": {"readers": {"pyav": "PyAV cannot be imported (x)", "decord": "works"}}}, "reading video", "cannot be imported"),
    ({"video": {"h264_encoder": None}}, "writing video", "--force-reinstall av"),
    ({"tiny_base": {"missing": ["model.safetensors"]}}, "tiny model", "launch/build_tiny_base.py"),
    ({"compiler": None}, "CPU optimizer", "apt install g++"),
    ({"ninja": None}, "CPU optimizer", "pip install ninja"),
    ({"cpu_adam": {"compatible": False}}, "CPU optimizer", "ds_configs/zero2.json"),
    ({"cpu_adam": {"error": "deepspeed is not installed"}}, "CPU optimizer", "deepspeed is not installed"),
    ({"free_disk": GIB}, "disk", "make room")])
def test_what_is_missing_stops_the_quick_start_with_the_cure(changes, part, cure):
    found = judged(**changes)
    assert not found[part].works and cure in found[part].remark
    assert not found["quick start"].works and part in found["quick start"].remark


def test_a_compilation_that_runs_is_told_from_one_that_was_cut_short():
    lock = "/x/cpu_adam/lock"
    held = judged(cpu_adam={"lock": lock, "lock_held": True})
    assert held["CPU optimizer"].remark.startswith("another process compiles it now, and every run waits") and held["quick start"].works
    assert held["CPU optimizer"].remark.endswith(lock)
    for compiled in (True, False):
        left = judged(cpu_adam={"lock": lock, "compiled": compiled})
        assert f"left {lock}, which the next run clears away" in left["CPU optimizer"].remark and left["quick start"].works


def test_little_memory_stops_the_quick_start():
    found = judged(host_memory={"available": GIB})
    assert "host memory (1.0 GiB free" in found["quick start"].remark and not found["quick start"].works


@pytest.mark.parametrize(("changes", "part"), [
    ({"video": {"readers": {"pyav": "works", "decord": "decord: is not installed here (x)"}}}, "second reader"),
    ({"gpus": [{**CARD, "total": 8 * GIB}]}, "7B model"), ({}, "7B model"), ({"gpus": [{**CARD, "bf16": False}]}, "bf16")])
def test_what_the_quick_start_does_not_need_does_not_stop_it(changes, part):
    found = judged(**changes)
    assert not found[part].works and found["quick start"].works


def test_each_engine_is_judged():
    whole = judged(gpus=[CARD])
    assert "NCCL" in whole["ZeRO, FSDP"].remark and whole["NVMe offload"].works and whole["qlora"].works
    found = judged(aio={"compatible": False}, bitsandbytes=None)
    assert "gloo" in found["ZeRO, FSDP"].remark and found["CPU offload"].works
    assert not found["NVMe offload"].works and "libaio-dev" in found["NVMe offload"].remark
    assert "no CUDA GPU; bitsandbytes is not installed" in found["qlora"].remark and found["quick start"].works
    without_adam = judged(cpu_adam={"compatible": False})
    assert not without_adam["CPU offload"].works and without_adam["ZeRO, FSDP"].works
    assert not judged(packages={"deepspeed": None})["ZeRO, FSDP"].works


def test_compiled_needs_no_compiler_and_bf16_on_a_cpu_is_judged():
    found = judged(compiler=None, ninja=None, cpu_adam={"compiled": True})
    assert found["CPU optimizer"].works and found["quick start"].works
    assert "bf16=false is usually faster" in found["bf16"].remark
    assert judged(cpu={"avx512_bf16": True})["bf16"].remark == "on the CPU"
    assert "not with av1 files" in judged(video={"codecs": {"h264": True, "hevc": True, "av1": False}})["reading video"].remark


def test_both_readers_read_a_clip_that_is_encoded_here():
    facts = doctor.decoder_facts()
    assert facts["readers"] == {"pyav": "works", "decord": "works"}
    assert facts["codecs"] == {"h264": True, "hevc": True, "av1": True} and facts["h264_encoder"] == "libx264"


def test_a_reader_that_gives_wrong_pixels_or_refuses_is_named(tmp_path, monkeypatch):
    import av
    clip = tmp_path / "clip.mp4"
    doctor._encode(av, clip, "libx264")
    assert doctor._try_reader(clip, "pyav") == "works"
    monkeypatch.setattr(doctor, "LEVELS", (190, 140, 90, 40))
    assert "wrong pixels" in doctor._try_reader(clip, "pyav")
    clip.write_bytes(b"")
    assert "empty" in doctor._try_reader(clip, "pyav")


def test_a_codec_that_nobody_knows():
    import av
    assert not doctor._has_codec(av, "no_such_codec", "r") and doctor._has_codec(av, "h264", "r")


def test_a_container_limit_counts_where_it_is_lower(tmp_path):
    everything = doctor.host_memory(tmp_path)
    assert everything.total > everything.available > 0
    (tmp_path / "memory.max").write_text(f"{GIB}\n")
    (tmp_path / "memory.current").write_text(f"{GIB // 2}\n")
    (tmp_path / "memory.stat").write_text(f"anon 5\ninactive_file {GIB // 4}\n")
    limited = doctor.host_memory(tmp_path)
    assert limited.total == GIB and limited.available == min(GIB // 2 + GIB // 4, everything.available)
    (tmp_path / "memory.max").write_text("max\n")
    assert doctor.host_memory(tmp_path).total == everything.total


def test_free_disk_of_a_folder_that_is_not_there_yet(tmp_path):
    assert doctor.free_disk(tmp_path / "a" / "b" / "c") == doctor.free_disk(tmp_path) > 0


def test_tools_versions_and_the_tiny_base():
    assert doctor.tool("no_such_program_x", "python3").startswith("python3 Python 3")
    assert doctor.tool("no_such_program_x") is None
    assert doctor.version_of("torch") and doctor.version_of("no-such-package-x") is None
    assert doctor.tiny_facts()["missing"] == []


def test_a_lock_is_found_and_is_held_while_it_is_fresh(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    facts = doctor.cpu_adam_facts(build=False)
    assert facts["compatible"] and not facts["lock"] and (not facts["compiled"] or doctor.version_of("deepspeed"))
    folder = tmp_path / "cpu_adam"
    folder.mkdir(parents=True)
    (folder / "lock").write_text("")
    (folder / "cpu_adam.so").write_text("")
    facts = doctor.cpu_adam_facts(build=True)       # while another process compiles nothing is built
    assert facts["lock"] == str(folder / "lock") and facts["lock_held"] and facts["compiled"] and facts["seconds"] is None
    os.utime(folder / "lock", (0, 0))
    facts = doctor.cpu_adam_facts(build=False)
    assert facts["lock"] == str(folder / "lock") and not facts["lock_held"]
    json.dumps(facts)
