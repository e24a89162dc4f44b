"""Pictures of what is simulated, without a bench: a contact sheet and a short animation a category, and one overview of all."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vlmphys.files import json_bytes, read_json, write_atomic, writing
from vlmphys.frame_rules import frame_indices
from vlmphys.layout import NORMAL_STATE
from vlmphys.mechanisms import known_mechanisms, load_mechanism
from vlmphys.mechanisms.clips import SimulatedClip, simulate_clip
from vlmphys.mechanisms.physics import FPS
from vlmphys.records import stable_int

MARKER = "preview.json"
SHEET_SUFFIX, ANIMATION_SUFFIX = ".png", ".webp"
OVERVIEW = "mechanisms.png"
FRAMES = 8
TILE, OVERVIEW_TILE, ANIMATION_TILE = 112, 62, 128       # pixels a picture
GAP, FONT_SIZE = 3, 12
ANIMATION_FPS = 20
PAGE, INK = (250, 250, 250), (30, 30, 30)


def states_of(category: str) -> tuple[str, ...]:
    """Normal first, then the faults as the mechanism lists them."""
    return (NORMAL_STATE, *load_mechanism(category).ANOMALIES)


def preview_clip(category: str, state: str, seed: int, appearance: str) -> SimulatedClip:
    """One clip without sensor noise, which would make the files large and show nothing."""
    clip = simulate_clip(load_mechanism(category), category, state, stable_int("preview", seed, category, state), appearance)
    return replace(clip, look=replace(clip.look, noise_sigma=0.0))


def sampled_pictures(clip: SimulatedClip, count: int, size: int) -> list[Image.Image]:
    """`count` frames as a model gets them: uniformly sampled, the first and the last among them."""
    index = frame_indices(len(clip.look.jitter_F2), count, "official")
    return [Image.fromarray(frame_HWC) for frame_HWC in clip.frames(size, index)]


def contact_sheet(category: str, seed: int, appearance: str) -> Image.Image:
    """A row a state: its name and 8 sampled frames of one clip."""
    rows = [(state, sampled_pictures(preview_clip(category, state, seed, appearance), FRAMES, TILE)) for state in states_of(category)]
    return _sheet(rows, TILE)


def overview(categories: tuple[str, ...], seed: int, appearance: str) -> Image.Image:
    """A row a category: 8 frames of a normal clip, then 8 of a clip of one fault, whose name stands below the category's."""
    rows = []
    for category in categories:
        fault = states_of(category)[1 + stable_int("overview", seed, category) % len(load_mechanism(category).ANOMALIES)]
        pictures = [picture for state in (NORMAL_STATE, fault)
                    for picture in sampled_pictures(preview_clip(category, state, seed, appearance), FRAMES, OVERVIEW_TILE)]
        rows.append((f"{category}\nnormal | {fault}", pictures))
    return _sheet(rows, OVERVIEW_TILE, FRAMES)


def _sheet(rows: list[tuple[str, list[Image.Image]]], tile: int, break_after: int = 0) -> Image.Image:
    """Labelled rows of square pictures, the longest label in full; a wider gap stands after `break_after` of them (0: nowhere)."""
    columns = max(len(pictures) for _, pictures in rows)
    font = ImageFont.load_default(FONT_SIZE)
    beside = 4 * GAP + math.ceil(max(font.getlength(line) for label, _ in rows for line in label.split("\n")))
    wide = 4 * GAP if break_after else 0
    page = Image.new("RGB", (beside + columns * (tile + GAP) + wide, len(rows) * (tile + GAP) + GAP), PAGE)
    pen = ImageDraw.Draw(page)
    for number, (label, pictures) in enumerate(rows):
        top = GAP + number * (tile + GAP)
        pen.multiline_text((2 * GAP, top + tile // 2), label, fill=INK, font=font, anchor="lm")
        for column, picture in enumerate(pictures):
            page.paste(picture, (beside + column * (tile + GAP) + (wide if break_after and column >= break_after else 0), top))
    return page


def animation(category: str, seed: int, appearance: str) -> list[Image.Image]:
    """Frames, 20 a second, with one clip of each state side by side and its name above."""
    states, step = states_of(category), FPS // ANIMATION_FPS
    index = np.arange(0, load_mechanism(category).FRAMES, step)
    clips = [[Image.fromarray(frame_HWC) for frame_HWC in preview_clip(category, state, seed, appearance).frames(ANIMATION_TILE, index)]
             for state in states]
    font, head, frames = ImageFont.load_default(FONT_SIZE), 18, []
    for moment in range(len(index)):
        page = Image.new("RGB", (len(states) * (ANIMATION_TILE + GAP) - GAP, ANIMATION_TILE + head), PAGE)
        pen = ImageDraw.Draw(page)
        for column, (state, pictures) in enumerate(zip(states, clips)):
            left = column * (ANIMATION_TILE + GAP)
            pen.text((left + GAP, head // 2), state, fill=INK, font=font, anchor="lm")
            page.paste(pictures[moment], (left, head))
        frames.append(page)
    return frames


def png_bytes(picture: Image.Image) -> bytes:
    """A PNG of 128 colours: a fifth of the bytes, and no eye sees it."""
    stream = io.BytesIO()
    picture.quantize(128, dither=Image.Dither.NONE).save(stream, "PNG", optimize=True)
    return stream.getvalue()


def webp_bytes(frames: list[Image.Image]) -> bytes:
    """An animated WebP that repeats for ever."""
    stream = io.BytesIO()
    frames[0].save(stream, "WEBP", save_all=True, append_images=frames[1:], duration=1000 // ANIMATION_FPS, loop=0, quality=60, method=2)
    return stream.getvalue()


def write_preview(folder: Path, categories: tuple[str, ...], seed: int, appearance: str,
                  advance: Callable[[str], None] = lambda category: None) -> list[Path]:
    """Write <category>.png and <category>.webp for each category, and mechanisms.png; an earlier preview in the folder is written
    over, and what it shows of other categories is deleted.

    `advance` is told each category when it is done. Returns the files. Raises ValueError for a folder that holds anything but a preview, and
    for one that cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir()) and not (folder / MARKER).is_file()):
        raise ValueError(f"{folder} exists and is not a preview: give a new or an empty folder as --preview")
    written = []
    with writing("--preview", folder):
        folder.mkdir(parents=True, exist_ok=True)
        _remove_others(folder, categories)
        write_atomic(folder / MARKER, json_bytes({"categories": list(categories), "seed": seed, "appearance": appearance}))
        for category in categories:
            for name, data in ((f"{category}{SHEET_SUFFIX}", png_bytes(contact_sheet(category, seed, appearance))),
                               (f"{category}{ANIMATION_SUFFIX}", webp_bytes(animation(category, seed, appearance)))):
                write_atomic(folder / name, data)
                written.append(folder / name)
            advance(category)
        write_atomic(folder / OVERVIEW, png_bytes(overview(categories, seed, appearance)))
    return [*written, folder / OVERVIEW]


def _remove_others(folder: Path, categories: tuple[str, ...]) -> None:
    """Delete the pictures that an earlier preview made, as its marker says, of other categories than these."""
    if not (folder / MARKER).is_file():
        return
    earlier = read_json(folder / MARKER, "give a new or an empty folder as --preview").get("categories")
    for category in set(known_mechanisms()) - set(categories):
        if isinstance(earlier, list) and category in earlier:
            for suffix in (SHEET_SUFFIX, ANIMATION_SUFFIX):
                (folder / f"{category}{suffix}").unlink(missing_ok=True)
