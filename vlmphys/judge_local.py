"""A judge on this machine: any chat model of Hugging Face's format, run through transformers, without a server or a key."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import torch
from jinja2 import TemplateError
from transformers import AutoModelForCausalLM, AutoTokenizer

from vlmphys.chat_client import AskError, Reply, Spending
from vlmphys.model import quiet_transformers
from vlmphys.runs import folder_fingerprint


class LocalChat:
    """Answers greedily, one question at a time: no batch changes what another question is answered. Loaded by the first question.

    Raises ValueError for a folder that holds no chat model: config, safetensors, tokenizer and its chat template.
    """

    def __init__(self, folder: Path, spending: Spending, max_tokens: int, device: str | None = None) -> None:
        self.folder = Path(folder).expanduser()
        if not (self.folder / "config.json").is_file():
            raise ValueError(f"--judge local:{folder}: no Hugging Face model there (config.json is missing): give the folder of a chat model")
        self.spending, self.max_tokens = spending, max_tokens
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.label = f"local:{self.folder.absolute().name}@{folder_fingerprint(self.folder)[:12]}"
        self._network = self._tokenizer = None
        self._lock = threading.Lock()

    def _load(self) -> None:
        try:
            tokenizer = AutoTokenizer.from_pretrained(self.folder, trust_remote_code=False)
            with quiet_transformers():
                network = AutoModelForCausalLM.from_pretrained(self.folder, trust_remote_code=False, use_safetensors=True, dtype="auto")
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"--judge local:{self.folder}: it cannot be loaded ({str(error).splitlines()[0]}): give the folder of a chat "
                             "model with model.safetensors") from error
        if not tokenizer.chat_template:
            raise ValueError(f"--judge local:{self.folder}: its tokenizer has no chat template: give a model that was made for chats")
        self._tokenizer, self._network = tokenizer, network.to(self.device).eval()

    def ask(self, messages: Sequence[dict[str, str]]) -> Reply:
        """One answer. Raises AskError where the question does not fit into the model's positions or its template refuses the chat."""
        self.spending.take_request()
        with self._lock:
            if self._network is None:
                self._load()
            return self._answer(messages)

    @torch.inference_mode()
    def _answer(self, messages: Sequence[dict[str, str]]) -> Reply:
        tokenizer, network = self._tokenizer, self._network
        try:
            ids = tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, return_tensors="pt", return_dict=True)
        except TemplateError as error:
            raise AskError("chat template", f"the chat template refuses the question: {error}") from error
        length = ids["input_ids"].shape[1]
        positions = getattr(network.config, "max_position_embeddings", None)
        if positions is not None and length + self.max_tokens > positions:
            raise AskError("question too long", f"{length} tokens and {self.max_tokens} of a reply are more than {positions} positions")
        padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        output = network.generate(**ids.to(self.device), do_sample=False, num_beams=1, max_new_tokens=self.max_tokens,
                                  temperature=None, top_p=None, top_k=None, pad_token_id=padding)
        reply = output[0, length:]
        self.spending.add_tokens(length, len(reply))
        ended = len(reply) < self.max_tokens or int(reply[-1]) == tokenizer.eos_token_id
        return Reply(tokenizer.decode(reply, skip_special_tokens=True), self.label, length, len(reply), "stop" if ended else "length")
