"""How long the SBERT score takes: `python tests/bench/sbert_speed.py [--texts 1000] [--threads 2]`, offline, loading included.

The texts are different from each other: an explanation of the priors followed by a description of the same state.
"""

from __future__ import annotations

import argparse
import os
import sys
import time


def main() -> int:
    """Print the seconds to load and to embed; 1 where both together take longer than --most."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sbert", default="minilm")
    parser.add_argument("--most", type=float, default=60.0, help="seconds")
    arguments = parser.parse_args()
    os.environ.update(HF_HUB_OFFLINE="1", OMP_NUM_THREADS=str(arguments.threads))
    began = time.perf_counter()
    import torch
    from vlmphys.explanations import prior_references
    from vlmphys.priors import known_categories
    from vlmphys.sentences import SentenceEncoder
    torch.set_num_threads(arguments.threads)
    encoder = SentenceEncoder(arguments.sbert, "cpu")
    loaded = time.perf_counter()
    kinds = [prior_references(known_categories(), None, kind) for kind in ("explanations", "descriptions")]
    pairs = [f"{cause} {seen}" for category, states in kinds[0].items() for state, causes in states.items() for cause in causes
             for seen in kinds[1][category][state]]
    texts = list(dict.fromkeys(pairs))[::max(1, len(pairs) // arguments.texts)][:arguments.texts]
    if len(texts) < arguments.texts:
        print(f"only {len(texts)} different texts can be made of the priors")
        return 2
    started, started_cpu = time.perf_counter(), time.process_time()
    vectors = encoder.encode(texts)
    done, used_cpu = time.perf_counter(), time.process_time() - started_cpu
    words = sum(len(text.split()) for text in texts) / len(texts)
    print(f"{encoder.label}: {len(vectors)} texts of {words:.0f} words on {arguments.threads} threads: {loaded - began:.1f} s to import and "
          f"load, {done - started:.1f} s to embed ({used_cpu:.1f} s of CPU time); load average {os.getloadavg()[0]:.1f}")
    return int(loaded - began + done - started > arguments.most)


if __name__ == "__main__":
    sys.exit(main())
