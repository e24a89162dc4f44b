"""A chat over HTTP in the protocol of OpenAI's API, which DeepSeek, vLLM, Ollama, llama.cpp and `transformers serve` speak too.

One request at a time and thread; tries again with back-off where another try can help. The key goes into one header and nowhere else:
redirects are not followed, and whatever a server says is shown without it.
"""

from __future__ import annotations

import http.client
import ipaddress
import json
import math
import os
import random
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import SplitResult, urlsplit

URL_VARIABLE, MODEL_VARIABLE, KEY_VARIABLE = "OPENAI_BASE_URL", "OPENAI_MODEL", "OPENAI_API_KEY"
TRIED_AGAIN = (408, 409, 425, 429, 500, 502, 503, 504, 529)
# What no other item will be answered with success after: key, address or model are wrong.
HOPELESS = {401: "the key is refused: set {key} to a valid one", 403: "the key may not use this model: give another {model} or key",
            404: "no such address or model: check {url} (it ends in /v1 as a rule) and {model}",
            402: "the account has no credit left"}
LONGEST_PAUSE_SECONDS = 60.0
LARGEST_REPLY_BYTES = 4 << 20
URL_SIGNS = re.compile(r"[!-~]+")        # an address holds no space and nothing beyond ASCII
SHOWN = 200  # characters of a server's own message


@dataclass(frozen=True)
class Names:
    """How messages name the one who is asked, and the flags of the command that asks."""

    who: str = "the server"
    url: str = "--api-base"
    model: str = "--model"
    key: str = "--key-env"
    cache: str = "--cache"
    budget: str = "--max-requests"


@dataclass(frozen=True)
class Reply:
    """One answer: its text, the model that the server says it used, and the tokens that the server counted (0 where it does not)."""

    text: str
    model: str | None = None
    prompt_tokens: int = 0
    reply_tokens: int = 0
    finish: str | None = None
    fingerprint: str | None = None


class AskError(Exception):
    """One question without an answer after all tries, or one that the server refuses; `kind` is what failures are counted by."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class BudgetSpent(Exception):
    """The next request would go beyond the budget."""


class Spending:
    """Requests and tokens so far against a budget, for all threads at once; None: no limit."""

    def __init__(self, requests: int | None = None, tokens: int | None = None) -> None:
        self.most_requests, self.most_tokens = requests, tokens
        self.requests = self.prompt_tokens = self.reply_tokens = 0
        self._lock = threading.Lock()

    def take_request(self) -> None:
        """Count one request before it is sent. Raises BudgetSpent where it would be one too many, or the tokens are used up."""
        with self._lock:
            if self.most_requests is not None and self.requests >= self.most_requests:
                raise BudgetSpent(f"the budget of {self.most_requests} requests is spent")
            if self.most_tokens is not None and self.prompt_tokens + self.reply_tokens >= self.most_tokens:
                raise BudgetSpent(f"the budget of {self.most_tokens} tokens is spent")
            self.requests += 1

    def add_tokens(self, prompt: int, reply: int) -> None:
        """Count the tokens of one answer."""
        with self._lock:
            self.prompt_tokens += prompt
            self.reply_tokens += reply


@dataclass(frozen=True)
class ServerSettings:
    """How to reach a server. `key` never appears in a repr."""

    base_url: str
    model: str
    key: str | None = field(default=None, repr=False)
    key_variable: str = KEY_VARIABLE
    timeout_seconds: float = 120.0
    tries: int = 5
    backoff_seconds: float = 1.0
    requests_per_minute: float | None = None
    max_tokens: int = 256
    json_mode: bool = False
    names: Names = Names()

    def __post_init__(self) -> None:
        parts = _parts_of(self.base_url)
        if parts is None:
            raise ValueError(f"{self.names.url}: an address such as https://api.deepseek.com/v1 or http://localhost:8000/v1 is needed: a host, a "
                             "port from 1 to 65535 where there is one, no space (what was given is not shown: it may hold a key)")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError(f"{self.names.url} holds a user, a password, a query or a fragment, and addresses are written into the results: "
                             f"give the address alone, and the key in the environment as {self.key_variable}")
        if not self.model:
            raise ValueError(f"{self.names.who} needs a model: give {self.names.model}, or set {MODEL_VARIABLE}")
        rate = 1.0 if self.requests_per_minute is None else self.requests_per_minute
        if not (0 < self.timeout_seconds < math.inf and 0 < rate < math.inf) or self.tries < 1 or self.max_tokens < 1:
            raise ValueError(f"{self.names.who}'s time-out, tries, tokens a reply and requests a minute must be above 0")
        if self.key is not None and (not self.key.isascii() or not self.key.isprintable() or " " in self.key):
            raise ValueError(f"{self.key_variable} holds a space, a line break or a sign beyond ASCII: set it to the key alone")

    @property
    def local(self) -> bool:
        """Whether the server runs on this machine."""
        host = urlsplit(self.base_url).hostname or ""
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return host == "localhost"


def server_from(url: str | None, model: str | None, key_variable: str | None = None, names: Names = Names(), **settings: object) -> ServerSettings:
    """Settings from flags, and from the environment where a flag is not given. Raises ValueError where address or model are in neither."""
    url = url or os.environ.get(URL_VARIABLE)
    if not url:
        raise ValueError(f"{names.who} needs an address: give {names.url}, or set {URL_VARIABLE}")
    name = key_variable or KEY_VARIABLE
    key = (os.environ.get(name) or "").strip() or None
    if key_variable and key is None:
        raise ValueError(f"{names.key} {key_variable}: no such variable in the environment, or it is empty: set it to the key")
    return ServerSettings(url.rstrip("/"), model or os.environ.get(MODEL_VARIABLE, ""), key, name, names=names, **settings)


def _parts_of(url: str) -> SplitResult | None:
    """The parts of an address that can be asked; None for any other."""
    try:
        parts = urlsplit(url)
        fits = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and URL_SIGNS.fullmatch(url)
    except ValueError:      # brackets without an address between them, or a port that is none
        return None
    return parts if fits else None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key to another address: it is an error as any other status."""

    def redirect_request(self, *_):
        return None


