"""Error-recycling fine-tuning: draw which errors a sample gets, inject them, and harvest those that the model makes.

Paper section 4, in the words of :mod:`svi.flow` (1 = noise):

    noisy  = (1 - sigma) * (clean + E_vid) + sigma * (noise + E_noi)
    values of the motion latents += E_img
    target = (noise + E_noi) - clean

A training step in these words::

    plan = draw(config, banks, sigma, generator).to(clean)
    noise = inject(noise, plan.noise)
    noisy = flow.interpolate(inject(clean, plan.video), noise, sigma)
    predicted = model(noisy, sigma, condition.with_error(plan.image))
    errors = harvest(predicted, target(clean, noise), sigma, plan, how=config.harvest)
    store(banks, errors, admitted(errors, config, generator), generator)

All randomness comes from the generator, and a sample takes the same number of draws whatever it gets, so that runs which differ
in a probability or in what their banks hold see the same draws. Knows nothing about models, losses, data or ranks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import Tensor

from svi import flow
from svi.bank_plan import StoragePlan, plan_storage
from svi.error_bank import BANKS, BankName, ErrorBanks, index, locate
from svi.errors import UserError
from svi.schedule import SigmaBuckets

Kind = Literal["image", "video", "noise"]
KINDS: tuple[Kind, ...] = ("image", "video", "noise")
Harvest = Literal["increment", "accumulated"]


@dataclass(frozen=True)
class RecyclingConfig:
    """What is injected how often, and what is kept. The defaults are those of the published Film script.

    Attributes:
        clean_prob: share of samples that get no error at all (paper and Film 0.5; Shot, Talk and Dance 0.2).
        image_error_prob, video_error_prob, noise_error_prob: of the other samples, how many get this error, each drawn on its
            own (published 0.9, 0.9, 0.01; Dance's scripts 0.99 for the first two).
        image_error_frames: consecutive latent frames of the condition that get an image error (Film, Shot and Talk 3, Dance 1).
            They are as many consecutive frames of a video error, from a random place.
        image_error_start: first of those frames in the condition: 0 where the window opens with the motion latents (all
            published training code), 1 behind the anchor latent of latent hand-off.
        image_error_sigmas: least and largest noise level of the buckets that image errors come from (published: all).
        image_error_strength, video_error_strength, noise_error_strength: factor on an injected error (published 1).
        strength_jitter: that factor times a uniform draw from [1 - jitter, 1 + jitter], for each error (published
            ``error_modulate_factor``, 0).
        harvest: see :func:`harvest`.
        clean_buffer_update_prob: share of the clean samples whose errors enter the banks.
    """

    clean_prob: float = 0.5
    image_error_prob: float = 0.9
    video_error_prob: float = 0.9
    noise_error_prob: float = 0.01
    image_error_frames: int = 3
    image_error_start: int = 0
    image_error_sigmas: tuple[float, float] = (0.0, 1.0)
    image_error_strength: float = 1.0
    video_error_strength: float = 1.0
    noise_error_strength: float = 1.0
    strength_jitter: float = 0.0
    harvest: Harvest = "increment"
    clean_buffer_update_prob: float = 0.1

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name.endswith("_prob") and not 0 <= value <= 1:
                raise UserError(f"{field.name} is a probability and must lie in 0 to 1, not {value}")
        if self.image_error_frames < 1 or self.image_error_start < 0:
            raise UserError(
                "image_error_frames must be at least 1 and image_error_start at least 0, not "
                f"{self.image_error_frames} and {self.image_error_start}; for no image error set image_error_prob to 0"
            )
        if not 0 <= self.strength_jitter <= 1:
            raise UserError(f"strength_jitter must lie in 0 to 1, not {self.strength_jitter}")
        low, high = self.image_error_sigmas
        if not 0 <= low <= high <= 1:
            raise UserError(f"image_error_sigmas must be two rising noise levels in 0 to 1, not {low} and {high}")
        if self.harvest not in ("increment", "accumulated"):
            raise UserError(f"harvest is 'increment' or 'accumulated', not {self.harvest!r}")

    def prob(self, kind: Kind) -> float:
        """Probability of that error, for a sample that is not clean."""
        return float(getattr(self, f"{kind}_error_prob"))

    def strength(self, kind: Kind) -> float:
        """Factor on that error, before jitter."""
        return float(getattr(self, f"{kind}_error_strength"))

    @property
    def banks(self) -> tuple[BankName, ...]:
        """Banks that something can be drawn from: the video bank serves image errors too."""
        drawn = {"video": max(self.video_error_prob, self.image_error_prob), "noise": self.noise_error_prob}
        return tuple(name for name in BANKS if drawn[name] > 0 and self.clean_prob < 1)


def plan_banks(config: RecyclingConfig, shape: tuple[int, int, int, int], **limits: Any) -> StoragePlan:
    """How the banks of a configuration are stored: :func:`~svi.bank_plan.plan_storage`, for what can be drawn from them.

    Args:
        config: which errors are injected.
        shape: ``(C, F, h, w)`` of the latents.
        limits: ``bank_memory``, ``capacity``, ``storage``, ``ranks``, ``spill_memory`` ..., passed on.

    Raises:
        UserError: if nothing fits into the limits, or image errors do not fit into the latent frames.
    """
    last = config.image_error_start + config.image_error_frames
    if config.image_error_prob > 0 and last > shape[1]:
        raise UserError(
            f"image errors reach to latent frame {last - 1}, but a clip has {shape[1]} (counted from 0): lower "
            "image_error_frames, or make the clips longer"
        )
    only_images = config.video_error_prob == 0 and config.noise_error_prob == 0
    frames = config.image_error_frames if only_images and config.image_error_prob > 0 else None
    return plan_storage(shape, banks=len(config.banks), injected_frames=frames, **limits)


@dataclass(frozen=True)
class Pick:
    """One banked error for one sample.

    Attributes:
        bucket, slot: the entry, in the video bank (image and video errors) or the noise bank.
        start: its first latent frame that is used (image errors; else 0).
        strength: factor.
    """

    bucket: int
    slot: int
    start: int
    strength: float


@dataclass(frozen=True)
class Choice:
    """Which errors a batch gets: numbers only, so that ranks which share banks can ask each other for the entries.

    Attributes:
        clean: per sample, whether it was drawn to stay clean.
        bucket: per sample, the bucket of its noise level.
        picks: per kind and sample, the error, or None.
        missing: per kind, the samples that were to get one but found no entry.
    """

    clean: tuple[bool, ...]
    bucket: tuple[int, ...]
    picks: Mapping[Kind, tuple[Pick | None, ...]]
    missing: Mapping[Kind, tuple[int, ...]]


@dataclass(frozen=True)
class ErrorPlan:
    """The errors of a batch; a tensor is None where no sample has that error, and zero for samples without.

    Attributes:
        choice: what was drawn.
        image: ``(B, C, F, h, w)`` to add to the condition's values (``ClipCondition.with_error``).
        video: ``(B, C, F, h, w)`` to add to the clean latents.
        noise: ``(B, C, F, h, w)`` to add to the noise.
    """

    choice: Choice
    image: Tensor | None = None
    video: Tensor | None = None
    noise: Tensor | None = None

    def to(self, like: Tensor) -> ErrorPlan:
        """The same plan with the dtype and on the device of ``like``."""
        image, video, noise = (None if t is None else t.to(like) for t in (self.image, self.video, self.noise))
        return ErrorPlan(self.choice, image, video, noise)


def draw(config: RecyclingConfig, banks: ErrorBanks, sigma: Tensor, generator: torch.Generator) -> ErrorPlan:
    """Errors for each sample of a batch, each drawn on its own: fp32, on the CPU.

    Args:
        config: probabilities and strengths.
        banks: where errors come from. An empty bucket gives none; the plan's ``choice.missing`` says so.
        sigma: ``(B,)`` noise levels.
        generator: takes ``B * 11`` draws.

    Raises:
        ValueError: for banks whose buckets are shared out over ranks: :func:`choose` with the fills of all ranks, then
            :func:`fetch` on each.
    """
    if any(bank.plan.shards > 1 for _, bank in banks.items()):
        raise ValueError(
            "buckets are shared out over ranks: use choose() with the fills of all, then fetch() on each rank"
        )
    bucket = banks.buckets.bucket_of(sigma.detach().cpu()).tolist()
    frames = 1 if banks.video is None else banks.video.plan.frames
    return fetch(choose(config, bucket, banks.fills, banks.buckets, frames, generator), banks, config)


DRAWS = 11  # clean; per kind: whether, strength, which entry; image: first frame


def choose(
    config: RecyclingConfig,
    bucket: Sequence[int],
    fills: Mapping[str, Sequence[int]],
    buckets: SigmaBuckets,
    frames: int,
    generator: torch.Generator,
) -> Choice:
    """The random part of :func:`draw`.

    Args:
        config: probabilities and strengths.
        bucket: of each sample.
        fills: entries per bucket of the ``video`` and the ``noise`` bank, of all ranks that share them.
        buckets: noise level of each bucket.
        frames: latent frames of an entry.
        generator: takes ``len(bucket) * 11`` draws.
    """
    size = (len(bucket), DRAWS)
    rows = torch.rand(size, generator=generator, device=generator.device, dtype=torch.float64).tolist()
    picks: dict[Kind, list[Pick | None]] = {kind: [] for kind in KINDS}
    missing: dict[Kind, list[int]] = {kind: [] for kind in KINDS}
    for sample, (own, row) in enumerate(zip(bucket, rows, strict=True)):
        for number, kind in enumerate(KINDS):
            whether, jitter, which = row[2 + 3 * number : 5 + 3 * number]
            wanted = row[0] >= config.clean_prob and whether < config.prob(kind)
            within = _within_reach(kind, own, fills, buckets, config) if wanted else ()
            picks[kind].append(None)
            if entries := sum(within):
                start = index(row[1], frames - config.image_error_frames + 1) if kind == "image" else 0
                strength = config.strength(kind) * (1 + config.strength_jitter * (2 * jitter - 1))
                picks[kind][-1] = Pick(*locate(index(which, entries), within), start, strength)
            elif wanted:
                missing[kind].append(sample)
    return Choice(
        clean=tuple(row[0] < config.clean_prob for row in rows),
        bucket=tuple(bucket),
        picks={kind: tuple(chosen) for kind, chosen in picks.items()},
        missing={kind: tuple(samples) for kind, samples in missing.items()},
    )


def _within_reach(
    kind: Kind, own: int, fills: Mapping[str, Sequence[int]], buckets: SigmaBuckets, config: RecyclingConfig
) -> tuple[int, ...]:
    """Entries per bucket that an error of that kind may come from: its own bucket, or, for images, a range of levels."""
    if kind != "image":
        return tuple(n if bucket == own else 0 for bucket, n in enumerate(fills.get(kind, ())))
    low, high = config.image_error_sigmas
    levels = zip(fills.get("video", ()), buckets.sigmas.tolist(), strict=False)
    return tuple(n if low <= min(level, 1.0) <= high else 0 for n, level in levels)  # 1 may be rounded up


def fetch(choice: Choice, banks: ErrorBanks, config: RecyclingConfig) -> ErrorPlan:
    """The tensors of a choice, from banks that :func:`plan_banks` planned.

    Entries that lie with other ranks are left out, so that the sum over the ranks is the whole plan.
    """
    tensors: dict[Kind, Tensor | None] = dict.fromkeys(KINDS)
    first, count = config.image_error_start, config.image_error_frames
    for kind in KINDS:
        bank = banks.noise if kind == "noise" else banks.video
        if bank is None or all(pick is None for pick in choice.picks[kind]):
            continue
        total = torch.zeros(len(choice.clean), *bank.plan.shape)
        for sample, pick in enumerate(choice.picks[kind]):
            if pick is None or bank.plan.owner(pick.bucket) != bank.rank:
                continue
            error = bank.entry(pick.bucket, pick.slot) * pick.strength
            if kind == "image":
                total[sample, :, first : first + count] = error[:, pick.start : pick.start + count]
            else:
                total[sample] = error
        tensors[kind] = total
    return ErrorPlan(choice, tensors["image"], tensors["video"], tensors["noise"])


def inject(tensor: Tensor, error: Tensor | None) -> Tensor:
    """``tensor + error`` in the dtype and on the device of ``tensor``; ``tensor`` itself without an error."""
    return tensor if error is None else tensor + error.to(tensor)


def target(clean: Tensor, noise: Tensor) -> Tensor:
    """Velocity to learn: from the clean latents to the noise *with* its error (paper section 4.4).

    It points away from the clean latents, not from those with a video error: the model is to correct that. One step along
    it leaves ``(1 - sigma) * E_vid`` in the estimate of the clean latents.
    """
    return flow.velocity(clean, noise)


@dataclass(frozen=True)
class Errors:
    """What a step harvested, per sample.

    Attributes:
        video: ``(B, C, F, h, w)`` fp32, at the clean end.
        noise: ``(B, C, F, h, w)`` fp32, at the noise end.
        bucket: ``(B,)`` int64.
        clean: ``(B,)`` bool: the sample was drawn to stay clean.
    """

    video: Tensor
    noise: Tensor
    bucket: Tensor
    clean: Tensor


@torch.no_grad()
def harvest(predicted: Tensor, target: Tensor, sigma: Tensor, plan: ErrorPlan, *, how: Harvest = "increment") -> Errors:
    """Errors that a prediction makes, with ``r = predicted - target``.

    ``increment``, what the published code does: the difference of the one-step estimates that follow the prediction and the
    target, ``E_vid = -sigma * r`` and ``E_noi = (1 - sigma) * r``. A video error that was injected does not come back.

    ``accumulated``, the letter of the paper (4.2 c): the estimate of the clean latents minus the clean latents,
    ``E_vid = -sigma * r + (1 - sigma) * (injected video error)``. Errors can pile up in the bank. The noise end has no such
    term: the paper measures it from the target's own estimate.

    Args:
        predicted, target: velocities ``(B, C, F, h, w)``.
        sigma: ``(B,)`` noise levels.
        plan: what was injected.
        how: which of the two.
    """
    residual = predicted.float() - target.to(predicted.device).float()
    level = flow.expand(sigma, residual)
    video, noise = -level * residual, (1 - level) * residual
    if how == "accumulated" and plan.video is not None:
        video += (1 - level) * plan.video.to(video)
    return Errors(video, noise, torch.tensor(plan.choice.bucket), torch.tensor(plan.choice.clean))


def admitted(errors: Errors, config: RecyclingConfig, generator: torch.Generator) -> Tensor:
    """Which samples' errors enter the banks, ``(B,)`` bool: all but the clean ones, of which some. Takes B draws.

    Published as of Film-Opt (``clean_buffer_update_prob`` 0.1): errors of clean inputs, taken whole, dilute the banks.
    """
    size = errors.clean.shape
    draws = torch.rand(size, generator=generator, device=generator.device, dtype=torch.float64).cpu()
    return ~errors.clean.cpu() | (draws < config.clean_buffer_update_prob)


def store(banks: ErrorBanks, errors: Errors, admitted: Tensor, generator: torch.Generator) -> None:
    """Put the admitted samples' errors into the banks that exist and hold their bucket. Takes two draws per error and bank.

    Raises:
        ValueError: for errors of another shape than the banks', or not finite; samples before that one are stored.
    """
    for sample in admitted.nonzero().flatten().tolist():
        bucket = int(errors.bucket[sample])
        for name, bank in banks.items():
            if bank.plan.owner(bucket) == bank.rank:
                bank.add(getattr(errors, name)[sample], bucket, generator)
