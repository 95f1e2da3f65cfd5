"""Suites: what is made and scored, as data. The paper's six, with what it leaves open or says twice settled and named.

A suite says how long its videos are, at which rate, from which inputs, and which profile scores them. Its cases (an
image and prompts each) are read from the published folder layout; those of ``pocket`` are made by the room that has the
pocket world. Knows nothing about models or metrics.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from svi.errors import UserError, nearest
from svi.evaluation.reader import natural

PAPER = "arXiv:2510.09212"
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
PROMPT_FILES = ("prompt.txt", "prompts.txt", "storyboard.yaml")


@dataclass(frozen=True)
class Settled:
    """Something that the sources say in two ways, or not at all, and what is done here."""

    topic: str
    says: tuple[str, ...]
    choice: str


@dataclass(frozen=True)
class Suite:
    """What is made and scored.

    Attributes:
        name, about: for people.
        fps, num_frames: of every video; a longer one is scored up to ``num_frames``.
        clip_s: seconds that one prompt lasts where there are several; None = one prompt for all.
        samples: how many cases there are to be; 0 = as many as are found.
        folder: of the published data set ``vita-video-gen/svi-benchmark`` (its spelling).
        guidance, steps, num_clip_frames: of the models of the paper; None = the model's own.
        drive: what a case needs beside image and prompts: ``audio``, ``pose``.
        profile: of metrics that scores it.
        opening: columns (ids) of the table that its report opens with; none = there is only the whole leaderboard.
        settled: contradictions and gaps of the sources.
        source: where the numbers come from.
    """

    name: str
    about: str
    fps: float
    num_frames: int
    clip_s: float | None
    samples: int
    folder: str
    guidance: float | None = None
    steps: int | None = None
    num_clip_frames: int | None = None
    drive: str | None = None
    profile: str = "paper"
    opening: tuple[str, ...] = ()
    settled: tuple[Settled, ...] = ()
    source: str = PAPER

    @property
    def seconds(self) -> float:
        """Length of a video."""
        return self.num_frames / self.fps


@dataclass(frozen=True)
class Case:
    """What one video is made from.

    Attributes:
        name: unique in its suite.
        image: first frame.
        prompts: a file that ``svi generate --prompts`` reads, or the prompts themselves.
        drive: audio or skeleton file, where the suite has one.
        truth: the video as it should be.
        about: anything else that is known.
    """

    name: str
    image: Path
    prompts: Path | tuple[str, ...]
    drive: Path | None = None
    truth: Path | None = None
    about: Mapping[str, Any] = field(default_factory=dict)


_FPS = Settled(
    "frames per second",
    (f"{PAPER} A.2: 16", "the published test script writes 24 (16 commented out): its 801 frames last 33 s"),
    "16; the rate decides which frames the dynamic degree looks at, so it is stored with every score",
)
_FILM = Settled(
    "length with five motion frames",
    ("50 s of 10 clips", "10 clips of 81 frames that overlap by 5 are 765 frames = 47.8 s"),
    "length is counted in frames: as many clips as it takes, scored up to the suite's length",
)
_COUNT_50 = Settled(
    "videos of the 50 s tracks",
    (f"{PAPER} A.2: 152", "every dynamic degree in Table 1 is a whole number over 142"),
    "as many as the folder holds; n stands in every cell",
)
_COUNT_250 = Settled(
    "which 14 videos of the 250 s tracks",
    (f"{PAPER} A.2: 14 of the samples, not which",),
    "the first 14 by name, unless --samples names others",
)
_PROMPTS = Settled(
    "prompts of a creative video",
    (f"{PAPER} A.1 and the project's log: 10 for 50 s, 50 for 250 s", f"{PAPER} A.2: 50 and 100"),
    "one prompt per 5 s clip, so the first 10 or 50; what follows in the file is not used",
)
_WINDOW = Settled(
    "how videos are scored",
    ("VBench on whole videos (dynamic degree is one yes or no per video)", "VBench: from 5 s on, VBench-Long"),
    "whole videos as the paper did; profile vbench-long gives the other",
)
_CODEC = Settled(
    "what is scored",
    ("not stated; the published scripts write H.264 (imageio quality 8, 5 for dance)",),
    "the file that the method gives; our own runs write H.264 at CRF 16, and the codec is stored with every score",
)
_TALK = Settled(
    "length and rate of talk",
    (f"{PAPER}: 300 s", "the script makes 50 clips of 81 frames at 25 fps: 162 s, with every joint shown twice"),
    "300 s at 25 fps: 7,500 frames",
)
_DANCE = Settled(
    "length and rate of dance",
    (f"{PAPER}: 50 s", "the script makes 801 frames and writes them at 25 fps: 32 s", "its inputs are 24 fps"),
    "50 s at 25 fps: 1,250 frames",
)
_BESIDE = Settled(
    "picture of talk and dance",
    ("the scripts write reference, skeleton and video side by side",),
    "the video alone: crop such files before they are scored",
)


def _track(
    name: str, about: str, num_frames: int, clip_s: float | None, samples: int, folder: str, *settled: Settled
) -> Suite:
    """One of the paper's four unconditional suites: Wan 2.1 14B, clips of 81 frames, 50 steps, guidance 5."""
    return Suite(
        name=name,
        about=about,
        fps=16.0,
        num_frames=num_frames,
        clip_s=clip_s,
        samples=samples,
        folder=folder,
        guidance=5.0,
        steps=50,
        num_clip_frames=81,
        settled=(_FPS, _FILM, *settled, _WINDOW, _CODEC),
    )


