"""From scores of val clips to a temperature and a threshold, and the file that keeps them in the run folder. No torch.

probability = 1 / (1 + exp(-score / temperature)); a clip is anomalous from score >= threshold. Scores themselves are never changed. The two are
fitted apart: a probability says how likely an anomaly is, a threshold which mistakes one can bear, so that the verdict changes at
`anomalous_from`, the probability of the threshold, which is 0.5 only where nothing was fitted.
Shape suffix: N clips.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vlmphys.files import json_bytes, read_json, write_atomic
from vlmphys.predictions import UNCALIBRATED, Calibration, Predictions
from vlmphys.records import counted

CALIBRATION = "calibration.json"
VERSION = 1
BINS = 10                       # of the expected calibration error, of equal width
FEW_CLIPS = 30                  # of a class: below it the fit is called rough
TEMPERATURES = (1e-2, 1e3)      # what a fit may answer
DRAWS = 200                     # of labels, for what chance alone does to a calibration error
LEANING = 2.58                  # standard deviations: the 99th percentile of a normal distribution, both sides
SURE_GAIN = 1.92                # in log-likelihood: half of chi-square's 95th percentile with one degree of freedom
CALIBRATE_AGAIN = "run vlmphys calibrate again, or delete the file to go on without a calibration"


@dataclass(frozen=True)
class Rate:
    """A share of clips, and its exact 95 % interval (Clopper and Pearson 1934)."""

    count: int
    of: int

    @property
    def value(self) -> float:
        """The share itself."""
        return self.count / self.of

    @property
    def interval95(self) -> tuple[float, float]:
        """Both ends, 0 to 1."""
        return binomial_interval(self.count, self.of)

    def as_json(self) -> dict[str, Any]:
        """As calibration.json holds it."""
        return {"value": self.value, "clips": self.count, "of": self.of, "interval95": list(self.interval95)}


def fit_temperature(labels_N: np.ndarray, scores_N: np.ndarray) -> float:
    """The temperature that makes the labels likeliest, within TEMPERATURES.

    A normal distribution around 0 with deviation 1 is the prior of its logarithm, which counts about as much as one clip: without it few
    clips that are all on their right side would make every probability 0 or 1. Raises ValueError where a class is missing.
    """
    labels_N, scores_N = np.asarray(labels_N, dtype=bool), np.asarray(scores_N, dtype=np.float64)
    anomalous, normal = int(labels_N.sum()), int((~labels_N).sum())
    if not anomalous or not normal:
        raise ValueError(f"a temperature needs val clips of both classes, there are {normal} normal and {anomalous} anomalous ones")
    low, high = (math.log(edge) for edge in TEMPERATURES)
    for _ in range(6):                                      # each round narrows the range 16 times
        tried = np.linspace(low, high, 33)
        costs = [_cost(labels_N, scores_N, math.exp(value)) + value ** 2 / 2 for value in tried]
        best = int(np.argmin(costs))
        low, high = tried[max(best - 1, 0)], tried[min(best + 1, 32)]
    return math.exp((low + high) / 2)


def chosen_temperature(labels_N: np.ndarray, scores_N: np.ndarray) -> float:
    """`fit_temperature`, or 1 where the clips cannot tell it from 1 (likelihood ratio test at 95 %): then a fit is worse than none on average."""
    labels_N, scores_N = np.asarray(labels_N, dtype=bool), np.asarray(scores_N, dtype=np.float64)
    fitted = fit_temperature(labels_N, scores_N)
    return fitted if _cost(labels_N, scores_N, 1.0) - _cost(labels_N, scores_N, fitted) > SURE_GAIN else 1.0


def _cost(labels_N: np.ndarray, scores_N: np.ndarray, temperature: float) -> float:
    """The negative log-likelihood of the labels, natural logarithm."""
    return float(np.logaddexp(0, np.where(labels_N, -scores_N, scores_N) / temperature).sum())


def probabilities(scores_N: np.ndarray, temperature: float) -> np.ndarray:
    """Probabilities of Anomalous at a temperature."""
    return 0.5 * (1 + np.tanh(np.asarray(scores_N, dtype=np.float64) / (2 * temperature)))


def reliability_bins(labels_N: np.ndarray, probabilities_N: np.ndarray) -> list[dict[str, float]]:
    """The calibration curve: of each of the BINS bins with clips `low`, `high`, `n`, `mean_probability` and `share_anomalous`."""
    probabilities_N = np.asarray(probabilities_N, dtype=np.float64)
    bin_N = np.minimum((probabilities_N * BINS).astype(int), BINS - 1)
    count_B = np.bincount(bin_N, minlength=BINS)
    mean_B, share_B = (np.bincount(bin_N, weights=np.asarray(values, dtype=np.float64), minlength=BINS) / np.maximum(count_B, 1)
                       for values in (probabilities_N, labels_N))
    return [{"low": place / BINS, "high": (place + 1) / BINS, "n": int(count_B[place]), "mean_probability": float(mean_B[place]),
             "share_anomalous": float(share_B[place])} for place in np.flatnonzero(count_B).tolist()]


def expected_calibration_error(labels_N: np.ndarray, probabilities_N: np.ndarray) -> float:
    """The mean distance, weighted by clips, between a bin's share of anomalous clips and its mean probability of Anomalous; BINS bins."""
    bins = reliability_bins(labels_N, probabilities_N)
    return sum(found["n"] * abs(found["share_anomalous"] - found["mean_probability"]) for found in bins) / len(probabilities_N)


