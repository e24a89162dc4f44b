"""What a calibration is worth on clips that it was not fitted on: `python tests/bench/calibration_halves.py --predictions FILE ...`.

Cuts the clips of each file in two at random, many times: fits on one half, measures on the other.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from vlmphys.calibration import error_by_chance, expected_calibration_error, fit, probabilities
from vlmphys.predictions import read_predictions


def main() -> None:
    """Print, for each file, the expected calibration error before and after and the false positive rate, on the halves not fitted on."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--predictions", type=Path, nargs="+", required=True)
    parser.add_argument("--cuts", type=int, default=200)
    parser.add_argument("--target-fpr", type=float, default=0.05)
    options = parser.parse_args()
    for path in options.predictions:
        table, generator, found = read_predictions(path), np.random.default_rng(0), []
        labels_N = table.labels_N.astype(bool)
        for _ in range(options.cuts):
            one, other = np.array_split(generator.permutation(len(labels_N)), 2)
            calibration, facts = fit(labels_N[one], table.scores_N[one], options.target_fpr)
            before, after = (expected_calibration_error(labels_N[other], probabilities(table.scores_N[other], value))
                             for value in (1, calibration.temperature))
            rate = float((table.scores_N[other][~labels_N[other]] >= calibration.threshold).mean())
            low, high = facts["false_positive_rate"]["interval95"]
            lowest, highest = facts["false_positive_rate_of_as_many_more"]
            found.append((before, after, error_by_chance(probabilities(table.scores_N[other], calibration.temperature)), after < before,
                          after > before, calibration.temperature, rate, low <= rate <= high, lowest <= rate <= highest))
        before, after, chance, fell, rose, temperature, rate, within, as_told = np.mean(found, axis=0)
        print(f"{path}: {len(labels_N)} clips, {options.cuts} cuts: calibration error {before:.4f} before, {after:.4f} after, "
              f"{chance:.4f} by chance alone; fell in {fell:.1%}, rose in {rose:.1%}; "
              f"temperature {temperature:.2f}; false positive rate {rate:.4f} at a target of {options.target_fpr:g}, "
              f"within the fitted half's interval of the true rate in {within:.1%}, of that of as many more clips in {as_told:.1%}")


if __name__ == "__main__":
    main()
