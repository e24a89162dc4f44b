"""What the tests of the report share: two runs with hostile texts, frames that no video stands behind, and a reader of the page."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from vlmphys.predictions import read_predictions
from vlmphys.scoring import score_predictions

NASTY = '<script>alert("x")</script><img src=x onerror=alert(1)>'


class Page(HTMLParser):
    """Collects tags with their attributes, and checks that they are balanced."""

    VOID = {"meta", "link", "img", "br"}

    def __init__(self, html: str):
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict]] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.text.append(data)

    def named(self, tag: str) -> list[dict]:
        return [attrs for name, attrs in self.tags if name == tag]


def scored_runs(folder: Path):
    """Two runs over two categories; one explanation, one category and one state are hostile."""
    def read(name: str, seed: int):
        generator = np.random.default_rng(seed)
        with open(folder / f"{name}.jsonl", "w") as stream:
            for category in ("fan", 'ge"ar<b>'):
                for clip in range(20):
                    label = clip % 2
                    stream.write(json.dumps({
                        "clip_id": f"{category}/test/{'stuck<i>' if label else 'anomaly_free'}/{clip}", "label": label,
                        "category": category, "score": float(generator.normal() + label), "explanation": NASTY if clip % 3 else None}) + "\n")
        return read_predictions(folder / f"{name}.jsonl")
    predictions = {"one": read("one", 0), "<b>two": read("two", 1)}
    return {name: score_predictions(table) for name, table in predictions.items()}, predictions


def frames_of(predictions):
    """Stands in for a FramesTable: every clip but the last, frames of one grey each."""
    def row(clip_id):
        shade = np.full((8, 64, 64, 3), 10 * int(clip_id.rsplit("/", 1)[1]), dtype=np.uint8)
        return SimpleNamespace(frames_THWC=shade, frame_index=np.arange(8) * 5, source_frames=40, source_fps=60.0)
    return SimpleNamespace(clip_ids=predictions.clip_ids[:-1], row=row)
