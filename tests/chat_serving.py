"""A real server of the chat protocol for benches, `transformers serve` (pip install 'transformers[serving]'), and a proxy before it that counts."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class CountingProxy:
    """Passes requests on to `url` and counts them by what `told` makes of their bodies; `answered` counts those that came back whole."""

    def __init__(self, url: str, told: Callable[[dict], str]) -> None:
        self.asked, self.answered, self.sent, self.statuses = Counter(), Counter(), {}, Counter()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                text = told(json.loads(body))
                proxy.asked[text] += 1
                proxy.sent = json.loads(body)
                request = urllib.request.Request(url.removesuffix("/v1") + self.path, body, {"Content-Type": "application/json"})
                try:
                    with urllib.request.urlopen(request, timeout=300) as response:
                        status, content = response.status, response.read()
                except urllib.error.HTTPError as error:
                    status, content = error.code, error.read()
                proxy.statuses[status] += 1
                try:
                    self.send_response(status)
                    self.send_header("Content-Length", str(len(content)))
                    self.end_headers()
                    self.wfile.write(content)
                    proxy.answered[text] += status == 200
                except ConnectionError:  # who asked was killed while it waited
                    return

            def log_message(self, *_: object) -> None:
                return None

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@contextmanager
def served(log: Path, port: int) -> Iterator[str]:
    """The address of a server that runs while inside, on this machine's CPU."""
    command, url = "from transformers.cli.transformers import main; main()", f"http://127.0.0.1:{port}/v1"
    with open(log, "wb") as stream:
        server = subprocess.Popen([sys.executable, "-c", command, "serve", "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"],
                                  stdout=stream, stderr=stream)
    try:
        wait_for(url, server, log)
        yield url
    finally:
        server.terminate()
        server.wait(30)


def wait_for(url: str, process: subprocess.Popen, log: Path, seconds: float = 180.0) -> None:
    """Until the server answers anything: `transformers serve` answers /models with 500 where there is no hub cache to list."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/models", timeout=5):
                return
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.5)
    raise SystemExit(f"the server did not come up:\n{log.read_text()[-3000:]}")


def interrupted(command: list[str], repository: Path, proxy: CountingProxy, after: int, number: signal.Signals) -> None:
    """Run until `after` requests were made, then send the signal."""
    process = subprocess.Popen(command, cwd=repository, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while sum(proxy.asked.values()) < after and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(number)
    process.wait()
