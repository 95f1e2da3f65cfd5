"""Where a model runs, in which precision, how it fits and what makes it fast: each choice carries its reason.

Choices are made from facts of the machine and sizes of the model, before anything is loaded (:func:`choose`), and carried out
on the loaded parts (:func:`prepare_transformer`, :func:`prepare_encoders`). What a user fixes is taken or refused, never
replaced. Knows torch's devices and types and a ladder of memory profiles; nothing about files or clips.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from svi.backends.memory import GIB, Estimate, Home, Layout, ModelSizes, Window, estimate
from svi.errors import UserError, nearest
from svi.speed import SPEEDS, Speed, get_speed

DTYPES: dict[str, torch.dtype] = {
    "fp32": torch.float32,
    "float32": torch.float32,
    "bf16": torch.bfloat16,
    "bfloat16": torch.bfloat16,
    "fp16": torch.float16,
    "float16": torch.float16,
}
Part = Literal["transformer", "transformer_2", "vae", "text_encoder", "image_encoder"]
MEMORY = ("auto", "resident", "offload", "low")
NO_QUANTISATION = "none"
# Of what is free, so much is planned with: the estimate is one, and a screen wants its share.
SHARE = 0.95


@dataclass(frozen=True)
class Rung:
    """One way to lay out a model, named by the profile it belongs to.

    Attributes:
        memory: profile.
        layout: see :class:`~svi.backends.memory.Layout`; types and bytes are filled in by :func:`choose`.
        quantise: how weights are stored, unless the user says otherwise; None = as they are.
        summary: why, for people.
    """

    memory: str
    layout: Layout
    summary: str
    quantise: str | None = None


# From the roomiest down; ``auto`` takes the first that fits, a profile by name the first of its rungs that does.
ON_DEVICE = (
    Rung("resident", Layout("device", "device", "device"), "everything stays on the device"),
    Rung("resident", Layout("device", "visit", "visit"), "encoders come to the device when they are needed"),
    Rung("resident", Layout("device", "visit", "visit", in_turn=True), "one expert at a time is on the device"),
    Rung("resident", Layout("device", "cpu", "visit", in_turn=True), "the text encoder works in RAM"),
    Rung("offload", Layout("visit", "visit", "visit"), "the transformer's blocks wait in RAM and come one by one"),
    Rung("offload", Layout("visit", "cpu", "visit"), "blocks come one by one, the text encoder works in RAM"),
    Rung("low", Layout("visit", "cpu", "visit"), "as offload, with weights in 8 bits, which changes pictures", "fp8"),
)
IN_RAM = (
    Rung("resident", Layout(on_device=False), "a CPU computes where the weights are"),
    Rung("low", Layout(on_device=False), "weights in 8 bits, which changes pictures", "fp8"),
)


@dataclass(frozen=True)
class Machine:
    """What a device and its machine have to give now.

    Attributes:
        device_bytes: free on the device; 0 for a CPU, whose memory is the RAM.
        ram_bytes: main memory that can be had; None where the system does not say.
    """

    device_bytes: int
    ram_bytes: int | None

    @classmethod
    def look(cls, device: torch.device) -> Machine:
        """The facts of this machine."""
        free = int(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else 0
        return cls(free, free_ram_bytes())

    def fits(self, needed: Estimate) -> bool:
        """Whether ``needed`` is there, on the device and in RAM."""
        ram_fits = self.ram_bytes is None or needed.ram <= SHARE * self.ram_bytes
        return needed.peak <= SHARE * self.device_bytes and ram_fits


def free_ram_bytes() -> int | None:
    """Main memory that can be had without pushing anything out; None where the system does not say."""
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):
        return None


@dataclass(frozen=True)
class Placement:
    """Choices made for a model.

    Attributes:
        device: where all parts compute, but for those that ``layout`` keeps on the CPU.
        dtype: of the transformer and the text encoder. The VAE and the image encoder always stay in fp32: every
            clip passes through them, and what bf16 loses there adds up over a long video.
        attention: attention implementation of the transformer, by its diffusers name.
        reasons: why, by the name of the choice.
        memory: profile.
        layout: where the parts live.
        quantise: how the transformer's weights are stored (key of ``quantise.WAYS``); None = as they are.
        speed: what may be done to go faster.
        disk: folder for blocks that are not to take RAM.
        estimate: what it takes, where the model's sizes were known.
    """

    device: torch.device
    dtype: torch.dtype = torch.float32
    attention: str = "native"
    reasons: Mapping[str, str] = field(default_factory=dict)
    memory: str = "resident"
    layout: Layout = field(default_factory=Layout)
    quantise: str | None = None
    speed: Speed = SPEEDS["reference"]
    disk: Path | None = None
    estimate: Estimate | None = None

    def home(self, part: Part) -> torch.device:
        """Where the weights of a part are put when they are loaded."""
        layout = self.layout
        homes: dict[str, Home] = {
            "transformer": layout.transformer,
            "transformer_2": "visit" if layout.in_turn else layout.transformer,
            "vae": "device",
            "text_encoder": layout.text,
            "image_encoder": layout.image,
        }
        return self.device if homes[part] == "device" else torch.device("cpu")

    def lines(self) -> list[str]:
        """One line per choice, for logs: ``device cpu: no CUDA device found``."""
        chosen = {"device": self.device, "dtype": str(self.dtype).removeprefix("torch."), "attention": self.attention}
        if self.quantise is not None:
            chosen["quantisation"] = self.quantise
        if self.speed.name != "reference":
            chosen["speed"] = self.speed.name
        if self.estimate is not None:
            chosen["memory"] = f"{self.memory}, estimated peak {self.estimate.line()}"
        return [f"{name} {value}: {self.reasons.get(name, 'default')}" for name, value in chosen.items()]


def choose(
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    *,
    memory: str = "auto",
    speed: str | Speed = "reference",
    attention: str | None = None,
    quantise: str | None = None,
    text: Home | None = None,
    compile: bool | None = None,
    cache_threshold: float | None = None,
    merge_loras: bool | None = None,
    disk: Path | None = None,
    sizes: ModelSizes | None = None,
    window: Window | None = None,
    machine: Machine | None = None,
    download: bool = False,
) -> Placement:
    """Fill in what the caller leaves open.

    Args:
        device, dtype: None = the best there is.
        memory: ``auto``, or a profile: ``resident``, ``offload``, ``low``.
        speed: preset, or one that was put together by hand.
        attention, compile, cache_threshold, merge_loras: knobs of ``speed``; None = as the preset has them.
        quantise: how weights are stored; ``none`` = as they are, also in a profile that would quantise.
        text: where the text encoder works: ``device``, ``visit`` (there for the moment), ``cpu``; None = as the profile says.
        disk: folder in which blocks wait instead of RAM.
        sizes, window: of the model and its clips; None = nothing is estimated, and the model is resident.
        machine: what there is; None = look.
        download: whether an attention kernel that was asked for may be fetched.

    Raises:
        UserError: for a device this machine does not have, a name nobody knows, or a model that does not fit in any way.
    """
    where, why_device = _device(device)
    what, why_dtype = _dtype(dtype, where)
    reasons = {"device": why_device, "dtype": why_dtype}
    knobs = dict(attention=attention, compile=compile, cache_threshold=cache_threshold, merge_loras=merge_loras)
    wanted = get_speed(speed, **knobs)
    wanted, reasons["speed"] = _speed(wanted, where, asked=bool(compile))
    name, reasons["attention"] = _attention(wanted.attention, where, what, download)
    rung, needed, reasons["memory"] = lay_out(
        where, what, memory, quantise=quantise, text=text, disk=disk, sizes=sizes, window=window, machine=machine
    )
    way = rung.quantise
    if way is not None:
        from svi.backends.quantise import check, get_way

        check(way, where)
        why = "asked for" if quantise == way else f"the profile {rung.memory} has it"
        reasons["quantisation"] = f"{why}; {get_way(way).summary}; over many clips what it loses may add up"
    return Placement(where, what, name, reasons, rung.memory, rung.layout, way, wanted, disk, needed)


def _speed(speed: Speed, device: torch.device, *, asked: bool) -> tuple[Speed, str]:
    """The preset as this device can have it. Leaving out what gains nothing changes no picture and no name."""
    if speed.compile and not asked and device.type != "cuda":
        return replace(
            speed, compile=False
        ), f"{speed.summary}; blocks stay uncompiled, which gains nothing on {device.type}"
    if speed.compile:
        from svi.backends.compile import obstacle

        reason = obstacle(device)
        if reason is not None and asked:
            raise UserError(f"the blocks cannot be compiled: {reason}; leave compiling out")
        if reason is not None:
            return replace(speed, compile=False), f"{speed.summary}; blocks stay uncompiled: {reason}"
    return speed, speed.summary


def _attention(asked: str, device: torch.device, dtype: torch.dtype, download: bool) -> tuple[str, str]:
    from svi.backends import attention

    return attention.choose(asked, device, dtype, download=download)


# -- memory ------------------------------------------------------------------------------------------------------------


def rungs(
    device: torch.device, dtype: torch.dtype, *, quantise: str | None = None, text: Home | None = None, experts: int = 1
) -> Iterator[Rung]:
    """The ladder for a device, roomiest first, with types and single wishes filled in."""
    from svi.backends.quantise import get_way

    if text is not None and text not in get_args(Home):
        raise UserError(f"the text encoder works on the device, visits it, or stays on the cpu, not {text!r}")
    for rung in ON_DEVICE if device.type == "cuda" else IN_RAM:
        way = rung.quantise if quantise is None else None if quantise == NO_QUANTISATION else quantise
        stored = float(dtype.itemsize) if way is None else get_way(way).bytes
        layout = replace(rung.layout, dtype_bytes=dtype.itemsize, block_bytes=stored)
        layout = replace(layout, in_turn=layout.in_turn and experts > 1)
        if text is not None:
            layout = replace(layout, text=text)
        yield replace(rung, layout=layout, quantise=way)


def lay_out(
    device: torch.device,
    dtype: torch.dtype,
    memory: str = "auto",
    *,
    quantise: str | None = None,
    text: Home | None = None,
    disk: Path | None = None,
    sizes: ModelSizes | None = None,
    window: Window | None = None,
    machine: Machine | None = None,
) -> tuple[Rung, Estimate | None, str]:
    """The rung to stand on, what it takes, and why; arguments as in :func:`choose`.

    Raises:
        UserError: for a name nobody knows, and for a model that does not fit in any way.
    """
    if memory not in MEMORY:
        raise UserError(f"unknown memory profile {memory!r}: {nearest(memory, MEMORY)}")
    ladder = list(rungs(device, dtype, quantise=quantise, text=text, experts=1 if sizes is None else sizes.experts))
    ladder = [rung for rung in ladder if memory in ("auto", rung.memory)]
    if disk is not None and device.type == "cuda":
        ladder = [rung for rung in ladder if rung.layout.transformer == "visit"]
    if not ladder:
        raise UserError(f"{memory} is not for {device.type} (where the parts lie, they work): take resident, or low")
    if sizes is None:
        return ladder[0], None, "asked for" if memory != "auto" else ladder[0].summary
    there = Machine.look(device) if machine is None else machine
    needs = [(rung, _needs(sizes, window or Window(), rung, disk)) for rung in ladder]
    for rung, needed in needs:
        if there.fits(needed):
            return rung, needed, rung.summary if memory == "auto" else f"asked for; {rung.summary}"
    rung, needed = needs[-1] if device.type == "cuda" else needs[0]
    short = _short(needed, there)
    if memory != "auto" or device.type != "cuda":
        # An estimate is no proof: what was asked for is tried, and so is a CPU, which can swap.
        return rung, needed, f"{rung.summary}; this may be too much: {short}"
    raise UserError(
        f"{sizes.title} does not fit here: even the profile {rung.memory} needs {needed.line()}, {short}; take a smaller "
        "--size or fewer --frames, close what else uses the card, or try --device cpu"
    )


def _needs(sizes: ModelSizes, window: Window, rung: Rung, disk: Path | None) -> Estimate:
    needed = estimate(sizes, window, rung.layout)
    if disk is None:
        return needed
    blocks = sizes.experts * sizes.transformer.num_layers * sizes.transformer.block_parameters * rung.layout.block_bytes
    return replace(needed, ram=needed.ram - int(blocks))


def _short(needed: Estimate, there: Machine) -> str:
    """What is missing: ``7.6 GiB are free on the device``."""
    parts = []
    if needed.peak > SHARE * there.device_bytes:
        parts.append(f"{there.device_bytes / GIB:.1f} GiB are free on the device")
    if there.ram_bytes is not None and needed.ram > SHARE * there.ram_bytes:
        parts.append(f"{there.ram_bytes / GIB:.1f} GiB of RAM are free")
    return " and ".join(parts)


# -- carrying it out ---------------------------------------------------------------------------------------------------


def prepare_transformer(
    transformer: Any, placement: Placement, *, team: Any | None = None, say: Callable[[str], None] = lambda line: None
) -> None:
    """Make a loaded transformer run as ``placement`` says. Once, after its LoRAs were attached or merged; in place.

    Args:
        transformer: with its weights at ``placement.home("transformer")``.
        team: :class:`~svi.backends.parallel.Team`, where several processes share its tokens.
        say: called with one line where something was done.
    """
    from svi.backends import attention, compile, offload, parallel, quantise, step_cache

    if placement.quantise is not None:
        count = quantise.quantise(transformer, placement.quantise, placement.dtype)
        say(f"{count} matrices stored as {placement.quantise}")
    attention.install(transformer, placement.attention)
    if team is not None:
        parallel.split_tokens(transformer, team)
    # The order matters: hooks that skip a block lie inside those that move it.
    if placement.speed.cache_threshold is not None:
        step_cache.StepCache(transformer, placement.speed.cache_threshold)
    if placement.speed.compile:
        compile.compile_blocks(transformer, placement.device, whole=_bare(placement, team))
    if placement.layout.transformer == "visit" or placement.disk is not None:
        offload.stream_blocks(transformer, placement.device, disk=placement.disk)


def _bare(placement: Placement, team: Any | None) -> bool:
    """Whether blocks carry no hooks; on a CPU they fold text padding by its length, which breaks a graph as well."""
    moved = placement.layout.transformer == "visit" or placement.disk is not None
    hooked = moved or placement.quantise == "fp8" or placement.speed.cache_threshold is not None
    return placement.device.type == "cuda" and not hooked and (team is None or team.degree == 1)


def prepare_encoders(placement: Placement, *, text_encoder: Any | None, image_encoder: Any | None) -> None:
    """Let encoders that live in RAM visit the device for each call, where ``placement`` says so."""
    from svi.backends.offload import visit

    for encoder, home in ((text_encoder, placement.layout.text), (image_encoder, placement.layout.image)):
        if encoder is not None and home == "visit" and placement.device.type != "cpu":
            visit(encoder, placement.device)


# -- device and type ---------------------------------------------------------------------------------------------------


def _device(asked: str | torch.device | None) -> tuple[torch.device, str]:
    if asked is None:
        if torch.cuda.is_available():
            return torch.device("cuda"), f"found {torch.cuda.get_device_name()}"
        return torch.device("cpu"), "no CUDA device found"
    try:
        device = torch.device(asked)
    except RuntimeError:
        raise UserError(f"unknown device {asked!r}: use cpu, cuda, cuda:0 ...") from None
    count = torch.cuda.device_count() if device.type == "cuda" else 0
    if device.type == "cuda" and (device.index or 0) >= count:
        raise UserError(
            f"device {asked} is not there: torch sees {count} CUDA device(s); leave the device out or use cpu"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError("device mps is not there: leave the device out or use cpu")
    return device, "asked for"


def _dtype(asked: str | torch.dtype | None, device: torch.device) -> tuple[torch.dtype, str]:
    if isinstance(asked, torch.dtype):
        if not asked.is_floating_point:
            raise UserError(f"a model cannot run in {asked}: use fp32 or bf16")
        return asked, "asked for"
    if asked is not None:
        if asked.lower() not in DTYPES:
            raise UserError(f"unknown dtype {asked!r}: {nearest(asked, DTYPES)}")
        return DTYPES[asked.lower()], "asked for"
    if device.type == "cuda" and torch.cuda.is_bf16_supported():
        return torch.bfloat16, "the card computes in bf16, which the model was trained in"
    return torch.float32, f"exact on {device.type}; bf16 has to be asked for"