def calibration_record(predictions: Predictions) -> dict[str, Any]:
    """What scores.json says of the probabilities of one file: `ece`, `n`, `bins` of the curve, and `source`; `ece` is null, with a `reason`,
    where a file has none."""
    probabilities_N, source = predictions.probabilities_N, "probabilities of the predictions"
    if probabilities_N is None:
        probabilities_N, source = predictions.scores_N, "scores, which all lie in [0, 1], taken as probabilities"
    known_N = ~np.isnan(probabilities_N)
    labels_N, known = predictions.labels_N[known_N], probabilities_N[known_N]
    reason = None
    if predictions.probabilities_N is None and predictions.data_fingerprints:
        reason = "the rows hold log-odds without a probability"
    elif not len(known):
        reason = "no clip has a score"
    elif known.min() < 0 or known.max() > 1:
        reason = "the scores are no probabilities: some lie outside [0, 1]"
    if reason is not None:
        return {"ece": None, "n": 0, "source": None, "bins": [], "reason": reason}
    return {"ece": expected_calibration_error(labels_N, known), "n": len(known), "source": source, "bins": reliability_bins(labels_N, known)}


def error_by_chance(probabilities_N: np.ndarray) -> float:
    """The mean calibration error of clips whose probabilities are exact: bins hold few clips, so that it is above 0. Always the same draws."""
    probabilities_N = np.asarray(probabilities_N, dtype=np.float64)
    drawn_DN = np.random.default_rng(0).random((DRAWS, len(probabilities_N))) < probabilities_N
    return float(np.mean([expected_calibration_error(labels_N, probabilities_N) for labels_N in drawn_DN]))


def leaning(labels_N: np.ndarray, probabilities_N: np.ndarray) -> str | None:
    """A sentence where the probabilities are too low or too high as a whole, beyond chance: no temperature mends a shift."""
    expected, share = float(np.mean(probabilities_N)), float(np.mean(labels_N))
    deviation = math.sqrt(float((probabilities_N * (1 - probabilities_N)).sum())) / len(probabilities_N)
    if abs(share - expected) <= LEANING * deviation:
        return None
    return (f"the probabilities are too {'low' if expected < share else 'high'} as a whole (mean {expected:.3f}, share of anomalous val clips "
            f"{share:.3f}), which a temperature cannot mend: go by the verdicts, whose threshold is fitted")


def balanced_threshold(labels_N: np.ndarray, scores_N: np.ndarray) -> float:
    """The cut with the highest balanced accuracy, in the middle between two neighbouring scores; of equal ones that in the widest gap."""
    labels_N, scores_N = np.asarray(labels_N, dtype=bool), np.asarray(scores_N, dtype=np.float64)
    values_U = np.unique(scores_N)
    if len(values_U) == 1:
        return float(values_U[0])
    cuts_U = (values_U[1:] + values_U[:-1]) / 2
    normal, anomalous = np.sort(scores_N[~labels_N]), np.sort(scores_N[labels_N])
    balanced_U = np.searchsorted(normal, cuts_U) / len(normal) + 1 - np.searchsorted(anomalous, cuts_U) / len(anomalous)
    best = np.flatnonzero(balanced_U >= balanced_U.max() - 1e-12)
    return float(cuts_U[best[np.argmax(np.diff(values_U)[best])]])