_LIST = (
    _track("consistent-50s", "one prompt, one scene, 50 s", 801, None, 152, "consisent_video_gen", _COUNT_50),
    _track("consistent-250s", "one prompt, one scene, 250 s", 4001, None, 14, "consisent_video_gen", _COUNT_250),
    _track("creative-50s", "a prompt every 5 s, 50 s", 801, 5.0, 152, "creative_video_gen", _COUNT_50, _PROMPTS),
    _track(
        "creative-250s", "a prompt every 5 s, 250 s", 4001, 5.0, 14, "creative_video_gen_longer", _COUNT_250, _PROMPTS
    ),
    Suite(
        name="talk-300s",
        about="a person talking to given sound, 300 s",
        fps=25.0,
        num_frames=7500,
        clip_s=None,
        samples=10,
        folder="talk",
        guidance=2.0,
        steps=50,
        num_clip_frames=81,
        drive="audio",
        profile="talk",
        settled=(_TALK, _BESIDE, _CODEC),
    ),
    Suite(
        name="dance-50s",
        about="a person dancing to a given skeleton, 50 s",
        fps=25.0,
        num_frames=1250,
        clip_s=None,
        samples=10,
        folder="dance",
        guidance=2.0,
        steps=50,
        num_clip_frames=81,
        drive="pose",
        profile="dance",
        settled=(_DANCE, _BESIDE, _CODEC),
    ),
    Suite(
        name="pocket",
        about="held-out worlds of the pocket world, whose true frames are known: a miniature of Table 1",
        fps=16.0,
        num_frames=801,
        clip_s=None,
        samples=32,
        folder="",
        profile="fast-cpu",
        opening=(  # right things, the truth's pixels, change of the look, motion, joints
            "pocket_truth",
            "psnr",
            "ssim",
            "look",
            "look_colour",
            "look_sharpness",
            "motion_retained",
            "seam_ratio",
        ),
        source="svi.pocket.world",
    ),
)
SUITES: dict[str, Suite] = {suite.name: suite for suite in _LIST}


def get_suite(name: str) -> Suite:
    """A suite by name.

    Raises:
        UserError: for an unknown one; the nearest is named.
    """
    if name not in SUITES:
        raise UserError(f"unknown suite {name!r}: {nearest(name, SUITES)}")
    return SUITES[name]


def read_cases(root: Path, suite: Suite, *, names: Sequence[str] = (), limit: int | None = None) -> list[Case]:
    """The cases of a suite in the published layout: a folder per sample with an image and a file of prompts.

    Args:
        root: the data set, or the suite's folder in it.
        names: only these samples, in this order; none = the suite's number of them in the order of their names.
        limit: at most so many.

    Raises:
        UserError: where the folder is another one, or a sample lacks something.
    """
    folder = root / suite.folder if suite.folder and (root / suite.folder).is_dir() else root
    if not folder.is_dir():
        raise UserError(f"{folder} does not exist: give the folder of the data set, which holds {suite.folder}")
    found = sorted((path for path in folder.iterdir() if _is_sample(path)), key=lambda path: natural(path.name))
    if not found:
        raise UserError(f"{folder} holds no samples: each is a folder with an image and {PROMPT_FILES[0]}")
    by_name = {path.name: path for path in found}
    for name in names:
        if name not in by_name:
            raise UserError(f"{folder} has no sample {name!r}: {nearest(name, by_name)}")
    chosen = [by_name[name] for name in names] or found[: suite.samples or None]
    return [_case(path, suite) for path in chosen[:limit]]


def _is_sample(path: Path) -> bool:
    return path.is_dir() and not path.name.startswith(".") and any(_images(path))


def _images(folder: Path) -> list[Path]:
    """Pictures of a sample, ``frame.*`` first, as the published script takes them."""
    found = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in IMAGE_SUFFIXES]
    return sorted(found, key=lambda path: (path.stem != "frame", path.suffix != ".jpg"))


def _case(folder: Path, suite: Suite) -> Case:
    prompts = next((folder / name for name in PROMPT_FILES if (folder / name).is_file()), None)
    if prompts is None:
        raise UserError(f"{folder} has no {PROMPT_FILES[0]}: say what happens in the video")
    kinds = {"audio": (".wav", ".mp3", ".flac"), "pose": (".mp4",)}.get(suite.drive or "", ())
    drive = next((path for path in sorted(folder.iterdir()) if path.suffix.lower() in kinds), None)
    if suite.drive is not None and drive is None:
        raise UserError(f"{folder} has no {suite.drive} ({' '.join(kinds)}), which {suite.name} needs")
    truth = folder / "video.mp4"
    if suite.drive == "pose":  # published: image.png, pose.mp4, video.mp4
        drive = folder / "pose.mp4" if (folder / "pose.mp4").is_file() else drive
    return Case(folder.name, _images(folder)[0], prompts, drive, truth if truth.is_file() else None)
