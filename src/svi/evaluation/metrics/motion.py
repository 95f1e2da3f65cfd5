"""What a video does in time: how fast it moves and whether it goes on moving, flicker, seams, and frames that come again.

Every frame is looked at small (short side 40), optical flow at 8 frames a second; one pass for all. Flow is OpenCV's DIS
(Kroeger et al., ECCV 2016), an optional extra: without it the two metrics that need flow say so, the others do without.
Smoothness is no virtue here: a frozen video has no flicker and no seams. What is a fault and what is calm, gates say.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from svi.errors import UserError, nearest
from svi.evaluation.drift import SHARE, WINDOW_S, clip_starts
from svi.evaluation.metric import Better, Frames, Kept, Need, Reading, Sample, Score, Skipped, split
from svi.evaluation.metrics import course
from svi.evaluation.metrics.measures import decoded, grey_of, pieces
from svi.evaluation.metrics.shared import Shared

if TYPE_CHECKING:
    import torch

FLOW_RATE = 8.0  # pairs per second, as VBench's dynamic degree takes them
FLOW_SIDES = (128, 240)  # the short side is brought within these: below, DIS finds no patches; above, it tells no more
TOP_SHARE = 0.05  # of the pixels, the fastest, whose mean is the speed
THUMB_SIDE = 40
LAG_S = 0.25  # how far a picture goes in that time is how near a copy must be
BLACK = 2.0  # L*; a frame that is darker on average is black
BLOCK_S = 1.0  # of the bootstrap of retained motion
EXTRA = "optical flow needs OpenCV: pip install 'stable-video-infinity[evaluation]'"


def lightness(grey: torch.Tensor) -> torch.Tensor:
    """L* of greys 0 to 255 (sRGB): of a colour it is that of its luma, for what follows the same from frame to frame."""
    import torch

    linear = decoded(grey / 255)
    return torch.where(linear > 216 / 24389, 116 * linear ** (1 / 3) - 16, linear * (24389 / 27))


class Flow:
    """Speed between two frames by dense optical flow.

    Raises:
        UserError: OpenCV is not installed.
    """

    def __init__(self) -> None:
        try:
            self._cv: Any = importlib.import_module("cv2")
        except ImportError:
            raise UserError(EXTRA) from None
        self._dis = self._cv.DISOpticalFlow_create(self._cv.DISOPTICAL_FLOW_PRESET_MEDIUM)

    def small(self, grey: np.ndarray) -> np.ndarray:
        """Luma ``(H, W)`` as flow sees it: uint8, the short side between 128 and 240."""
        short = min(grey.shape)
        scale = float(np.clip(short, *FLOW_SIDES)) / short
        size = (max(8, round(grey.shape[1] * scale)), max(8, round(grey.shape[0] * scale)))
        how = self._cv.INTER_AREA if scale < 1 else self._cv.INTER_LINEAR
        return np.asarray(self._cv.resize(grey.round().astype(np.uint8), size, interpolation=how))

    def speed(self, before: np.ndarray, after: np.ndarray) -> float:
        """Mean length of the flow of the fastest 5 % of the pixels, in percent of the short side."""
        flow = self._dis.calc(before, after, None)
        length = np.hypot(flow[..., 0], flow[..., 1]).ravel()
        fastest = max(1, int(TOP_SHARE * length.size))
        return float(100 * np.partition(length, -fastest)[-fastest:].mean() / min(before.shape))


class MotionWork:
    """Looks at every frame small, and at 8 a second for flow; keeps a thumbnail and a few numbers per frame."""

    def __init__(self, sample: Sample, names: frozenset[str]) -> None:
        self._sample = sample
        self._flow = Flow() if any(FIGURES[name].flow for name in names) else None
        self._every = max(1, round(sample.fps / FLOW_RATE))
        self._before: np.ndarray | None = None  # last frame that flow has seen
        self._last: torch.Tensor | None = None  # last frame, luma
        self._speeds: list[float] = []
        self._steps = Kept()
        self._thumbs = Kept()
        self._light = Kept()
        self._prints: set[bytes] = set()
        self.num_frames = 0

    def add(self, batch: Frames) -> None:
        for part in split(batch, pieces(batch.frames)):
            self._take(part)

    def _take(self, part: Frames) -> None:
        import torch

        frames = np.ascontiguousarray(part.frames)
        grey = grey_of(torch.from_numpy(frames).float())
        first = grey[:1] if self._last is None else self._last
        steps = torch.cat([first, grey]).diff(dim=0).abs().mean((1, 2)).double().numpy()
        if self._last is None:
            steps[0] = np.nan
        thumbs = _thumbs(grey)
        self._steps.add(steps)
        self._light.add(lightness(thumbs).mean((1, 2)).double().numpy())
        self._thumbs.add((thumbs.flatten(1) - 128).numpy().astype(np.float16))  # to a sixteenth of a grey level
        self._prints.update(hashlib.blake2b(frame, digest_size=16).digest() for frame in frames)
        self._last = grey[-1:].clone()
        if self._flow is not None:
            for number in range(-part.start % self._every, len(frames), self._every):
                small = self._flow.small(grey[number].numpy())
                if self._before is not None:
                    per_second = self._sample.fps / self._every
                    self._speeds.append(self._flow.speed(self._before, small) * per_second)
                self._before = small
        self.num_frames = part.start + len(frames)

    # -- what was seen, put together once, after the last frame

    @cached_property
    def fps(self) -> float:
        return self._sample.fps

    @cached_property
    def borders(self) -> list[int]:
        """First frames of clips 1, 2, ... that are known."""
        return [border for border in self._sample.borders if 0 < border < self.num_frames]

    @cached_property
    def starts(self) -> np.ndarray:
        return clip_starts(self._sample.borders, self.num_frames, self.fps)

    @cached_property
    def apart(self) -> int:
        """Frames in a clip."""
        return max(1, int(np.median(np.diff([*self.starts, self.num_frames]))))

    @cached_property
    def speeds(self) -> tuple[np.ndarray, np.ndarray]:
        """Frames at which a pair ends, and speeds in % of the short side per second, ``(n,)`` each."""
        return self._every * np.arange(1, len(self._speeds) + 1), np.array(self._speeds)

    @property
    def steps(self) -> np.ndarray:
        """Mean difference of each frame to the one before it, ``(T,)`` grey levels; NaN for the first."""
        return self._steps.all()

    @property
    def light(self) -> np.ndarray:
        """Mean L* ``(T,)``."""
        return self._light.all()

    @property
    def thumbs(self) -> np.ndarray:
        """Luma less 128, ``(T, P)`` float16."""
        return self._thumbs.all()

    @cached_property
    def local(self) -> np.ndarray:
        """RMS distance in grey levels of each thumbnail to that of a quarter of a second before (the first: after) it."""
        lag = min(max(1, round(LAG_S * self.fps)), self.num_frames - 1)
        if not lag:
            return np.zeros(1)
        moved = self.thumbs[lag:].astype(np.float32) - self.thumbs[:-lag]
        distance = np.sqrt(np.mean(np.square(moved), axis=1))
        return np.concatenate([distance[:1].repeat(lag), distance])

    @cached_property
    def unique(self) -> int:
        return len(self._prints)

    @cached_property
    def home(self) -> np.ndarray:
        """Thumbnail ``(P,)`` of the reference image, or of the first frame where none is given."""
        import torch

        if self._sample.reference is None:
            return np.asarray(self.thumbs[0], dtype=np.float32)
        grey = grey_of(torch.from_numpy(np.ascontiguousarray(self._sample.reference[None])).float())
        return np.asarray((_thumbs(grey).flatten(1) - 128).numpy()[0])

    def result(self, name: str) -> Score | Skipped:
        return FIGURES[name].of(self) if self.num_frames else Skipped("the video has no frames")


def _thumbs(grey: torch.Tensor) -> torch.Tensor:
    """Luma ``(n, H, W)`` averaged over boxes to a short side of 40 (or as it is, if smaller)."""
    from torch.nn.functional import adaptive_avg_pool2d

    height, width = grey.shape[1:]
    scale = min(1.0, THUMB_SIDE / min(height, width))
    return adaptive_avg_pool2d(grey[:, None], (max(1, round(height * scale)), max(1, round(width * scale))))[:, 0]


# -- figures -----------------------------------------------------------------------------------------------------------


def _speed(seen: MotionWork) -> Score | Skipped:
    at, speeds = seen.speeds
    if not len(speeds):
        return Skipped("too short: flow is taken between frames an eighth of a second apart")
    extra = {"median": float(np.median(speeds)), "highest": float(speeds.max())}
    return Score(float(speeds.mean()), {"speed": (at.tolist(), speeds.tolist())}, extra)


def _retention(seen: MotionWork) -> Score | Skipped:
    at, speeds = seen.speeds
    early, late = at < SHARE * seen.num_frames, at >= (1 - SHARE) * seen.num_frames
    value, low, high = course.retained(speeds, early, late, round(BLOCK_S * FLOW_RATE))
    if math.isnan(value):
        return Skipped("too short, or hardly anything moves at its start: nothing that could be lost")
    extra = dict(low=low, high=high, early=float(np.median(speeds[early])), late=float(np.median(speeds[late])))
    return Score(value, extra=extra)


def _flicker(seen: MotionWork) -> Score | Skipped:
    if seen.num_frames < 3:
        return Skipped("too short: flicker takes three frames")
    return Score(course.flicker(seen.light), {"light": (range(seen.num_frames), seen.light.tolist())})


def _seam(seen: MotionWork) -> Score | Skipped:
    if not seen.borders:
        return Skipped("no clip border lies inside the video")
    ratios = course.seam_ratios(seen.steps, seen.borders)
    good = ratios[~np.isnan(ratios)]
    if not len(good):
        return Skipped("nothing moves beside the seams that they could be compared with")
    series = {"seam": (seen.borders, ratios.tolist()), "step": (range(seen.num_frames), seen.steps.tolist())}
    return Score(float(good.mean()), series, {"worst": float(good.max())})


def _duplicates(seen: MotionWork) -> Score | Skipped:
    distance = course.nearest_elsewhere(seen.thumbs, seen.apart)
    if np.isnan(distance).all():
        return Skipped("shorter than two clips: nothing could come again")
    share = float(course.same(distance, seen.local)[~np.isnan(distance)].mean())
    return Score(share, {"nearest": (range(seen.num_frames), distance.tolist())}, {"apart": float(seen.apart)})


def _unique(seen: MotionWork) -> Score | Skipped:
    return Score(seen.unique / seen.num_frames)


def _copies(seen: MotionWork) -> Score | Skipped:
    if len(seen.starts) < 2:
        return Skipped("only one clip, which begins with the reference")
    begin = int(seen.starts[1])
    away = seen.thumbs[begin:].astype(np.float32) - seen.home
    distance = np.sqrt(np.mean(np.square(away), axis=1))
    series = {"to_reference": (range(begin, seen.num_frames), distance.tolist())}
    return Score(float(course.same(distance, seen.local[begin:]).mean()), series)


def _black(seen: MotionWork) -> Score | Skipped:
    return Score(float((seen.light < BLACK).mean()), extra={"darkest": float(seen.light.min())})


@dataclass(frozen=True)
class Figure:
    """A row of the table of what is told of a video's motion; ``flow``: needs optical flow."""

    of: Callable[[MotionWork], Score | Skipped]
    unit: str
    better: Better
    source: str
    flow: bool = False
    needs: frozenset[Need] = frozenset()


