"""What was detected, for people: a panel in the terminal, and one self-contained page with film strips. No torch.

Text from models, files and users is escaped for the page, and cleared of control characters for the terminal.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from html import escape
from string import Template
from typing import TYPE_CHECKING

from rich.console import Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from vlmphys.records import Verdict
from vlmphys.report import HERE
from vlmphys.report_clips import strip_data_uri

if TYPE_CHECKING:
    from vlmphys.detector import Detection, Moment

NOT_JUDGED = "not judged"
BAR_CELLS = 20
LINE_WIDTH, LINE_HEIGHT, LINE_MARGIN = 560, 110, 18


@dataclass(frozen=True)
class Refused:
    """A clip that could not be judged, and why."""

    source: str
    error: str

    def as_json(self) -> dict:
        """Both fields."""
        return asdict(self)


def plain(text: str) -> str:
    """The text without control characters, which could move a terminal's cursor or change its colours."""
    return "".join(sign if sign.isprintable() else " " for sign in text)


def panel(found: Detection) -> Panel:
    """Verdict, probability, reason and the frames that were looked at; for a long video its windows, too."""
    colour = "red" if found.verdict == Verdict.ANOMALOUS.value else "green"
    figures = f"   probability of anomalous {found.probability:.3f}{cut_text(found)}"
    lines: list = [Text(plain(found.source), style="bold", overflow="fold"), Text.assemble((found.verdict, f"bold {colour}"), figures),
                   Text(f"category: {plain(found.category)}{sureness(found)}; score {found.score:+.3f}{window_text(found)}")]
    if found.reason is not None:
        lines.append(Text(f"reason: {plain(found.reason)}"))
    lines.append(Text(f"frames seen: {frames_text(found)}", style="dim"))
    if found.timeline:
        lines.append(_timeline_table(found.timeline))
    return Panel(Group(*lines), border_style=colour)


def sureness(found: Detection) -> str:
    """How sure a guessed category is; nothing for a given one."""
    return "" if found.category_probability is None else f" (guessed, probability {found.category_probability:.3f} among the run's categories)"


def cut_text(found: Detection) -> str:
    """From which probability the verdict is anomalous; nothing without a calibration, where it is 0.5."""
    return "" if found.anomalous_from == 0.5 else f" (anomalous from {found.anomalous_from:.3f})"


def window_text(found: Detection) -> str:
    """Which window a long video's figures are of; nothing for a clip that was judged at once."""
    if not found.timeline:
        return ""
    highest = max(found.timeline, key=lambda moment: moment.score)
    windows = f"the highest of {len(found.timeline)} windows" if len(found.timeline) > 1 else "of its one window"
    return f", {windows}, {highest.start_seconds:.1f} to {highest.stop_seconds:.1f} s"


def summary(found: Sequence[str]) -> str:
    """How many clips had which verdict; `found` holds verdicts, and NOT_JUDGED."""
    kinds = (Verdict.NORMAL.value, Verdict.ANOMALOUS.value, NOT_JUDGED)
    counts = ", ".join(f"{found.count(kind)} {kind}" for kind in kinds if kind in found)
    return f"{len(found)} clip{'' if len(found) == 1 else 's'}" + (f": {counts}" if counts else "")


def frames_text(found: Detection) -> str:
    """Frame numbers, and the seconds of the first and the last one where they are known."""
    numbers = ", ".join(map(str, found.frames))
    return numbers if None in found.seconds else f"{numbers} ({found.seconds[0]:.2f} to {found.seconds[-1]:.2f} s)"


def _timeline_table(moments: Sequence[Moment]) -> Table:
    table = Table("window", "probability of anomalous", "", "score", "verdict", box=None, padding=(0, 1))
    for moment in moments:
        cells = round(moment.probability * BAR_CELLS)
        colour = "red" if moment.verdict == Verdict.ANOMALOUS.value else "green"
        table.add_row(f"{moment.start_seconds:.1f} to {moment.stop_seconds:.1f} s", Text("█" * cells + "░" * (BAR_CELLS - cells), style=colour),
                      f"{moment.probability:.3f}", f"{moment.score:+.3f}", moment.verdict)
    return table


