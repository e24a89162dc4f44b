"""A real server of the chat protocol for benches, `transformers serve` (pip install 'transformers[serving]'), a proxy before it that counts,
and the run that is killed, stopped, finished and repeated through it."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
# A run is interrupted when this share of its requests was made.
INTERRUPTIONS = ((0.3, signal.SIGKILL), (0.6, signal.SIGTERM))


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


def interrupted(command: list[str], proxy: CountingProxy, after: int, number: signal.Signals) -> None:
    """Run until `after` requests were made, then send the signal."""
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while sum(proxy.asked.values()) < after and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(number)
    process.wait()


@dataclass(frozen=True)
class Resumed:
    """What became of a command that was interrupted, finished, and run once more: `requests` until it was finished, `repeated` by the last run,
    `rows` of the file of replies, `twice` and `known`: requests for what was asked, and answered, before."""

    done: subprocess.CompletedProcess
    again: subprocess.CompletedProcess
    requests: int
    repeated: int
    rows: list[dict]
    twice: int
    known: int
    seconds: float

    def whole(self, proxy: CountingProxy, at_a_time: int) -> bool:
        """Whether every text that was asked has one reply, and nothing was asked again but what was in flight at the kill."""
        return len({row["key"] for row in self.rows}) == len(self.rows) == len(proxy.asked) and self.twice <= at_a_time and not self.repeated


def resumed(command: list[str], proxy: CountingProxy, journal: Path, wanted: int) -> Resumed:
    """Kill a command, stop it, let it finish, and run it once more; `wanted`: the requests that it makes when it is left alone."""
    began = time.perf_counter()
    for share, number in INTERRUPTIONS:
        interrupted(command, proxy, int(share * wanted), number)
        print(f"{number.name} after {sum(proxy.asked.values())} requests: {len(journal.read_bytes().splitlines())} replies kept", flush=True)
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    seconds, requests = time.perf_counter() - began, sum(proxy.asked.values())
    again = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    return Resumed(done, again, requests, sum(proxy.asked.values()) - requests, [json.loads(line) for line in journal.read_text().splitlines()],
                   sum(count - 1 for count in proxy.asked.values()), sum(count - 1 for count in proxy.answered.values() if count), seconds)


def add_server_arguments(parser: argparse.ArgumentParser, port: int, max_tokens: int) -> None:
    """The flags that the benches of a real server share."""
    parser.add_argument("--url", help="of a server that runs already; --model too then")
    parser.add_argument("--model", help="its model's name")
    parser.add_argument("--port", type=int, default=port, help="of the server that is started here")
    parser.add_argument("--max-tokens", type=int, default=max_tokens)
    parser.add_argument("--concurrency", type=int, default=4)


def with_server(parser: argparse.ArgumentParser, measure: Callable[[argparse.Namespace, Path, str, str], int],
                build: Callable[[Path], Path]) -> int:
    """What `measure(arguments, scratch folder, address, model)` returns, with the server of --url, or with one that is started here for the chat
    model that `build` puts into a folder."""
    arguments = parser.parse_args()
    if (arguments.url is None) != (arguments.model is None):
        parser.error("--url and --model belong together: give both, or neither")
    os.environ.update(HF_HUB_OFFLINE="1", PYTHONPATH=os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")]), OMP_NUM_THREADS="1")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if arguments.url is not None:
            return measure(arguments, folder, arguments.url, arguments.model)
        model = build(folder / "chat")
        with served(folder / "server.log", arguments.port) as url:
            return measure(arguments, folder, url, str(model))