VBENCH = "fastest 5 % of the flow, as in VBench's dynamic degree (whose threshold is 18.75 %/s), by DIS instead of RAFT"
FIGURES: Mapping[str, Figure] = {
    "motion": Figure(_speed, "%/s", Better.NEITHER, VBENCH, flow=True),
    "motion_retained": Figure(
        _retention, "", Better.NEITHER, "median speed of the last 15 % over the first", flow=True
    ),
    "flicker": Figure(_flicker, "L*", Better.LOWER, "mean absolute second difference of mean L*"),
    "seam_ratio": Figure(
        _seam, "", Better.LOWER, "step at clip borders over steps inside", needs=frozenset({Need.CLIPS})
    ),
    "duplicate_share": Figure(_duplicates, "", Better.LOWER, "frames that stand, to a grey level, in another clip too"),
    "unique_share": Figure(_unique, "", Better.HIGHER, "frames that are no exact copy of another"),
    "reference_copies": Figure(
        _copies, "", Better.LOWER, "frames after clip 0 that are the reference, to a grey level"
    ),
    "black_share": Figure(_black, "", Better.LOWER, "frames of mean L* below 2"),
}
NAMES = tuple(FIGURES)


class Motion:
    """One figure of a video's course in time; ``motion`` is its speed in percent of the short side per second.

    Raises:
        UserError: for an unknown figure.
    """

    version = "1"

    def __init__(self, figure: str = "motion") -> None:
        if figure not in FIGURES:
            raise UserError(f"unknown figure {figure!r}: {nearest(figure, FIGURES)}")
        row = FIGURES[figure]
        self.name = figure
        self.unit, self.better, self.needs, self.source = row.unit, row.better, row.needs, row.source

    def key(self) -> str:
        """Every constant that the figure depends on, as JSON."""
        facts = dict(
            thumb=THUMB_SIDE,
            same=course.SAME,
            repeated=course.REPEATED,
            coded=course.CODED,
            black=BLACK,
            share=SHARE,
            window_s=WINDOW_S,
            step=course.LEAST_STEP,
        )
        if FIGURES[self.name].flow:
            facts.update(
                rate=FLOW_RATE, smallest=FLOW_SIDES[0], largest=FLOW_SIDES[1], top=TOP_SHARE, still=course.STILL
            )
        return json.dumps(facts, sort_keys=True)

    def missing(self) -> str | None:
        """OpenCV, where the figure needs flow."""
        absent = FIGURES[self.name].flow and importlib.util.find_spec("cv2") is None
        return f"{self.name}: {EXTRA}" if absent else None

    def start(self, sample: Sample) -> Reading:
        return _SHARED.start(self.name, sample)


_SHARED = Shared(MotionWork)