def threshold_for_rate(normal_scores_N: np.ndarray, target: float) -> tuple[float, str | None]:
    """The lowest threshold whose expected rate of false alarms is at most `target`, and a sentence where there are too few clips for it.

    Just above the (k + 1)-th highest of N normal scores, a further normal clip of the same kind is called anomalous with probability
    (k + 1) / (N + 1) at most, whatever the scores' distribution: the largest such k is taken. Where even 1 / (N + 1) is more than the
    target, the threshold stands above all of them, and the sentence says so. Raises ValueError for a target outside (0, 1) or no clip.
    """
    if not 0 < target < 1:
        raise ValueError(f"--target-fpr {target}: a share of the normal clips between 0 and 1 is needed, 0.01 for one in a hundred")
    scores_N = np.sort(np.asarray(normal_scores_N, dtype=np.float64))[::-1]
    if not len(scores_N):
        raise ValueError("--target-fpr needs normal val clips, and there is none: split again with a larger --val-share")
    allowed = math.floor(target * (len(scores_N) + 1) + 1e-9) - 1
    threshold = float(np.nextafter(scores_N[max(allowed, 0)], np.inf))
    if allowed >= 0:
        return threshold, None
    needed = math.ceil(1 / target - 1e-9) - 1
    few = f"{counted(len(scores_N), 'normal val clip')} {'is' if len(scores_N) == 1 else 'are'}"
    return threshold, (f"only a rate of {1 / (len(scores_N) + 1):.3g} is promised, not {target:g}: {few} too few for that, which takes at least "
                       f"{needed}; the threshold stands above all of them")


def binomial_interval(count: int, of: int, confidence: float = 0.95) -> tuple[float, float]:
    """Clopper's and Pearson's exact interval of a share of which `count` of `of` were seen."""
    assert 0 <= count <= of and of > 0, (count, of)
    tail = (1 - confidence) / 2
    low = 0.0 if count == 0 else _solve(lambda share: 1 - _at_most(count - 1, of, share) < tail)
    high = 1.0 if count == of else _solve(lambda share: _at_most(count, of, share) > tail)
    return low, high


def interval_of_as_many_more(count: int, of: int) -> tuple[float, float]:
    """Between which shares, in 95 of 100 cases at least, a further `of` normal clips lie above a threshold that stands just below the
    `count` highest of `of` scores.

    The true rate of such a threshold is distributed as Beta(count + 1, of - count), so that the further count is beta-binomial.
    """
    assert 0 <= count < of, (count, of)
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, 2 * of + 2)))])         # of factorials
    more = np.arange(of + 1)
    chances = np.exp(logs[of] - logs[more] - logs[of - more] + logs[more + count] + logs[2 * of - count - 1 - more] - logs[2 * of]
                     + logs[of] - logs[count] - logs[of - count - 1])
    at_most = np.cumsum(chances)
    return float(np.searchsorted(at_most, 0.025, side="right")) / of, float(np.searchsorted(at_most, 0.975)) / of


