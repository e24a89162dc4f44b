"""How the commands' --help says what an option is where it is not given."""

from __future__ import annotations

import argparse


class DefaultsFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Adds `(default: 8)` to an option's help, and nothing where None, False or an empty list stand for "not given": such a help says itself
    what is done then."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        says_nothing = action.default is None or action.default is False or action.default == []
        return action.help if says_nothing or "(default" in (action.help or "") else super()._get_help_string(action)
