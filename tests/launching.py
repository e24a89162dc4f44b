"""Commands as the tests start them, and the rows that they leave."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

from vlmphys.world import free_port


def deepspeed(ranks: int) -> list[str]:
    """What stands between the interpreter and launch/train.py: DeepSpeed's own launcher."""
    return ["-m", "deepspeed.launcher.runner", "--num_gpus", str(ranks), "--master_port", str(free_port())]


def torchrun(ranks: int) -> list[str]:
    """The same with torch's launcher."""
    return ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks), "--master-port", str(free_port())]


def run(repository: Path, arguments: list[str], launcher: list[str] | tuple[str, ...] = ()) -> subprocess.CompletedProcess:
    """Run a Python command from the root of the repository to its end, whatever that is."""
    return subprocess.run([sys.executable, *launcher, *arguments], cwd=repository, capture_output=True, text=True, timeout=1800)


def load_script(path: Path) -> ModuleType:
    """A command's file as a module, so that its `main` runs within this process: starting torch anew for every refusal would take minutes."""
    spec = importlib.util.spec_from_file_location(f"script_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module     # where dataclasses look up the names of their annotations
    spec.loader.exec_module(module)
    return module


def rows_of(out: Path, name: str = "metrics.jsonl") -> list[dict]:
    """The rows of a JSONL file of a run folder."""
    return [json.loads(line) for line in (out / name).read_text().splitlines()]
