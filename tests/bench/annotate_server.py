"""The drafting of texts against a real server of the chat protocol: `python tests/bench/annotate_server.py [--states 4] [--url URL --model NAME]`.

Without --url it starts `transformers serve` (pip install 'transformers[serving]') with a little chat model made here that replies with the same
anomalous draft to everything: taken once, it is a copy for each other anomaly, and a wrong verdict for the normal state. It shows that a run killed
twice in the middle (SIGKILL, then SIGTERM) loses nothing, asks nothing that is answered again, and ends with the same file, to the byte, as a run
that was left alone. With a model that can write, --url and --model say how many of its drafts are taken. A proxy counts the requests.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tests")]

from chat_serving import CountingProxy, add_server_arguments, resumed, with_server  # noqa: E402
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
                chat += [{"role": "assistant", "content": ANSWER},
                         {"role": "user", "content": draft_again(0, [("The hook comes back late.", "copy")], 5)}]
            chats.append(chat)
    return chats


def main() -> int:
    """Print what was found; 1 where a reply was lost or asked for again, or the files differ."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--states", type=int, default=4, help=f"anomalies, at most {len(STATES)}")
    add_server_arguments(parser, 8918, 96)
    parser.add_argument("--rounds", type=int, default=3)
    return with_server(parser, measure, taught_model)


def taught_model(folder: Path) -> Path:
    """A chat model that gives ANSWER."""
    from chat_model import build_chat_model
    return build_chat_model(folder, taught=True, answer=ANSWER, chats=taught_chats())


def measure(arguments: argparse.Namespace, folder: Path, url: str, model: str) -> int:
    """Left alone; then killed, stopped, finished, and once more from the file of replies."""
    (folder / "latch.yaml").write_text(OUTLINE)
    states = STATES[:arguments.states]

    def command(proxy: CountingProxy, out: str) -> list[str]:
        return [sys.executable, "data_prep/annotate.py", "--prior", str(folder / "latch.yaml"), "--states", ",".join(states),
                "--out", str(folder / out), "--api-base", proxy.url, "--model", model, "--max-tokens", str(arguments.max_tokens),
                "--concurrency", str(arguments.concurrency),
                "--rounds", str(arguments.rounds)]

    def told(body: dict) -> str:
        return json.dumps(body["messages"])
    alone, proxy = CountingProxy(url, told), CountingProxy(url, told)
    began = time.perf_counter()
    first = subprocess.run(command(alone, "alone"), cwd=REPOSITORY, capture_output=True, text=True, check=False)
    wanted, seconds = sum(alone.asked.values()), time.perf_counter() - began
    print(first.stdout + first.stderr)
    print(f"left alone: {wanted} requests in {seconds:.1f} s, status {first.returncode}, statuses {dict(alone.statuses)}")
    found = resumed(command(proxy, "killed"), proxy, folder / "killed/latch.drafts.jsonl", wanted)
    files = [folder / out / "latch.yaml" for out in ("alone", "killed")]
    same = files[0].exists() and files[1].exists() and files[0].read_bytes() == files[1].read_bytes()
    print(f"with two restarts: {found.requests} requests, {len(proxy.asked)} different; asked twice {found.twice} (in flight at SIGKILL; at most "
          f"{arguments.concurrency}); replies kept {len(found.rows)}, different {len({row['key'] for row in found.rows})}; once more: "
          f"{found.repeated} requests, status {found.again.returncode}")
    print(f"the file is the same to the byte as the one of the run left alone: {same}")
    ended_alike = found.done.returncode == found.again.returncode == first.returncode
    return int(not same or not ended_alike or not found.whole(proxy, arguments.concurrency))


if __name__ == "__main__":
    sys.exit(main())
