"""`vlmphys doctor`: what this machine has, what of the toolkit will work on it, and the cure for what will not."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmphys.cases import GIB

PACKAGES = ("vlmphys", "torch", "deepspeed", "transformers", "peft", "decord", "av", "pyarrow")
READERS = ("pyav", "decord")
LEVELS = (40, 90, 140, 190)     # brightness of the frames of the clip that the readers are tried on
DECODERS = {"h264": ("h264",), "hevc": ("hevc",), "av1": ("libdav1d", "libaom-av1", "av1")}
H264_ENCODERS = ("libx264", "h264")
TINY_FILES = ("config.json", "model.safetensors", "tokenizer.json", "preprocessor_config.json")
WORKS = "works"
CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
# What the quick start was seen to take, rounded up: the training process, its launcher, packing workers; clips, packed data, three runs.
QUICKSTART_HOST_GIB, QUICKSTART_DISK_GIB = 3, 2
BIG_MODEL_GIB = 18              # LoRA on a 7B model, by `vlmphys plan` for launch/recipes/single_4090.yaml
NEEDED_BY_QUICKSTART = ("packages", "reading video", "writing video", "tiny model", "CPU optimizer", "disk")
NO_OFFLOAD = "or use a JSON without offload_optimizer, such as ds_configs/zero2.json"
INSTALL = "python -m pip install --constraint constraints.txt --editable ."


@dataclass(frozen=True)
class Gpu:
    """A CUDA device; memory in bytes."""

    name: str
    total: int
    free: int
    bf16: bool


@dataclass(frozen=True)
class HostMemory:
    """Bytes of host memory that this process may have: the machine's or, where it is less, its control group's."""

    total: int
    available: int


@dataclass(frozen=True)
class Check:
    """A part of the toolkit: whether it works here, and why not and what to do, or a remark."""

    part: str
    works: bool
    remark: str


def gpus_here(indices: list[int] | None = None) -> list[Gpu]:
    """The visible CUDA devices, or those of `indices`; none without torch or CUDA. Asking for free memory opens a context on each."""
    if importlib.util.find_spec("torch") is None:
        return []
    import torch
    if not torch.cuda.is_available():
        return []
    found = []
    for index in range(torch.cuda.device_count()) if indices is None else indices:
        free, total = torch.cuda.mem_get_info(index)
        with torch.cuda.device(index):
            bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        found.append(Gpu(torch.cuda.get_device_name(index), total, free, bf16))
    return found


def host_memory(groups: Path = Path("/sys/fs/cgroup")) -> HostMemory:
    """Host memory; a container's limit counts where it is lower than the machine's memory. `groups` is where control groups are mounted."""
    import psutil
    memory = psutil.virtual_memory()
    total, available = memory.total, memory.available
    for limit_file, used_file, cache_key in (("memory.max", "memory.current", "inactive_file"),
                                             ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file")):
        limit, used = _number(groups / limit_file), _number(groups / used_file)
        if limit is None or used is None or limit >= total:
            continue
        # Files that the kernel may drop count as used there, and are as good as free.
        lines = (line.split() for line in _text((groups / limit_file).parent / "memory.stat").splitlines())
        cache = sum(int(words[1]) for words in lines if words[:1] == [cache_key])
        total, available = limit, min(available, limit - used + cache)
    return HostMemory(total, max(0, available))


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    """The number in a control group's file; None where there is none ("max", or no such file)."""
    text = _text(path).strip()
    return int(text) if text.isdigit() else None


def free_disk(path: str | Path) -> int:
    """Free bytes where `path` is, or would be."""
    return shutil.disk_usage(_there(path)).free


def same_disk(one: str | Path, other: str | Path) -> bool:
    """Whether both are, or would be, on one file system."""
    return _there(one).stat().st_dev == _there(other).stat().st_dev


def _there(path: str | Path) -> Path:
    """The path, or the nearest folder above it that exists."""
    path = Path(path).expanduser().absolute()
    return next(place for place in (path, *path.parents) if place.exists())


def version_of(package: str) -> str | None:
    """An installed package's version, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def cpu_facts() -> dict[str, Any]:
    """Cores that this process may use, the processor's name, and which of `CPU_FLAGS` it has."""
    text = _text(Path("/proc/cpuinfo"))
    lines = dict(tuple(part.strip() for part in line.partition(":")[::2]) for line in text.splitlines() if ":" in line)
    flags = set(lines.get("flags", "").split())
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    name = lines.get("model name") or platform.processor() or platform.machine()
    return {"cores": cores, "name": name, **{flag: flag in flags for flag in CPU_FLAGS}}