class ChatServer:
    """Asks one server. `stopping` is set from outside and ends pauses and further tries at once."""

    def __init__(self, settings: ServerSettings, spending: Spending, stopping: threading.Event | None = None) -> None:
        self.settings, self.spending = settings, spending
        self.stopping = stopping or threading.Event()
        handlers: list = [_NoRedirect()]
        if settings.local:
            handlers.append(urllib.request.ProxyHandler({}))  # a proxy of the environment cannot reach this machine's own server
        self._opener = urllib.request.build_opener(*handlers)
        self._lock = threading.Lock()
        self._next_turn = 0.0

    def ask(self, messages: Sequence[dict[str, str]]) -> Reply:
        """One answer at temperature 0. Raises AskError for this question, ValueError where no other can succeed, BudgetSpent."""
        settings = self.settings
        body = {"model": settings.model, "messages": list(messages), "temperature": 0, "max_tokens": settings.max_tokens, "stream": False}
        if settings.json_mode:
            body["response_format"] = {"type": "json_object"}
        for attempt in range(settings.tries):
            self._wait_turn()
            self.spending.take_request()
            try:
                return self._read(self._send(json.dumps(body).encode()))
            except urllib.error.HTTPError as error:
                with error:
                    said = self._said(error)
                if error.code in HOPELESS:
                    cure = HOPELESS[error.code].format(key=settings.key_variable, url=settings.names.url, model=settings.names.model)
                    raise ValueError(f"{settings.names.who} at {settings.base_url} answers {error.code}: {cure} ({said})") from None
                failed = AskError(f"HTTP {error.code}", f"HTTP {error.code}: {said}")
                if error.code not in TRIED_AGAIN:
                    raise failed from None
                pause = _retry_after(error.headers.get("Retry-After"))
            except (OSError, http.client.HTTPException) as error:
                cause = getattr(error, "reason", error)
                kind = "time-out" if isinstance(cause, TimeoutError) else "no connection"
                failed, pause = AskError(kind, f"{kind}: {self._clean(str(cause) or type(cause).__name__)}"), None
            if attempt + 1 < settings.tries:
                self._pause(pause if pause is not None else settings.backoff_seconds * 2 ** attempt * random.uniform(0.75, 1.25), failed)
        raise failed

    def _send(self, body: bytes) -> bytes:
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "vlmphys"}
        request = urllib.request.Request(f"{self.settings.base_url}/chat/completions", body, headers)
        if self.settings.key:
            request.add_unredirected_header("Authorization", f"Bearer {self.settings.key}")
        with self._opener.open(request, timeout=self.settings.timeout_seconds) as response:
            return response.read(LARGEST_REPLY_BYTES)

    def _read(self, body: bytes) -> Reply:
        """The answer in a response. Raises AskError for a body that is not of this protocol."""
        try:
            value = json.loads(body)
            choice = value["choices"][0]
            text = choice["message"].get("content")
            usage = value.get("usage") or {}
            tokens = [int(usage.get(key) or 0) for key in ("prompt_tokens", "completion_tokens")]
        except (ValueError, OverflowError, RecursionError, KeyError, IndexError, TypeError, AttributeError):
            raise AskError("no chat completion", f"no chat completion: {self._clean(body.decode(errors='replace'))!r}") from None
        if text is not None and not isinstance(text, str):
            raise AskError("no chat completion", "no chat completion: its content is no text")
        self.spending.add_tokens(*tokens)
        named = [self._unkeyed(found) if isinstance(found, str) else None
                 for found in (value.get("model"), choice.get("finish_reason"), value.get("system_fingerprint"))]
        return Reply(self._unkeyed(text or ""), named[0], *tokens, *named[1:])

    def _wait_turn(self) -> None:
        """Hold the rate: each request gets a time of its own."""
        if self.settings.requests_per_minute is None:
            return
        with self._lock:
            turn = max(time.monotonic(), self._next_turn)
            self._next_turn = turn + 60 / self.settings.requests_per_minute
        self._pause(turn - time.monotonic(), AskError("stopped", "stopped"))

    def _pause(self, seconds: float, failed: AskError) -> None:
        if self.stopping.wait(min(max(seconds, 0), LONGEST_PAUSE_SECONDS)):
            raise AskError("stopped", "stopped") from failed

    def _said(self, error: urllib.error.HTTPError) -> str:
        """A server's own words about an error."""
        try:
            return self._clean(error.read(LARGEST_REPLY_BYTES).decode(errors="replace"))
        except (OSError, http.client.HTTPException):
            return "no text"

    def _unkeyed(self, text: str) -> str:
        return text.replace(self.settings.key, "[key]") if self.settings.key else text

    def _clean(self, text: str) -> str:
        return self._unkeyed(" ".join(text.split()))[:SHOWN] or "no text"


def _retry_after(value: str | None) -> float | None:
    """Seconds that a server asks to wait; None where it gives none, or a date."""
    try:
        return max(0.0, float(value)) if value is not None else None
    except ValueError:
        return None
