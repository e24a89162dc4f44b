"""A category of the user's own, a folder of clips and one YAML file, through every stage; the file is the example of data_prep/README.md."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from clip_files import make_videos

pytestmark = pytest.mark.integration


def command(repository: Path, *words: object, status: int = 0) -> str:
    done = subprocess.run([sys.executable, *map(str, words)], cwd=repository, capture_output=True, text=True, env={**os.environ, "COLUMNS": "200"})
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_split_pack_train_predict_and_score(repository, tmp_path):
    (example,) = re.findall(r"```yaml\n# my_priors/latch\.yaml\n(.*?)```", (repository / "data_prep/README.md").read_text(), re.DOTALL)
    priors = tmp_path / "my_priors"
    priors.mkdir()
    (priors / "latch.yaml").write_text(example)
    videos = make_videos(tmp_path / "videos", {"latch": ("slow",)}, clips=4)
    split, packed, run, predictions = (tmp_path / name for name in ("split.json", "packed", "run", "predictions.jsonl"))
    command(repository, "data_prep/split.py", "--videos", videos, "--out", split, "--protocol", "weak", "--per-anomaly", 2)
    pack = ("data_prep/pack.py", "--videos", videos, "--split", split, "--model", "tiny", "--out", packed)
    assert "no prior for the category 'latch'" in command(repository, *pack, status=2) and not packed.exists()
    command(repository, *pack, "--priors", priors)
    assert "all is as it should be" in command(repository, "data_prep/verify.py", "--data", packed, "--priors", priors)
    command(repository, "launch/train.py", "--config", "launch/recipes/quickstart.yaml", "--data", packed, "--out", run,
            "--set", "engine=plain", "deepspeed=null", "max_steps=2", "per_device_train_batch_size=2")
    command(repository, "launch/predict.py", "--run", run, "--data", packed, "--split", "test", "--max-new-tokens", 4, "--out", predictions)
    rows = [json.loads(line) for line in predictions.read_text().splitlines()]
    assert sorted(row["clip_id"] for row in rows) == sorted(
        [f"latch/test/anomaly_free/{number:04d}" for number in range(4)]
        + [clip_id for clip_id, side in json.loads(split.read_text())["clips"].items() if "/slow/" in clip_id and side == "test"])
    assert rows[0]["answers"][0] == "A latch has a hook, a spring and a button."
    command(repository, "launch/score.py", "--predictions", predictions, "--data", packed, "--priors", priors, "--out", tmp_path / "scores")
    assert json.loads((tmp_path / "scores/scores.json").read_text())["per_category"]["latch"]["n"] == 6