def tool(*names: str) -> str | None:
    """The first of these programs that is in PATH and answers `--version`: name and the answer's first line."""
    for name in names:
        if shutil.which(name) is None:
            continue
        try:
            answer = subprocess.run([name, "--version"], capture_output=True, text=True, timeout=20, check=False)
        except (OSError, subprocess.TimeoutExpired):
            continue
        if answer.returncode == 0:
            return f"{name} {answer.stdout.splitlines()[0] if answer.stdout else ''}".strip()
    return None


def cpu_adam_facts(build: bool) -> dict[str, Any]:
    """DeepSpeed's CPU optimizer: whether it suits this machine and is compiled, and a compilation's lock, which a process holds or a killed one
    left. `build` compiles it now."""
    facts: dict[str, Any] = {"deepspeed": None, "compatible": False, "compiled": False, "lock": None, "lock_held": False, "seconds": None,
                             "error": None}
    if importlib.util.find_spec("deepspeed") is None or importlib.util.find_spec("torch") is None:
        return {**facts, "error": "deepspeed is not installed"}
    import torch
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    try:
        from deepspeed.git_version_info import installed_ops
        from deepspeed.ops.op_builder import CPUAdamBuilder
    except (ImportError, RuntimeError, OSError) as error:
        return {**facts, "error": f"deepspeed cannot be imported ({error})"}
    from vlmphys.compiling import announce_build, build_folder, build_root, is_held, remove_stale_lock
    os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(build_root()))
    builder = CPUAdamBuilder()
    facts.update(deepspeed=True, compatible=bool(builder.is_compatible(verbose=False)))
    facts.update(compiled=bool(installed_ops.get("cpu_adam")) or bool(_built("cpu_adam.so")), lock=next(iter(_built("lock")), None),
                 lock_held=is_held(build_folder("cpu_adam")))
    if build and facts["compatible"] and not facts["lock_held"]:
        if remove_stale_lock(build_folder("cpu_adam")):
            facts.update(lock=None)
        if not facts["compiled"]:
            announce_build("DeepSpeed's CPU Adam")
        started = time.monotonic()
        try:
            builder.load(verbose=False)
        except (ImportError, RuntimeError, OSError) as error:
            return {**facts, "compiled": False, "error": f"compilation failed ({str(error.__cause__ or error).splitlines()[0]})"}
        facts.update(compiled=True, seconds=round(time.monotonic() - started, 1))
    return facts


def aio_facts() -> dict[str, Any]:
    """DeepSpeed's access to disks, which the NVMe offload is made of: whether libaio is here for it to be compiled with. A C compiler is
    called for that."""
    try:
        from deepspeed.ops.op_builder import AsyncIOBuilder
    except (ImportError, RuntimeError, OSError) as error:
        return {"compatible": False, "error": f"deepspeed cannot be imported ({error})"}
    return {"compatible": bool(AsyncIOBuilder().is_compatible(verbose=False)), "error": None}


def _built(name: str) -> list[str]:
    """Files of that name in the folders of compiled CPU optimizers."""
    from vlmphys.compiling import build_folder
    return sorted(str(path) for path in build_folder("cpu_adam").glob(name))


def decoder_facts() -> dict[str, Any]:
    """Which codecs PyAV has, and what each reader makes of a clip of four frames that is encoded here and now."""
    facts: dict[str, Any] = {"codecs": dict.fromkeys(DECODERS, False), "h264_encoder": None}
    try:
        import av
    except ImportError as error:
        return {**facts, "readers": dict.fromkeys(READERS, f"PyAV cannot be imported ({error})")}
    facts["codecs"] = {codec: any(_has_codec(av, name, "r") for name in names) for codec, names in DECODERS.items()}
    facts["h264_encoder"] = next((name for name in H264_ENCODERS if _has_codec(av, name, "w")), None)
    if facts["h264_encoder"] is None:
        return {**facts, "readers": dict.fromkeys(READERS, "not tried: PyAV has no H.264 encoder to make a clip with")}
    with tempfile.TemporaryDirectory(prefix="vlmphys-doctor-") as folder:
        clip = Path(folder) / "four_frames.mp4"
        _encode(av, clip, facts["h264_encoder"])
        facts["readers"] = {reader: _try_reader(clip, reader) for reader in READERS}
    return facts


def _has_codec(av, name: str, mode: str) -> bool:
    try:
        av.Codec(name, mode)
    except av.codec.codec.UnknownCodecError:
        return False
    return True


