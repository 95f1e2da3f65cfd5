"""The keyword arguments that the functions of ``svi.api`` share, as typed dictionaries. Data only."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from os import PathLike
from typing import TYPE_CHECKING, Any, TypedDict

from svi.backends.base import Backend
from svi.errors import nearest
from svi.generation.events import Listener, silent
from svi.prepare import Sampling

if TYPE_CHECKING:
    from svi.generation.images import Source

Model = str | PathLike[str] | Backend
ShouldStop = Callable[[], bool]


class Pictures(TypedDict, total=False):
    """How pictures are made. Left out: the storyboard's value, else the model's, else the preset's.

    Keys:
        preset: member of the SVI family, see ``svi.PRESETS``.
        seed: same seed, same video; clip k is seeded ``seed + 42 k``.
        steps: denoising steps per clip.
        guidance: how strictly prompts are followed.
        solver: see ``svi.solvers.SOLVERS``.
        negative_prompt: what should not be seen.
    """

    preset: str | None
    seed: int | None
    steps: int | None
    guidance: float | None
    solver: str | None
    negative_prompt: str | None


class Window(TypedDict, total=False):
    """The shape of a clip.

    Keys:
        num_frames: frames per clip, ``4 n + 1``; left out: what the model was trained on.
        size: ``(width, height)`` in pixels; left out: derived from the image.
    """

    num_frames: int | None
    size: tuple[int, int] | None


class Onwards(TypedDict, total=False):
    """For going on from a video of the user's own.

    Keys:
        anchor: image that presets with an anchor hold on to; left out: the video's first frame.
        new_only: whether the new video begins behind the user's, instead of holding it.
    """

    anchor: Source | None
    new_only: bool


class Running(TypedDict, total=False):
    """How a model runs (:func:`svi.backends.placement.choose`). Left out: what the machine has, nothing approximated.

    Keys:
        memory: ``auto`` (on a GPU unless said otherwise), ``resident``, ``offload`` or ``low``.
        speed: ``reference``, ``balanced`` or ``draft``, see ``svi.speed.SPEEDS``.
        attention, compile, cache_threshold, merge_loras: single knobs of ``speed``.
        quantise: how weights are stored (``fp8``, ``int8``, ``nf4`` ...); ``none`` = as they are, in every profile.
        text: where the text encoder works: ``device``, ``visit`` or ``cpu``.
        disk: folder in which blocks wait instead of RAM.
    """

    memory: str | None
    speed: str | None
    attention: str | None
    compile: bool | None
    cache_threshold: float | None
    merge_loras: bool | None
    quantise: str | None
    text: str | None
    disk: str | PathLike[str] | None


class Machine(Running, total=False):
    """Where the work is done and how, and who watches.

    Keys:
        device, dtype: of the model; left out: the best there is (``svi doctor`` tells the reasons).
        download: whether a hub model that is not here may be fetched.
        text_cache: whether embeddings of prompts are kept on disk, so that the text encoder is loaded for new ones only;
            left out: where that encoder is large.
        on_event: called with every event (``svi.generation.events``).
        should_stop: asked after every step; True ends early with finished clips intact.
    """

    device: str | None
    dtype: str | None
    download: bool
    text_cache: bool | None
    on_event: Listener
    should_stop: ShouldStop | None


class GenerateOptions(Pictures, Window, Onwards, Machine, total=False):
    """Options of ``generate`` and ``stream``."""


class BranchOptions(Pictures, Machine, total=False):
    """Options of ``branch``."""


@dataclass(frozen=True)
class Place:
    """:class:`Machine` with its defaults."""

    device: str | None = None
    dtype: str | None = None
    download: bool = False
    text_cache: bool | None = None
    on_event: Listener = silent
    should_stop: ShouldStop | None = None
    running: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Place:
        """From options that may be None, which is as good as left out; those of :class:`Running` stay together."""
        running = {name: options[name] for name in Running.__annotations__ if options.get(name) is not None}
        rest = {name: value for name, value in options.items() if name not in Running.__annotations__}
        return cls(**rest, running=running)


def split(
    options: GenerateOptions | BranchOptions, known: type[GenerateOptions] | type[BranchOptions] = GenerateOptions
) -> tuple[Sampling, Place]:
    """Options as objects.

    Raises:
        TypeError: for a name that is not in ``known``; the message names the nearest.
    """
    given: dict[str, Any] = dict(options)
    _check_names(given, known)
    place = {name: given.pop(name) for name in Machine.__annotations__ if name in given}
    return Sampling(**given), Place.of(place)


def place_of(options: Machine) -> Place:
    """:class:`Machine` as an object.

    Raises:
        TypeError: for an unknown name; the message names the nearest.
    """
    _check_names(options, Machine)
    return Place.of(options)


def _check_names(given: Iterable[str], known: type) -> None:
    for name in given:
        if name in known.__annotations__:
            continue
        if name in BranchOptions.__annotations__:
            raise TypeError(f"{name!r} is fixed when a run is made: svi.branch goes on with another")
        if name in GenerateOptions.__annotations__:
            raise TypeError(f"{name!r} is fixed when a run is made: start a new run to change it")
        raise TypeError(f"unknown argument {name!r}: {nearest(name, known.__annotations__)}")
