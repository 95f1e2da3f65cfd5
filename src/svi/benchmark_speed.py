"""How fast a model runs here: seconds per forward pass, step and clip, its VAE, memory, and the share of what the card can do.

Needs no weights: real shapes with random numbers take the same time as trained ones. A stock step of diffusers is measured on
the same weights in the same process, before anything is done to make ours faster. Knows the classes of diffusers as `backends`
hands them out; nothing about the command line.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from svi.backends import placement as placing
from svi.backends.base import ModelInfo
from svi.backends.memory import GIB, IMAGE_TOKENS, KNOWN_MODELS, TEXT_TOKENS, ModelSizes, Window
from svi.backends.random_weights import random_transformer, random_vae
from svi.backends.stock import run_steps
from svi.backends.timing import Marks, matmul_flops, normal, peak_memory, timed
from svi.backends.wan import WanBackend, load_backend
from svi.condition import ClipCondition
from svi.errors import UserError, nearest
from svi.generation.sampler import denoise
from svi.geometry import Geometry
from svi.schedule import shifted_sigmas

SHIFT, GUIDANCE, CLIP_STEPS = 5.0, 5.0, 50  # of the published SVI settings
# On a CPU the 14B model would take days; the same architecture at this size takes seconds.
REDUCED_HEADS, REDUCED_LAYERS, REDUCED_WINDOW = 4, 4, Window(128, 192, 17)
Say = Callable[[str], None]


@dataclass(frozen=True)
class Subject:
    """What is measured.

    Attributes:
        title: for people; says so where it is a reduced model.
        sizes, window: of the model and of a clip.
        transformer, vae: the parts.
    """

    title: str
    sizes: ModelSizes
    window: Window
    transformer: Any
    vae: Any

    @property
    def tokens(self) -> int:
        """Tokens of a clip."""
        return self.sizes.transformer.tokens(self.sizes.latent_shape(self.window))

    @property
    def forward_flops(self) -> int:
        """Of one forward pass."""
        return self.sizes.transformer.forward_flops(self.tokens)


@dataclass
class Report:
    """What was measured. Seconds are medians; None = not measured.

    Attributes:
        title, device, dtype: what, where, in which type.
        choices: lines of the placement.
        tokens, forward_flops: of a clip, of one forward pass.
        ceiling_flops: floating-point operations per second of the best matrix product measured here.
        forward_s, step_s, encode_s, decode_s: one branch; a step with guidance (two branches); the VAE on a clip.
        stock_step_s: a step of the stock pipeline on the same weights.
        peak_bytes: most memory, by phase; on a CPU of the whole process so far.
        estimated_peak_bytes: what was estimated beforehand, where it was.
        steps: of a clip.
    """

    title: str
    device: str
    dtype: str
    choices: list[str]
    tokens: int
    forward_flops: int
    ceiling_flops: float
    forward_s: float
    step_s: float
    encode_s: float
    decode_s: float
    stock_step_s: float | None = None
    peak_bytes: dict[str, int] = field(default_factory=dict)
    estimated_peak_bytes: int | None = None
    steps: int = CLIP_STEPS

    @property
    def clip_s(self) -> float:
        """Seconds of a clip: one encoding, all steps, one decoding."""
        return self.encode_s + self.steps * self.step_s + self.decode_s

    @property
    def achieved_flops(self) -> float:
        """Floating-point operations per second in a forward pass."""
        return self.forward_flops / self.forward_s

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data, derived values included."""
        share = self.achieved_flops / self.ceiling_flops
        return {**asdict(self), "clip_s": self.clip_s, "achieved_flops": self.achieved_flops, "share_of_ceiling": share}

    def lines(self) -> list[str]:
        """A page for people."""
        share = self.achieved_flops / self.ceiling_flops
        lines = [
            f"{self.title} on {self.device}, {self.dtype}",
            *(f"  {line}" for line in self.choices),
            f"work of a forward pass: {quantity(self.forward_flops)}FLOP ({self.tokens:,} tokens)",
            f"matrix products here reach {quantity(self.ceiling_flops)}FLOP/s",
            f"forward pass {self.forward_s:.3f} s: {quantity(self.achieved_flops)}FLOP/s, {share:.0%} of that",
            f"step with guidance {self.step_s:.3f} s",
        ]
        if self.stock_step_s is not None:
            gain = self.stock_step_s / self.step_s
            lines.append(f"step of the stock pipeline {self.stock_step_s:.3f} s: ours is {gain:.2f}x as fast")
        lines.append(f"VAE: encoding a clip {self.encode_s:.2f} s, decoding it {self.decode_s:.2f} s")
        lines.append(f"a clip of {self.steps} steps: {self.clip_s:.1f} s")
        peaks = ", ".join(f"{name} {value / GIB:.2f} GiB" for name, value in self.peak_bytes.items())
        lines.append(f"peak memory: {peaks}")
        if self.estimated_peak_bytes:
            lines.append(f"  estimated beforehand: {self.estimated_peak_bytes / GIB:.2f} GiB")
        return lines


