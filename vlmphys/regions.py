"""The region of interest: the part of a picture that a model gets to see, for all clips or category by category.

A region is x, y, width, height: shares of the picture where none of the four is above 1, else whole pixels of the video as it is shown.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from vlmphys.frame_rules import VideoError
from vlmphys.records import nearest

EVERY = "*"     # the region of all categories that have none of their own
Regions = dict[str, list[float]]


def parse_regions(texts: Iterable[str]) -> Regions:
    """Regions by category from `x,y,w,h` or `category=x,y,w,h`. Raises ValueError for anything else, and for two of one category."""
    found: Regions = {}
    for text in texts:
        category, equals, numbers = text.rpartition("=")
        category = category if equals else EVERY
        try:
            region = [float(number) for number in numbers.split(",")]
        except ValueError:
            region = []
        whole = len(region) == 4 and category
        problem = _problem(region) if whole else "four numbers are expected, x,y,width,height, or category=x,y,width,height"
        if not problem and category in found:
            problem = "there is one already " + ("for all categories" if category == EVERY else f"for {category}")
        if problem:
            raise ValueError(f"--roi {text}: {problem}")
        found[category] = region
    return found


def _problem(region: list[float]) -> str:
    x, y, width, height = region
    if not np.isfinite(region).all() or min(x, y) < 0 or min(width, height) <= 0:
        return "x and y must be 0 or more, width and height more than 0"
    if _in_shares(region):
        return "" if x + width <= 1 and y + height <= 1 else "it reaches beyond the picture: shares of it go from 0 to 1"
    return "" if all(number == int(number) for number in region) else "pixels are whole numbers, shares of the picture are not above 1"


def _in_shares(region: list[float]) -> bool:
    return max(region) <= 1


def check_categories(regions: Regions, categories: Iterable[str]) -> None:
    """Raise ValueError for a region of a category that no clip has."""
    known = sorted(set(categories))
    for category in regions:
        if category != EVERY and category not in known:
            raise ValueError(f"--roi {category}=...: no clip has this category{nearest(category, known)}")


def region_of(regions: Regions, category: str) -> list[float] | None:
    """The region of a category's clips; None: the whole picture."""
    return regions.get(category, regions.get(EVERY))


def box_of(region: list[float] | None, height: int, width: int) -> list[int]:
    """x, y, width, height in pixels of a picture of this size. Raises VideoError where the region does not lie within it, or holds no pixel."""
    if region is None:
        return [0, 0, width, height]
    if _in_shares(region):
        left, right = (round(edge * width) for edge in (region[0], region[0] + region[2]))
        top, bottom = (round(edge * height) for edge in (region[1], region[1] + region[3]))
        box = [left, top, right - left, bottom - top]
    else:
        box = [int(number) for number in region]
    x, y, box_W, box_H = box
    if x + box_W > width or y + box_H > height or min(box_W, box_H) < 1:
        raise VideoError(f"the region of interest {','.join(f'{number:g}' for number in region)} does not lie within its pictures of {width} x "
                         f"{height} pixels")
    return box


def cut(image_HWC: np.ndarray, region: list[float] | None) -> np.ndarray:
    """A picture's region, as a view. Raises VideoError as `box_of`."""
    x, y, width, height = box_of(region, *image_HWC.shape[:2])
    return image_HWC[y:y + height, x:x + width]
