"""Words that give the answer away: a verdict or a fault's name in what the model reads before its verdict, or another label's in a state's text.

They know English, and stop at words that have no other use in a sentence about a mechanism: "wheel" is no leak of `front_wheel`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

VERDICT_WORDS_PATTERN = r"(?:ab)?normal\w*|anomal\w*|verdict\w*"
# Beside the verdict's own words: what is said of a clip that was judged, and never of a mechanism in general.
JUDGING_PATTERN = r"as (?:it|they) should|(?:non-?)?defect\w*|(?:fault(?:s|y|ed|less\w*)?|malfunction\w*|flaw(?:s|ed|less\w*)?)\b"
NEGATION = r"(?:not|no|never|nothing|none|neither|nor|without|cannot|hardly|free of|\w+n't)"
NEGATED_PATTERN = re.compile(rf"\b{NEGATION}\b(?:\s+\w+){{0,2}}\s*$", re.IGNORECASE)
FAULTY_PATTERN = re.compile(r"\b(?:abnormal|anomal|defect|faulty|malfunction)\w*", re.IGNORECASE)
CALLED_NORMAL_PATTERN = re.compile(r"\b(?:is|are|looks?|seems?|appears?|moves?|turns?|works?|runs?)\s+(?:\w+ly\s+)?normal(?:ly)?\b",
                                   re.IGNORECASE)
# A sentence of two parts may say of one that it is normal, and of the other what is wrong.
CONTRAST_PATTERN = re.compile(r"[,;:]|\b(?:and|but|while|although|though|yet|until|till|then|than|first|before|after|except|only|when|where|if|"
                              r"instead)\b", re.IGNORECASE)
# Words within a fault's name that are themselves the fault: `stuck` of `ball_stuck`, as against `ball`.
FAULT_WORDS = {"stuck": r"stuck", "jam": r"jam(?:s|med|ming)?", "jammed": r"jam(?:s|med|ming)?", "leak": r"leak\w*", "leaking": r"leak\w*",
               "leakage": r"leak\w*", "vibrate": r"vibrat\w*", "vibration": r"vibrat\w*", "vibrating": r"vibrat\w*", "crack": r"crack\w*",
               "cracked": r"crack\w*", "unable": r"unable", "blocked": r"blocked", "detached": r"detached", "derailment": r"derail\w*",
               "derailed": r"derail\w*", "broken": r"broken", "loose": r"loose", "wobble": r"wobbl\w*", "wobbling": r"wobbl\w*",
               "uneven": r"uneven\w*", "missing": r"missing", "misaligned": r"misalign\w*", "defect": r"defect\w*", "defective": r"defect\w*",
               "stalled": r"stall(?:s|ed|ing)?", "failure": r"fail(?:s|ed|ing|ure|ures)?"}


def words_of(state: str) -> list[str]:
    """The words of an anomaly's name, in lower case, a number at the end of each aside (`axis_stuck2` has axis and stuck)."""
    return [word.rstrip("0123456789") or word for word in re.split(r"[_\W]+", state.lower()) if word]


def leaks(text: str, anomalies: Iterable[str]) -> list[str]:
    """The words of `text` that give a verdict or name one of `anomalies` (folder names), in any inflection, as they stand there."""
    return _found([VERDICT_WORDS_PATTERN, *_name_patterns(anomalies)], text)


def leaks_before_verdict(text: str, anomalies: Iterable[str]) -> list[str]:
    """As `leaks`, for a text that the model reads before its verdict: phrases that judge (`as it should`, `defect`) and the word of a longer
    name that is the fault itself (`stuck` of `ball_stuck`) count, too."""
    anomalies = list(anomalies)
    found = _found([VERDICT_WORDS_PATTERN, rf"(?:{JUDGING_PATTERN})", *_name_patterns(anomalies), *_fault_patterns(anomalies)], text)
    return [one for one in dict.fromkeys(found) if not any(one != other and one in other for other in found)]


def leaks_in_normal(text: str, anomalies: Iterable[str]) -> list[str]:
    """The words of a normal state's text that say the other verdict, or name a fault: a name of several words in any case, the word of a fault
    where nothing negates it (`no leak` says what is right)."""
    anomalies = list(anomalies)
    plain = [match.group(0) for match in FAULTY_PATTERN.finditer(text) if not negated(text, match)]
    patterns = [rf"\b(?:{pattern})\b" for state in anomalies for word in words_of(state) if (pattern := FAULT_WORDS.get(word))]
    plain += [match.group(0) for pattern in dict.fromkeys(patterns) for match in re.finditer(pattern, text, re.IGNORECASE)
              if not negated(text, match)]
    named = _found(_name_patterns(state for state in anomalies if len(words_of(state)) > 1), text)
    return list(dict.fromkeys([*named, *(one for one in plain if not any(one in other for other in named))]))


def leaks_in_anomalous(text: str) -> list[str]:
    """What an anomalous state's text says of the whole as the other verdict would: `is normal`, in a sentence that sets nothing against it."""
    if CONTRAST_PATTERN.search(text):
        return []
    return [match.group(0) for match in CALLED_NORMAL_PATTERN.finditer(text) if not negated(text, match)]


def negated(text: str, match: re.Match) -> bool:
    """Whether a negation stands at most two words before a match."""
    return NEGATED_PATTERN.search(text[:match.start()]) is not None


def _name_patterns(anomalies: Iterable[str]) -> list[str]:
    patterns = []
    for words in filter(None, map(words_of, anomalies)):
        stem = words[-1][:-1] if words[-1].endswith("e") and len(words[-1]) > 4 else words[-1]
        patterns.append(r"[\s_-]*".join([*map(re.escape, words[:-1]), re.escape(stem)]) + r"\w*")
    return list(dict.fromkeys(patterns))


def _fault_patterns(anomalies: Iterable[str]) -> list[str]:
    words = [word for state in anomalies if len(words_of(state)) > 1 for word in words_of(state)]
    return [rf"(?:{FAULT_WORDS[word]})\b" for word in dict.fromkeys(words) if word in FAULT_WORDS]


def _found(patterns: Iterable[str], text: str) -> list[str]:
    return [match.group(0) for pattern in patterns for match in re.finditer(rf"\b(?:{pattern})", text, re.IGNORECASE)]