def quantity(number: float) -> str:
    """``1.69 P``: three digits and a prefix."""
    for factor, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
        if number >= factor:
            return f"{number / factor:.3g} {prefix}"
    return f"{number:.3g} "


# -- what to measure ---------------------------------------------------------------------------------------------------


def subject_of(
    model: str,
    *,
    random_weights: bool,
    size: tuple[int, int] | None = None,
    num_frames: int | None = None,
    **choices: Any,
) -> tuple[Subject, placing.Placement]:
    """What is to be measured, loaded, and how it is to run.

    Args:
        model: a name in ``KNOWN_MODELS`` for random weights, else what ``svi.load`` takes. On a CPU a known shape is
            reduced, since its forward pass would take hours.
        size: ``(width, height)``; num_frames: per clip; None = the model's.
        choices: arguments of :func:`svi.backends.placement.choose`.

    Raises:
        UserError: for an unknown model, a window that it cannot have, and step caching with random weights.
    """
    where = placing.choose(choices.get("device"), choices.get("dtype"))
    if not random_weights:
        subject = _loaded(model, where)
        subject = replace(subject, window=_window(subject.sizes, subject.window, size, num_frames))
        return subject, placing.choose(**choices)
    sizes, usual, title = known_sizes(model, where.device)
    sizes = replace(sizes, text_parameters=0, image_parameters=0)  # encoders are no part of what is measured
    window = _window(sizes, usual, size, num_frames)
    placement = placing.choose(**choices, sizes=sizes, window=window)
    if placement.speed.cache_threshold is not None:
        raise UserError(
            "random weights cannot tell how many steps a cache skips: measure draft on a model with weights"
        )
    generator = torch.Generator(placement.device).manual_seed(0)
    transformer = random_transformer(sizes.transformer, placement.home("transformer"), placement.dtype, generator)
    vae = random_vae(sizes.vae, placement.device, generator)
    return Subject(title, sizes, window, transformer, vae), placement


def _window(sizes: ModelSizes, usual: Window, size: tuple[int, int] | None, num_frames: int | None) -> Window:
    width, height = (usual.width, usual.height) if size is None else size
    vae = sizes.vae
    geometry = Geometry(vae.z_dim, vae.scale_factor_temporal, vae.scale_factor_spatial, sizes.transformer.patch_size)
    try:
        geometry.check_size(height, width)
        geometry.check_num_frames(num_frames or usual.num_frames)
    except ValueError as error:
        raise UserError(str(error)) from None
    return Window(height, width, num_frames or usual.num_frames)


def known_sizes(name: str, device: torch.device) -> tuple[ModelSizes, Window, str]:
    """Sizes, window and title of what is measured under ``name``: on a CPU a reduced model of the same architecture.

    Raises:
        UserError: for a name nobody knows.
    """
    if name not in KNOWN_MODELS:
        raise UserError(
            f"the shapes of {name!r} are not known: {nearest(name, KNOWN_MODELS)}, or give a folder with weights"
        )
    sizes, usual = KNOWN_MODELS[name]
    title = f"{sizes.title}, random weights"
    if device.type != "cpu":
        return sizes, usual, title
    small = reduced(sizes)
    shape = small.transformer
    return (
        small,
        REDUCED_WINDOW,
        f"{title}, reduced to {shape.num_layers} layers of width {shape.width} (this is a CPU)",
    )


def reduced(sizes: ModelSizes) -> ModelSizes:
    """The same architecture, small enough for a CPU."""
    shape = sizes.transformer
    width = REDUCED_HEADS * shape.attention_head_dim
    small = replace(
        shape,
        num_attention_heads=REDUCED_HEADS,
        num_layers=REDUCED_LAYERS,
        ffn_dim=shape.ffn_dim * width // shape.width,
        added_kv_proj_dim=width if shape.added_kv_proj_dim else None,
    )
    vae = replace(sizes.vae, base_dim=16, decoder_base_dim=16 if sizes.vae.decoder_base_dim else None)
    return replace(sizes, transformer=small, vae=vae)


def _loaded(model: str, placement: placing.Placement) -> Subject:
    backend = load_backend(model, device=placement.device, dtype=placement.dtype)
    assert isinstance(backend, WanBackend)
    sizes = ModelSizes.of_modules(model, {"transformer": backend.transformer, "vae": backend.vae})
    g = backend.geometry
    return Subject(model, sizes, Window(g.height, g.width, g.num_frames), backend.transformer, backend.vae)


# -- measuring ---------------------------------------------------------------------------------------------------------