def _solve(below) -> float:
    """Where `below` turns from true to false in [0, 1]."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if below(middle) else (low, middle)
    return (low + high) / 2


def _at_most(count: int, of: int, share: float) -> float:
    """The chance of at most `count` successes in `of` trials."""
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, of + 1)))])
    seen = np.arange(count + 1)
    return float(np.exp(logs[of] - logs[seen] - logs[of - seen] + seen * math.log(share) + (of - seen) * math.log1p(-share)).sum())


def fit(labels_N: np.ndarray, scores_N: np.ndarray, target_fpr: float | None = None) -> tuple[Calibration, dict[str, Any]]:
    """A calibration, and what calibration.json says of it: rule, rates with their intervals, errors before and after, notes.

    Without `target_fpr` the threshold is that of `balanced_threshold`. Raises ValueError where what is asked for needs clips of a class
    that is missing, or scores are not finite.
    """
    labels_N, scores_N = np.asarray(labels_N, dtype=bool), np.asarray(scores_N, dtype=np.float64)
    if not np.isfinite(scores_N).all():
        raise ValueError(f"{int((~np.isfinite(scores_N)).sum())} of {len(scores_N)} val clips have no finite score: predict them again")
    anomalous, normal = int(labels_N.sum()), int((~labels_N).sum())
    notes: list[str] = []
    if target_fpr is None and not (anomalous and normal):
        raise ValueError(f"the val split holds {normal} normal and {anomalous} anomalous clips: both are needed; with normal ones alone give "
                         "--target-fpr RATE, or split again with a larger --val-share")
    if target_fpr is None:
        threshold, promised = balanced_threshold(labels_N, scores_N), None
    else:
        threshold, short = threshold_for_rate(scores_N[~labels_N], target_fpr)
        promised = max(target_fpr, 1 / (normal + 1))
        notes += [short] if short else []
    temperature = 1.0
    errors: dict[str, Any] = {"before": None, "after": None, "held_out": None, "by_chance": None, "bins": BINS}
    if anomalous and normal:
        temperature = chosen_temperature(labels_N, scores_N)
        if temperature == 1:
            notes.append("the temperature stays 1: these clips cannot tell another one from it")
        probable_N = probabilities(scores_N, temperature)
        errors.update(before=expected_calibration_error(labels_N, probabilities(scores_N, 1.0)),
                      after=expected_calibration_error(labels_N, probable_N),
                      held_out=held_out_error(labels_N, scores_N), by_chance=error_by_chance(probable_N))
        leans = leaning(labels_N, probable_N)
        notes += [leans] if leans else []
        if temperature > 0.9 * TEMPERATURES[1]:
            notes.append("the scores do not rise from normal to anomalous val clips: every probability is about 0.5")
    else:
        notes.append("the val split holds no anomalous clip: the temperature stays 1, and what share of faults is caught is not known")
    if min(normal, anomalous or normal) < FEW_CLIPS:
        notes.append(f"few val clips ({normal} normal, {anomalous} anomalous): temperature and threshold are rough, as the intervals show")
    called_N = scores_N >= threshold
    called_normal = int(called_N[~labels_N].sum())
    found = Calibration(temperature, threshold)
    return found, {
        "temperature": temperature, "threshold": threshold, "anomalous_from": found.anomalous_from,
        "threshold_rule": "highest balanced accuracy" if target_fpr is None else "target false positive rate",
        "target_fpr": target_fpr, "promised_fpr": promised,
        "false_positive_rate": Rate(called_normal, normal).as_json() if normal else None,
        "false_positive_rate_of_as_many_more": None if target_fpr is None else list(interval_of_as_many_more(called_normal, normal)),
        "true_positive_rate": Rate(int(called_N[labels_N].sum()), anomalous).as_json() if anomalous else None,
        "expected_calibration_error": errors, "notes": notes}


def held_out_error(labels_N: np.ndarray, scores_N: np.ndarray) -> float | None:
    """The expected calibration error where each half of the clips has the temperature of the other one; None where a half lacks a class.

    Halves are every other clip of each class, in the order given.
    """
    half_N = np.zeros(len(labels_N), dtype=bool)
    for label in (False, True):
        half_N[np.flatnonzero(labels_N == label)[::2]] = True
    if any(len(set(labels_N[side].tolist())) < 2 for side in (half_N, ~half_N)):
        return None
    predicted_N = np.empty(len(scores_N))
    for side in (half_N, ~half_N):
        predicted_N[side] = probabilities(scores_N[side], chosen_temperature(labels_N[~side], scores_N[~side]))
    return expected_calibration_error(labels_N, predicted_N)


def write_calibration(run_folder: Path, facts: dict[str, Any], fitted_on: dict[str, Any]) -> Path:
    """Write calibration.json whole; `fitted_on` names model_fingerprint, data_fingerprint, clips and protocol."""
    path = Path(run_folder) / CALIBRATION
    write_atomic(path, json_bytes({"version": VERSION, **facts, "fitted_on": fitted_on}))
    return path


def read_calibration(run_folder: Path, model_fingerprint: str) -> Calibration:
    """The calibration of a run, or that which changes nothing where it has none.

    Raises ValueError where the file is damaged, or was fitted to other weights than the run's `model_fingerprint`.
    """
    path = Path(run_folder) / CALIBRATION
    if not path.is_file():
        return UNCALIBRATED
    stored = read_json(path, CALIBRATE_AGAIN)
    try:
        found = Calibration(float(stored["temperature"]), float(stored["threshold"]))
        fitted_to, version = stored["fitted_on"]["model_fingerprint"], stored["version"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no calibration ({json.dumps(str(error))}): {CALIBRATE_AGAIN}") from error
    if version != VERSION or not 0 < found.temperature < math.inf or not math.isfinite(found.threshold):
        raise ValueError(f"{path} is of version {version!r} with temperature {found.temperature:g} and threshold {found.threshold:g}, which "
                         f"cannot be used here: {CALIBRATE_AGAIN}")
    if fitted_to != model_fingerprint:
        raise ValueError(f"{path} was fitted to other weights than those of this run: {CALIBRATE_AGAIN}")
    return found
