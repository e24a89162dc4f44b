"""The drafting of texts against a real server of the chat protocol: `python tests/bench/annotate_server.py [--states 4] [--url URL --model NAME]`.

Without --url it starts `transformers serve` (pip install 'transformers[serving]') with a little chat model made here that has learnt to
reply with the same anomalous draft to everything: taken once, it is a copy for each other anomaly and a wrong verdict for the normal state. What is shown:
a run killed twice in the middle (SIGKILL, then SIGTERM) loses nothing, asks nothing that is answered again, and ends with the same file, to the byte,
as a run that was left alone. With a model that can write, --url and --model say how many of its drafts are taken. A proxy counts.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tests")]

from chat_serving import CountingProxy, interrupted, served  # noqa: E402
from draft_server import OUTLINE  # noqa: E402

ANSWER = json.dumps({"texts": [{"verdict": "Anomalous", "text": "The hook comes back late."}]})
STATES = ("slow", "stuck", "weak_spring", "bent_hook", "loose_button", "dirty", "no_return", "double_catch", "jam", "crack")


def taught_chats() -> list[list[dict[str, str]]]:
    """What is asked about every state of the priors that ship, first requests and those after a refusal."""
    from vlmphys.draft_checks import LEAST_WORDS, MOST_WORDS
    from vlmphys.priors import KINDS, known_categories, load_priors
    from vlmphys.prompts import draft_again, draft_messages
    chats = []
    for number, prior in enumerate(load_priors(known_categories()).values()):
        for state in prior.states:
            kind = KINDS[len(chats) % 2]
            chat = draft_messages(prior, list(prior.states), state, kind, "", (), 5, (LEAST_WORDS, MOST_WORDS))
            if number % 2:
                chat += [{"role": "assistant", "content": ANSWER}, {"role": "user", "content": draft_again(0, [("The hook comes back late.", "copy")], 5)}]
            chats.append(chat)
    return chats


def main() -> int:
    """Print what was found; 1 where a reply was lost or asked for again, or the files differ."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--states", type=int, default=4, help=f"anomalies, at most {len(STATES)}")
    parser.add_argument("--url", help="of a server that runs already")
    parser.add_argument("--model", help="its model's name")
    parser.add_argument("--port", type=int, default=8918)
    parser.add_argument("--max-tokens", type=int, default=96)
    parser.add_argument("--concurrency", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    os.environ.update(HF_HUB_OFFLINE="1", PYTHONPATH=os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")]), OMP_NUM_THREADS="1")
    with tempfile.TemporaryDirectory() as folder:
        if arguments.url is not None:
            return measure(arguments, Path(folder), arguments.url, arguments.model)
        from chat_model import build_chat_model
        model = build_chat_model(Path(folder) / "chat", taught=True, answer=ANSWER, chats=taught_chats())
        with served(Path(folder) / "server.log", arguments.port) as url:
            return measure(arguments, Path(folder), url, str(model))


def measure(arguments: argparse.Namespace, folder: Path, url: str, model: str) -> int:
    """Left alone; then killed, stopped, finished, and once more from the file of replies."""
    (folder / "latch.yaml").write_text(OUTLINE)
    states = STATES[:arguments.states]

    def command(proxy: CountingProxy, out: str) -> list[str]:
        return [sys.executable, "data_prep/annotate.py", "--prior", str(folder / "latch.yaml"), "--states", ",".join(states), "--out", str(folder / out),
                "--api-base", proxy.url, "--model", model, "--max-tokens", str(arguments.max_tokens), "--concurrency", str(arguments.concurrency),
                "--rounds", str(arguments.rounds)]

    def told(body: dict) -> str:
        return json.dumps(body["messages"])
    alone, proxy = CountingProxy(url, told), CountingProxy(url, told)
    began = time.perf_counter()
    first = subprocess.run(command(alone, "alone"), cwd=REPOSITORY, capture_output=True, text=True, check=False)
    wanted, seconds = sum(alone.asked.values()), time.perf_counter() - began
    print(first.stdout + first.stderr)
    print(f"left alone: {wanted} requests in {seconds:.1f} s, status {first.returncode}, statuses {dict(alone.statuses)}")
    journal = folder / "killed/latch.drafts.jsonl"
    for share, number in ((0.3, signal.SIGKILL), (0.6, signal.SIGTERM)):
        interrupted(command(proxy, "killed"), REPOSITORY, proxy, int(share * wanted), number)
        print(f"{number.name} after {sum(proxy.asked.values())} requests: {len(journal.read_bytes().splitlines())} replies kept", flush=True)
    done = subprocess.run(command(proxy, "killed"), cwd=REPOSITORY, capture_output=True, text=True, check=False)
    requests = sum(proxy.asked.values())
    again = subprocess.run(command(proxy, "killed"), cwd=REPOSITORY, capture_output=True, text=True, check=False)
    rows = [json.loads(line) for line in journal.read_text().splitlines()]
    twice = sum(count - 1 for count in proxy.asked.values())
    files = [folder / out / "latch.yaml" for out in ("alone", "killed")]
    same = files[0].exists() and files[1].exists() and files[0].read_bytes() == files[1].read_bytes()
    print(f"with two restarts: {requests} requests, {len(proxy.asked)} different; asked twice {twice} (in flight at SIGKILL; at most "
          f"{arguments.concurrency}); replies kept {len(rows)}, different {len({row['key'] for row in rows})}; once more: "
          f"{sum(proxy.asked.values()) - requests} requests, status {again.returncode}")
    print(f"the file is the same to the byte as the one of the run left alone: {same}")
    whole = len({row["key"] for row in rows}) == len(rows) == len(proxy.asked) and done.returncode == again.returncode == first.returncode
    return int(not whole or not same or twice > arguments.concurrency or sum(proxy.asked.values()) != requests)


if __name__ == "__main__":
    sys.exit(main())