def measure(
    subject: Subject,
    placement: placing.Placement,
    *,
    steps: int = 3,
    repeats: int = 3,
    stock: bool = True,
    vae: bool = True,
    ceiling: float | None = None,
    stock_step_s: float | None = None,
    say: Say = lambda line: None,
) -> Report:
    """Measure ``subject``; its transformer is prepared as ``placement`` says, which cannot be undone.

    Args:
        steps: denoising steps timed, after one to warm up.
        repeats: of every other measurement, of which the median counts, after one to warm up.
        stock: whether to measure a step of the stock pipeline first.
        vae: whether to measure the VAE; its times are 0 otherwise.
        ceiling, stock_step_s: known already from the same process.
        say: told what is being done.
    """
    device, dtype = placement.device, placement.dtype
    if ceiling is None:
        say("measuring matrix products")
        ceiling = matmul_ceiling(subject, device, dtype)
    peaks: dict[str, int] = {}
    if stock and stock_step_s is None:
        say("measuring the stock pipeline")
        with peak_memory("stock step", device, peaks):
            stock_step_s = stock_step(subject, device, steps)
    backend = prepared(subject, placement, say)
    condition = random_condition(subject, device)
    noisy = normal(condition.latent_shape, device, 9)
    say("measuring forward passes")
    with peak_memory("forward pass", device, peaks):
        forward_s = forward_seconds(backend, condition, noisy, repeats)
    say("measuring steps")
    with peak_memory("step", device, peaks):
        step_s = our_step(backend, condition, noisy, steps)
    encode_s = decode_s = 0.0
    if vae:
        say("measuring the VAE")
        encode_s, decode_s = vae_seconds(backend, subject, noisy, repeats, peaks)
    return Report(
        subject.title,
        torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU",
        str(dtype).removeprefix("torch."),
        placement.lines()[2:],
        subject.tokens,
        subject.forward_flops,
        ceiling,
        forward_s,
        step_s,
        encode_s,
        decode_s,
        stock_step_s,
        peaks,
        None if placement.estimate is None else placement.estimate.peak,
    )


def matmul_ceiling(subject: Subject, device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations per second of the best matrix product in the model's own shapes."""
    width, ffn = subject.sizes.transformer.width, subject.sizes.transformer.ffn_dim
    return matmul_flops(device, dtype, [(subject.tokens, width, ffn), (subject.tokens, ffn, width)])


def prepared(subject: Subject, placement: placing.Placement, say: Say) -> WanBackend:
    """The model as ``placement`` has it run; its transformer is changed for good."""
    placing.prepare_transformer(subject.transformer, placement, say=say)
    info = ModelInfo(subject.title, defaults=asdict(subject.window))
    return WanBackend(subject.transformer, subject.vae, None, None, None, info=info, placement=placement)


@torch.inference_mode()
def forward_seconds(backend: WanBackend, condition: ClipCondition, noisy: Tensor, repeats: int) -> float:
    """Median seconds of one forward pass."""
    level = torch.tensor([0.9], device=backend.device)
    return timed(lambda: backend.velocity(noisy, level, condition), backend.device, repeats)


def random_condition(subject: Subject, device: torch.device) -> ClipCondition:
    """A condition of the right shapes: first latent frame known, a text of 512 tokens, image features where they are read."""
    shape, sizes = subject.sizes.transformer, subject.sizes
    frames, height, width = sizes.latent_shape(subject.window)
    values = normal((1, sizes.vae.z_dim, frames, height, width), device, 1)
    known = torch.zeros(1, sizes.vae.scale_factor_temporal, frames, height, width, device=device)
    known[:, :, 0] = 1
    text = normal((1, TEXT_TOKENS, shape.text_dim), device, 2)
    image = normal((1, IMAGE_TOKENS, shape.image_dim), device, 3) if shape.image_dim else None
    return ClipCondition(values, known, text, image)


def our_step(backend: WanBackend, condition: ClipCondition, noise: Tensor, steps: int) -> float:
    """Median seconds of a step with guidance, of ``steps`` after one to warm up."""
    marks = Marks(backend.device)
    negative = normal(condition.text.shape, backend.device, 4)
    sigmas = shifted_sigmas(max(CLIP_STEPS, steps + 1), SHIFT)[: steps + 2]
    denoise(
        backend.velocity,
        condition,
        negative,
        noise=noise,
        sigmas=sigmas,
        guidance=GUIDANCE,
        on_step=lambda step, of: marks(),
    )
    return marks.median()


def stock_step(subject: Subject, device: torch.device, steps: int) -> float:
    """Median seconds of a step of the stock pipeline, of ``steps`` after one to warm up."""
    condition, marks, window = random_condition(subject, device), Marks(device), subject.window
    run_steps(
        subject.transformer,
        subject.vae,
        condition,
        normal(condition.text.shape, device, 4),
        size=(window.num_frames, window.height, window.width),
        steps=steps + 1,
        guidance=GUIDANCE,
        shift=SHIFT,
        after_step=marks,
    )
    return marks.median()


def vae_seconds(
    backend: WanBackend, subject: Subject, latents: Tensor, repeats: int, peaks: dict[str, int]
) -> tuple[float, float]:
    """Median seconds of encoding and of decoding a clip."""
    window, device = subject.window, backend.device
    video = normal((1, 3, window.num_frames, window.height, window.width), device, 5).clamp(-1, 1)
    with peak_memory("encode", device, peaks):
        encode_s = timed(lambda: backend.encode_video(video), device, repeats)
    with peak_memory("decode", device, peaks):
        decode_s = timed(lambda: [None for _ in backend.decode(latents)], device, repeats)
    return encode_s, decode_s
