"""The judge against a real server of the chat protocol: `python tests/bench/judge_server.py [--items 200] [--url URL --model NAME]`.

Without --url it starts `transformers serve` (pip install 'transformers[serving]') with a little chat model made here that
replies with the same grades to everything: what is shown is that every item is asked once and answered, that a run killed in the middle (SIGKILL, then SIGTERM)
loses nothing and asks nothing that is answered again, and what it costs. Between the judge and the server stands a proxy that counts.
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


def graded(body: dict) -> str:
    """The text that is to be graded, as it stands in the question."""
    return body["messages"][-1]["content"].partition("Text to grade: ")[2].splitlines()[0]


def write_predictions(path: Path, items: int) -> None:
    """Items with texts that all differ: a reference explanation, followed by the number of its clip."""
    from vlmphys.priors import load_priors
    states = [(category, state, texts) for category, prior in load_priors(["fan", "gear", "hinge"]).items() for state, texts in prior.states.items()]
    with open(path, "w") as stream:
        for number in range(items):
            category, state, texts = states[number % len(states)]
            stream.write(json.dumps({
                "clip_id": f"{category}/test/{state}/{number:04d}", "label": int(state != "anomaly_free"), "score": number,
                "explanation": f"{texts.explanations[number % len(texts.explanations)]} Seen in clip {number}."}) + "\n")


def main() -> int:
    """Print what was found; 1 where an item was lost, or asked again though it was answered."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=200)
    parser.add_argument("--url", help="of a server that runs already")
    parser.add_argument("--model", help="its model's name")
    parser.add_argument("--port", type=int, default=8917)
    parser.add_argument("--max-tokens", type=int, default=48)
    parser.add_argument("--concurrency", type=int, default=4)
    arguments = parser.parse_args()
    os.environ.update(HF_HUB_OFFLINE="1", PYTHONPATH=os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")]), OMP_NUM_THREADS="1")
    with tempfile.TemporaryDirectory() as folder:
        if arguments.url is not None:
            return measure(arguments, Path(folder), arguments.url, arguments.model)
        from chat_model import build_chat_model
        model = build_chat_model(Path(folder) / "chat", taught=True)
        with served(Path(folder) / "server.log", arguments.port) as url:
            return measure(arguments, Path(folder), url, str(model))


def measure(arguments: argparse.Namespace, folder: Path, url: str, model: str) -> int:
    """Killed, stopped, finished, and once more from the file of replies."""
    proxy, predictions, out = CountingProxy(url, graded), folder / "predictions.jsonl", folder / "scores"
    write_predictions(predictions, arguments.items)
    command = [sys.executable, "launch/score.py", "--predictions", str(predictions), "--out", str(out), "--judge", "openai", "--judge-url",
               proxy.url, "--judge-model", model, "--judge-max-tokens", str(arguments.max_tokens), "--judge-concurrency", str(arguments.concurrency)]
    journal = out / "judge.jsonl"
    began = time.perf_counter()
    kept = []
    for share, number in ((0.3, signal.SIGKILL), (0.6, signal.SIGTERM)):
        interrupted(command, REPOSITORY, proxy, int(share * arguments.items), number)
        kept.append(len(journal.read_bytes().splitlines()))
        print(f"{number.name} after {sum(proxy.asked.values())} requests: {kept[-1]} replies kept", flush=True)
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - began
    if done.returncode:
        print(done.stdout + done.stderr)
        return 1
    requests = sum(proxy.asked.values())
    again = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    judge = json.loads((out / "scores.json").read_text())["texts"]["llm"]["judge"]
    rows = [json.loads(line) for line in journal.read_text().splitlines()]
    twice = sum(count - 1 for count in proxy.asked.values())
    known = sum(count - 1 for count in proxy.answered.values() if count)
    print(f"{arguments.items} items, {len(proxy.asked)} different texts asked, {requests} requests in {seconds:.1f} s with two restarts; "
          f"statuses {dict(proxy.statuses)}")
    print(f"replies kept {len(rows)}, different {len({row['key'] for row in rows})}; asked twice {twice} (in flight at SIGKILL; at most "
          f"{arguments.concurrency}), of them answered twice {known}; scoring again: {sum(proxy.asked.values()) - requests} requests")
    print(f"model {judge['reply_models']}; read as grades {judge['n_texts'] - judge['n_failed']}, errors {judge['failures']}; tokens "
          f"{judge['prompt_tokens']} in, {judge['reply_tokens']} out")
    print("estimate: " + next((line for line in done.stdout.splitlines() if line.startswith("judge ")), "none"))
    print("again:    " + next((line for line in again.stdout.splitlines() if line.startswith("judge ")), "none"))
    whole = len({row["key"] for row in rows}) == len(rows) == arguments.items == len(proxy.asked)
    return int(not whole or twice > arguments.concurrency or sum(proxy.asked.values()) != requests)


if __name__ == "__main__":
    sys.exit(main())