def card_html(found: Detection | Refused) -> str:
    """One clip's part of the page."""
    if isinstance(found, Refused):
        return (f'<article class="box card"><div class="body"><h3>{escape(found.source)} <span class="tag">{NOT_JUDGED}</span></h3>'
                f'<div class="answer"><div class="said">{escape(found.error)}</div></div></div></article>')
    strip = ""
    if found.pictures is not None:
        uri, width, height = strip_data_uri(found.pictures)
        strip = (f'<img class="strip" src="{uri}" width="{width}" height="{height}" alt="{len(found.frames)} frames of {escape(found.source)}" '
                 f'title="frames {escape(frames_text(found))}">')
    kind = "wrong" if found.verdict == Verdict.ANOMALOUS.value else "right"
    said = f'<div class="said">{escape(found.reason)}</div>' if found.reason else ""
    return (f'<article class="box card">{strip}<div class="body"><h3>{escape(found.source)} '
            f'<span class="tag {kind}">{escape(found.verdict)}</span></h3>'
            f'<p class="small soft">category: {escape(found.category)}{escape(sureness(found))}; '
            f'probability of anomalous {found.probability:.3f}{cut_text(found)}, score {found.score:+.3f}{window_text(found)}</p>'
            f'<div class="answer">{said}</div><p class="small soft">frames seen: {escape(frames_text(found))}</p>'
            f'{timeline_svg(found.timeline, found.anomalous_from)}</div></article>')


def timeline_svg(moments: Sequence[Moment], anomalous_from: float) -> str:
    """The probability of anomalous over the video's seconds, with the line from which it counts; nothing without windows.

    Windows overlap: each one's bar stands around its middle, halfway to its neighbours'.
    """
    if not moments:
        return ""
    length, base = moments[-1].stop_seconds, LINE_HEIGHT - LINE_MARGIN
    across, tall = LINE_WIDTH - 2 * LINE_MARGIN, base - 8
    middles = [(moment.start_seconds + moment.stop_seconds) / 2 for moment in moments]
    edges = [0.0, *((one + other) / 2 for one, other in zip(middles, middles[1:])), length]
    bars = []
    for moment, *sides in zip(moments, edges, edges[1:]):
        left, right = (LINE_MARGIN + across * second / length for second in sides)
        height = max(1.0, tall * moment.probability)
        kind = "anomalous" if moment.verdict == Verdict.ANOMALOUS.value else "normal"
        label = f"{moment.start_seconds:.1f} to {moment.stop_seconds:.1f} s: probability {moment.probability:.3f}, score {moment.score:+.3f}"
        bars.append(f'<rect class="{kind}" x="{left:.1f}" y="{base - height:.1f}" width="{max(1.0, right - left - 1):.1f}" height="{height:.1f}">'
                    f"<title>{label}</title></rect>")
    bars.append(f'<path class="cut" d="M{LINE_MARGIN},{base - tall * anomalous_from:.1f} H{LINE_WIDTH - LINE_MARGIN}">'
                f"<title>anomalous from {anomalous_from:.3f}</title></path>")
    return (f'<svg viewBox="0 0 {LINE_WIDTH} {LINE_HEIGHT}" width="{LINE_WIDTH}" height="{LINE_HEIGHT}" role="img" '
            f'aria-label="probability of anomalous over time"><path class="grid" d="M{LINE_MARGIN},{base} H{LINE_WIDTH - LINE_MARGIN}"/>'
            f'{"".join(bars)}<text x="{LINE_MARGIN}" y="{base + 12}">0 s</text>'
            f'<text x="{LINE_WIDTH - LINE_MARGIN}" y="{base + 12}" text-anchor="end">{length:.1f} s</text>'
            f'<text x="{LINE_WIDTH / 2:.0f}" y="{base + 12}" text-anchor="middle" class="axis">probability of anomalous, by window</text></svg>')


def page(cards: Sequence[str], label: str, counts: str) -> str:
    """The page: no script, no network. `counts`: what `summary` says."""
    body = (f'<header><h1>Does it move as it should?</h1><p class="soft">{counts}; judged by {escape(label)}. Reasons are the model\'s own words; '
            f'nothing checks them against its verdict.</p></header><main><div class="cards">{"".join(cards)}</div></main>'
            "<footer><p>Made by vlmphys.</p></footer>")
    return Template((HERE / "report_template.html").read_text(encoding="utf-8")).substitute(
        title="vlmphys detect", body=body, script="", script_hash="sha256-" + base64.b64encode(hashlib.sha256(b"").digest()).decode())
