"""A clip, planned and made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from svi.conditioning.memory import ClipMemory


@dataclass(frozen=True)
class ClipPlan:
    """Everything that decides one clip, apart from what came before it.

    Attributes:
        index: position in the video, from 0.
        prompt, negative_prompt: text and its counterpart for guidance.
        seed: seed of this clip's noise, already ``run seed + stride * index`` (+ the retake's offset).
        num_frames, height, width: the window, in frames and pixels.
        steps, guidance, shift, solver: sampling settings.
        loras: strength per loaded LoRA name; empty = the strengths of the run.
        beat, scene: where in the storyboard the clip comes from, for display and provenance.
    """

    index: int
    prompt: str
    negative_prompt: str
    seed: int
    num_frames: int
    height: int
    width: int
    steps: int
    guidance: float
    shift: float = 5.0
    solver: str = "euler"
    loras: Mapping[str, float] = field(default_factory=dict)
    beat: int = 0
    scene: int = 0


@dataclass(frozen=True)
class Clip:
    """One made clip.

    Attributes:
        plan: what was asked.
        latents: ``(1, C, F, h, w)`` fp32 normalised, after the last step.
        frames: ``(T, H, W, 3)`` uint8, all decoded frames including those that overlap the previous clip.
        overlap: how many of ``frames`` at the front are not the clip's own: they repeat the previous clip (0 for the first clip).
        overlap_end: the same at the back: they repeat the next clip, where that one is made first.
        memory: what the next clip needs.
        timing: seconds spent by stage (``condition_s``, ``denoise_s``, ``decode_s``).
    """

    plan: ClipPlan
    latents: Tensor
    frames: Tensor
    overlap: int
    memory: ClipMemory
    timing: Mapping[str, float] = field(default_factory=dict)
    overlap_end: int = 0

    @property
    def new_frames(self) -> Tensor:
        """Frames that the video gains by this clip, ``(T - overlap - overlap_end, H, W, 3)`` uint8."""
        return self.frames[self.overlap : self.frames.shape[0] - self.overlap_end]
