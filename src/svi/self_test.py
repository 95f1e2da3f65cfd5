"""Ten seconds that prove an installation: two clips of the pocket model, compared with what they should be.

The recorded values are tied to the pocket model's weights; `python -m svi.self_test --record` writes them anew when those
change. On a machine like the one that recorded them the bytes are equal; elsewhere sums round differently, and
pictures have to agree within two of 255 levels, tile by tile. Knows nothing about what else may be wrong with a machine.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from svi.errors import UserError
from svi.files import read_json, sha256, write_json

FILE = "self_test.json"
PROMPTS = ("a red ball moves left", "the ball stops")
STEPS, CLIPS, SEED, GUIDANCE = 4, 2, 11, 3.0
TILE, EVERY = 16, 8  # pixels along a tile's side; of the frames, every eighth is kept
TOLERANCE = 2.0
COMMAND = "python -m svi.self_test --record"


@dataclass(frozen=True)
class Outcome:
    """What came of it.

    Attributes:
        passed: whether the pictures are what they should be; None where nobody recorded what they should be.
        line: in words.
        seconds: it took, loading included.
    """

    passed: bool | None
    line: str
    seconds: float


def self_test(device: str = "cpu") -> Outcome:
    """Make the clips on ``device`` in fp32, and compare.

    Raises:
        UserError: where the pocket model is missing or damaged.
    """
    began = time.perf_counter()
    made = _made(device)
    seconds = time.perf_counter() - began
    path = _path()
    if not path.is_file():
        return Outcome(None, f"nothing was recorded to compare with: {COMMAND}", seconds)
    wanted = read_json(path)
    if wanted["weights"] != made["weights"]:
        return Outcome(None, f"recorded for other weights of the pocket model: {COMMAND}", seconds)
    if wanted["frames_sha256"] == made["frames_sha256"]:
        return Outcome(True, "same bytes as recorded", seconds)
    off = max(abs(a - b) for a, b in zip(wanted["tiles"], made["tiles"], strict=True))
    if off <= TOLERANCE:
        return Outcome(True, f"pictures agree within rounding (at most {off:.2f} of 255 apart)", seconds)
    return Outcome(False, f"pictures are up to {off:.1f} of 255 levels from what they should be", seconds)


def record() -> Path:
    """Write what this machine makes as what has to be made; returns the file."""
    path = _path()
    write_json(path, _made("cpu"))
    return path


def fingerprint() -> str:
    """Of the pocket model's files, as recorded values are tied to it."""
    from svi.backends.lora import FOLDER as LORAS
    from svi.backends.weights import find_model

    folder = find_model("pocket")
    files = (path for path in folder.rglob("*") if path.is_file())
    parts = sorted(path for path in files if path.relative_to(folder).parts[0] != LORAS)  # no LoRA is loaded
    return sha256(
        b"".join(f"{path.relative_to(folder).as_posix()} {sha256(path.read_bytes())}\n".encode() for path in parts)
    )


def _path() -> Path:
    return Path(str(files("svi").joinpath(FILE)))


def _made(device: str) -> dict[str, Any]:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the order of sums, and with it the last bit, depends on their number
    try:
        frames = torch.cat(list(_clips(device)))
    finally:
        torch.set_num_threads(threads)
    tiles = frames[::EVERY].float().unfold(1, TILE, TILE).unfold(2, TILE, TILE).mean(dim=(-2, -1))
    return {
        "weights": fingerprint(),
        "frames_sha256": sha256(frames.contiguous().numpy().tobytes()),
        "tiles": [round(value, 3) for value in tiles.flatten().tolist()],
    }


def _clips(device: str) -> Iterator[Any]:
    """Frames of the clips, ``(T, H, W, 3)`` uint8 each."""
    import numpy as np

    import svi

    down, along = np.mgrid[0:64, 0:96]
    picture = np.stack([40 + 2 * down, 60 + along, 200 - along], axis=-1).astype(np.uint8)
    picture[24:40, 40:56] = (220, 40, 40)
    options: dict[str, Any] = dict(
        steps=STEPS, seed=SEED, guidance=GUIDANCE, preset="film", device=device, dtype="fp32"
    )
    for clip in svi.stream(picture, list(PROMPTS), clips=CLIPS, **options):
        yield clip.new_frames


def main(argv: list[str] | None = None) -> int:
    """``python -m svi.self_test [--record]``."""
    words = sys.argv[1:] if argv is None else argv
    if words not in ([], ["--record"]):
        raise UserError(f"{COMMAND}, or without --record to run the test")
    if words:
        sys.stdout.write(f"{record()}\n")
        return 0
    outcome = self_test()
    sys.stdout.write(f"{outcome.line} ({outcome.seconds:.1f} s)\n")
    return 0 if outcome.passed else 1


if __name__ == "__main__":
    raise SystemExit(main())
