"""The judge against a real server of the chat protocol: `python tests/bench/judge_server.py [--items 200] [--url URL --model NAME]`.

Without --url it starts `transformers serve` (pip install 'transformers[serving]') with a little chat model made here that replies with the same
grades to everything. It shows that every item is asked once and answered, that a run killed in the middle (SIGKILL, then SIGTERM) loses nothing and
asks nothing that is answered again, and what it costs. Between the judge and the server stands a proxy that counts.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tests")]

from chat_serving import CountingProxy, add_server_arguments, resumed, with_server  # noqa: E402


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
    add_server_arguments(parser, 8917, 48)
    return with_server(parser, measure, taught_model)


def taught_model(folder: Path) -> Path:
    """A chat model that gives one and the same grade."""
    from chat_model import build_chat_model
    return build_chat_model(folder, taught=True)


def measure(arguments: argparse.Namespace, folder: Path, url: str, model: str) -> int:
    """Killed, stopped, finished, and once more from the file of replies."""
    proxy, predictions, out = CountingProxy(url, graded), folder / "predictions.jsonl", folder / "scores"
    write_predictions(predictions, arguments.items)
    command = [sys.executable, "launch/score.py", "--predictions", str(predictions), "--out", str(out), "--judge", "openai", "--judge-url",
               proxy.url, "--judge-model", model, "--judge-max-tokens", str(arguments.max_tokens), "--judge-concurrency", str(arguments.concurrency)]
    found = resumed(command, proxy, out / "judge.jsonl", arguments.items)
    if found.done.returncode or found.again.returncode:
        print(found.done.stdout + found.done.stderr + found.again.stderr)
        return 1
    judge = json.loads((out / "scores.json").read_text())["texts"]["llm"]["judge"]
    print(f"{arguments.items} items, {len(proxy.asked)} different texts asked, {found.requests} requests in {found.seconds:.1f} s with two restarts; "
          f"statuses {dict(proxy.statuses)}")
    print(f"replies kept {len(found.rows)}, different {len({row['key'] for row in found.rows})}; asked twice {found.twice} (in flight at SIGKILL; at "
          f"most {arguments.concurrency}), of them answered twice {found.known}; scoring again: {found.repeated} requests")
    print(f"model {judge['reply_models']}; read as grades {judge['n_texts'] - judge['n_failed']}, errors {judge['failures']}; tokens "
          f"{judge['prompt_tokens']} in, {judge['reply_tokens']} out")
    for name, run in (("estimate", found.done), ("again", found.again)):
        print(f"{name}: " + next((line for line in run.stdout.splitlines() if line.startswith("judge ")), "none"))
    return int(not found.whole(proxy, arguments.concurrency) or len(proxy.asked) != arguments.items)


if __name__ == "__main__":
    sys.exit(main())