def _encode(av, path: Path, encoder: str) -> None:
    """One grey frame for each of `LEVELS`."""
    import numpy as np
    with av.open(str(path), "w") as container:
        stream = container.add_stream(encoder, rate=60)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for level in LEVELS:
            image_HWC = np.full((48, 64, 3), level, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image_HWC, format="rgb24")))
        container.mux(stream.encode())


def _try_reader(clip: Path, reader: str) -> str:
    """`WORKS`, or what is wrong."""
    from vlmphys.video import read_frames
    try:
        frames_THWC = read_frames(clip, frames=4, reader=reader).frames_THWC
    except (ValueError, OSError, RuntimeError) as error:
        return str(error)
    levels = [float(image.mean()) for image in frames_THWC]
    if frames_THWC.shape == (4, 48, 64, 3) and all(abs(level - wanted) < 8 for level, wanted in zip(levels, LEVELS)):
        return WORKS
    return f"gives wrong pixels: frames of shape {frames_THWC.shape}, mean brightness {', '.join(f'{level:.0f}' for level in levels)}"


def tiny_facts() -> dict[str, Any]:
    """Whether the embedded base is whole."""
    folder = Path(__file__).parent / "tiny_base"
    missing = [name for name in TINY_FILES if not (folder / name).is_file()]
    return {"folder": str(folder), "missing": missing}


def facts_here(build: bool = False) -> dict[str, Any]:
    """Everything that doctor looks at, as plain values; bytes for sizes."""
    memory = host_memory()
    return {
        "python": platform.python_version(), "platform": platform.platform(), "packages": {name: version_of(name) for name in PACKAGES},
        "gpus": [vars(gpu) for gpu in gpus_here()], "cpu": cpu_facts(), "host_memory": vars(memory), "free_disk": free_disk("."),
        "compiler": tool("c++", "g++"), "ninja": tool("ninja"), "cpu_adam": cpu_adam_facts(build), "aio": aio_facts(),
        "bitsandbytes": version_of("bitsandbytes"), "video": decoder_facts(),
        "tiny_base": tiny_facts()}


def checks(facts: dict[str, Any]) -> list[Check]:
    """What of the toolkit will work, from the facts alone; the last one is the quick start."""
    found = [_packages(facts), *_video(facts), _tiny(facts), _cpu_adam(facts), *_engines(facts), _bf16(facts),
             _big_model(facts), _disk(facts)]
    memory = facts["host_memory"]["available"]
    reasons = [check.part for check in found if check.part in NEEDED_BY_QUICKSTART and not check.works]
    if memory < QUICKSTART_HOST_GIB * GIB:
        reasons.append(f"host memory ({memory / GIB:.1f} GiB free, about {QUICKSTART_HOST_GIB} are needed)")
    return [*found, Check("quick start", not reasons, f"stopped by: {', '.join(reasons)}" if reasons else "bash launch/quickstart.sh")]


def _packages(facts: dict[str, Any]) -> Check:
    missing = [name for name, version in facts["packages"].items() if version is None and name != "decord"]
    remark = f"not installed: {', '.join(missing)}; run {INSTALL}" if missing else "all that is needed is installed"
    return Check("packages", not missing, remark)


def _video(facts: dict[str, Any]) -> list[Check]:
    video = facts["video"]
    pyav, decord = video["readers"]["pyav"], video["readers"]["decord"]
    lacking = [codec for codec, there in video["codecs"].items() if not there]
    reading = f"PyAV {pyav}" + (f"; run {INSTALL}" if pyav != WORKS else "")
    if lacking and pyav == WORKS:
        reading += f", but not with {', '.join(lacking)} files"
    second = f"decord {decord}" + ("" if decord == WORKS else "; files that PyAV refuses go into quarantine: python -m pip install decord")
    writing = f"the simulator encodes with {video['h264_encoder']}" if video["h264_encoder"] else (
        "PyAV has no H.264 encoder for the simulator: python -m pip install --force-reinstall av, or give your own clips with --videos")
    return [Check("reading video", pyav == WORKS, reading), Check("second reader", decord == WORKS, second),
            Check("writing video", video["h264_encoder"] is not None, writing)]


def _tiny(facts: dict[str, Any]) -> Check:
    base = facts["tiny_base"]
    lacking = f"{base['folder']} lacks {', '.join(base['missing'])}; make it with python launch/build_tiny_base.py"
    return Check("tiny model", not base["missing"], lacking if base["missing"] else "--model tiny")


