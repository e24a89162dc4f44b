"""Small video files for tests, encoded here and now."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np


def moving_images(frames: int, height: int = 96, width: int = 128, seed: int = 0) -> list[np.ndarray]:
    """RGB pictures of a rolling texture with a square that crosses it: no two of them alike."""
    generator = np.random.default_rng(seed)
    texture = generator.integers(0, 255, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    images = []
    for index in range(frames):
        image_HWC = np.roll(texture, (2 * index, 3 * index), (0, 1))[:height, :width].copy()
        top, left = 5 * index % (height - 16), 7 * index % (width - 16)
        image_HWC[top:top + 16, left:left + 16] = (255, 8 * index % 256, 0)
        images.append(image_HWC)
    return images


def encode_clip(path: Path, frames: int = 30, height: int = 96, width: int = 128, seed: int = 0, codec: str = "libx264",
                options: dict[str, str] | None = None, pixels: str = "yuv420p", container_options: dict[str, str] | None = None,
                rotation: int = 0, rate: int = 60) -> Path:
    """Write a video; `options` are the encoder's, `container_options` the file format's, `rotation` degrees in its metadata."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=rate, options=options or {})
        stream.width, stream.height, stream.pix_fmt = width, height, pixels
        if rotation:
            stream.set_display_rotation(rotation)
        for image_HWC in moving_images(frames, height, width, seed):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image_HWC, format="rgb24")))
        container.mux(stream.encode())
    return path


def sound_alone(path: Path) -> None:
    """A file of one second of silence, and no picture."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


def decode_all(path: Path) -> np.ndarray:
    """Every frame of a file, decoded plainly from the start: the reference for exact reading, frames x H x W x 3."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def make_videos(root: Path, states: dict[str, tuple[str, ...]], clips: int = 3, frames: int = 12) -> Path:
    """A folder in the Phys-AD layout with `clips` small files in each leaf folder."""
    seed = 0
    for category, anomalies in states.items():
        for place in ("train", "test/anomaly_free", *(f"test/{state}" for state in anomalies)):
            for number in range(clips):
                seed += 1
                encode_clip(root / category / place / f"{number:04d}.mp4", frames, 48, 64, seed)
    return root
