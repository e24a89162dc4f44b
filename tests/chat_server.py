"""A little server of OpenAI's chat protocol for tests: what it answers depends on what it is asked."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

GRADED_LINE = "Text to grade: "


def graded_text(body: dict) -> str:
    """The text that a judge is to grade."""
    line = next(line for line in body["messages"][-1]["content"].splitlines() if line.startswith(GRADED_LINE))
    return json.loads(line.removeprefix(GRADED_LINE))


class ChatStub:
    """Serves on a free port of this machine while inside. `asked` counts the requests for each text; `headers` holds the last one's.

    told: body of a request -> the text that is asked about; answer: (that text, which time it is asked) -> the reply's content, or
    (status, headers, body) for a bare response, or a number of seconds to wait before "{}" (for time-outs).
    """

    def __init__(self, answer: Callable[[str, int], object], told: Callable[[dict], str] = graded_text) -> None:
        self.told, self.answer, self.asked, self.headers, self.bodies = told, answer, Counter(), {}, []
        self.moments: list[float] = []
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                stub.handle(self)

            def log_message(self, *_: object) -> None:
                return None

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None:  # a client that has stopped waiting
                return None

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        self._lock = threading.Lock()

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        body = json.loads(request.rfile.read(int(request.headers["Content-Length"])))
        text = self.told(body)
        with self._lock:
            self.asked[text] += 1
            times = self.asked[text]
            self.moments.append(time.monotonic())
            self.bodies.append(body)
            self.headers = {"path": request.path, **dict(request.headers)}
        answer = self.answer(text, times)
        if isinstance(answer, (int, float)):
            time.sleep(answer)
            answer = "{}"
        if isinstance(answer, tuple):
            status, headers, content = answer
        else:
            status, headers = 200, {}
            content = json.dumps({
                "id": "1", "object": "chat.completion", "model": body["model"] + "-2026-01-01", "system_fingerprint": "fp",
                "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": answer}}],
                "usage": {"prompt_tokens": 50, "completion_tokens": 7, "total_tokens": 57}})
        request.send_response(status)
        for name, value in headers.items():
            request.send_header(name, value)
        payload = content.encode()
        request.send_header("Content-Length", str(len(payload)))
        request.end_headers()
        request.wfile.write(payload)

    def __enter__(self) -> ChatStub:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