def _cpu_adam(facts: dict[str, Any]) -> Check:
    adam = facts["cpu_adam"]
    if adam["lock_held"]:
        return Check("CPU optimizer", True, "another process compiles it now, and every run waits until that is done, about a minute: its lock "
                                            f"is {adam['lock']}")
    if adam["error"]:
        return Check("CPU optimizer", False, f"{adam['error']}; {NO_OFFLOAD}")
    left = f"; a compilation that was cut short left {adam['lock']}, which the next run clears away" if adam["lock"] else ""
    if adam["compiled"]:
        return Check("CPU optimizer", True, "DeepSpeed's cpu_adam is compiled" + (f" ({adam['seconds']} s)" if adam["seconds"] else "") + left)
    if not adam["compatible"]:
        return Check("CPU optimizer", False, f"DeepSpeed says that its cpu_adam does not suit this machine; {NO_OFFLOAD}")
    lacking = [name for name, there in (("a C++ compiler (Debian: apt install g++)", facts["compiler"]),
                                        ("ninja (pip install ninja, and activate the environment)", facts["ninja"])) if not there]
    if lacking:
        return Check("CPU optimizer", False, f"not compiled, and it cannot be without {' and '.join(lacking)}; {NO_OFFLOAD}")
    return Check("CPU optimizer", True, "not compiled yet in this environment: its first run takes about a minute more, or run vlmphys doctor "
                                        "--build" + left)


def _engines(facts: dict[str, Any]) -> list[Check]:
    """What of ds_configs/, FSDP and `tune: qlora` works here."""
    packages, adam = facts["packages"], _cpu_adam(facts)
    able = packages["torch"] is not None and packages["deepspeed"] is not None and not facts["cpu_adam"]["error"]
    on = "on the GPUs, through NCCL" if facts["gpus"] else "on the CPU, through gloo"
    dividing = Check("ZeRO, FSDP", able, on if able else f"torch and deepspeed are needed: {INSTALL}")
    offload = Check("CPU offload", able and adam.works, "as the CPU optimizer")
    aio = facts["aio"]
    ready = able and adam.works and aio["compatible"]
    lacking = aio["error"] or ("libaio's headers are not here (Debian: apt install libaio-dev)" if not aio["compatible"] else adam.remark)
    nvme = Check("NVMe offload", ready, "with libaio; on a disk that is fast enough" if ready else f"{lacking}; or use zero3_offload")
    reasons = [text for text, missing in (("no CUDA GPU", not facts["gpus"]),
                                          ("bitsandbytes is not installed: python -m pip install --editable '.[qlora]'",
                                           facts["bitsandbytes"] is None)) if missing]
    qlora = Check("qlora", not reasons, "; ".join(reasons) if reasons else "with ZeRO-1 and ZeRO-2")
    return [dividing, offload, nvme, qlora]


def _bf16(facts: dict[str, Any]) -> Check:
    if facts["gpus"]:
        able = all(gpu["bf16"] for gpu in facts["gpus"])
        return Check("bf16", able, "on the GPU" if able else "this GPU has no bf16: --set bf16=false")
    fast = facts["cpu"]["avx512_bf16"] or facts["cpu"]["amx_bf16"]
    return Check("bf16", True, "on the CPU" if fast else "on the CPU, without instructions for it: --set bf16=false is usually faster")


def _big_model(facts: dict[str, Any]) -> Check:
    largest = max((gpu["total"] for gpu in facts["gpus"]), default=0)
    if largest >= BIG_MODEL_GIB * GIB:
        return Check("7B model", True, "bash launch/single_4090.sh; `vlmphys plan` says with which settings")
    small = f"the largest card has {largest / GIB:.0f} GiB, LoRA on a 7B model needs about {BIG_MODEL_GIB}"
    return Check("7B model", False, small if largest else "there is no GPU: only small models here, such as --model tiny")


def _disk(facts: dict[str, Any]) -> Check:
    free = facts["free_disk"] / GIB
    return Check("disk", free >= QUICKSTART_DISK_GIB, f"{free:.1f} GiB free in this folder" + (
        "" if free >= QUICKSTART_DISK_GIB else f", the quick start needs about {QUICKSTART_DISK_GIB}: make room or work in another folder"))


def report(build: bool = False) -> dict[str, Any]:
    """Facts, checks and whether the quick start would work."""
    facts = facts_here(build)
    found = checks(facts)
    return {**facts, "checks": [vars(check) for check in found], "quickstart": found[-1].works}
