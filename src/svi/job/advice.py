"""What experience says against the settings of a run: one table, one pure function, nothing refused.

Each rule stands with its source. Knows nothing about how advice is shown or stored.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from svi.backends.base import Backend, ModelInfo
from svi.backends.catalogue import LORAS
from svi.backends.lora import MERGED
from svi.backends.placement import NO_QUANTISATION
from svi.conditioning.policy import get_policy
from svi.generation.manifest import RunSettings
from svi.generation.plans import clip_plans
from svi.geometry import Geometry
from svi.prepare import Prepared

MANY_CLIPS = 6  # half a minute at 81 frames: there users begin to see what quantised weights lose
LOOKED_AT = 1000  # clips of a run whose prompts and seeds are looked at
SHORT_PROMPT = 12  # words; Wan was trained with captions of 80 to 100 words
LARGE_AREA = 200_000  # pixels; what was trained on smaller pictures was taught with captions of a few words
DISTILLED = re.compile(r"lightx2v|lightning|causvid|accvid|turbo|fusionx|distill|dmd|lcm|\b[248][-_ ]?steps?\b", re.I)
WORD = re.compile(r"[\u3040-\u30ff\u4e00-\u9fff]|\w+")  # Chinese and Japanese are written without spaces
EXACT_VAE = "float32"


@dataclass(frozen=True)
class Facts:
    """What advice depends on.

    Attributes:
        settings: of the run; how the model runs is among them once it is loaded.
        geometry: of the model, with the window that it was trained on.
        clips: how many there are to be, None = endless.
        prompts, seeds: of the clips, of the first ``LOOKED_AT`` at most.
        stored: how the files of the weights hold their numbers, where they are quantised.
        vae_dtype, vae_tiled: how the VAE computes; empty and False before it is loaded.
        merged: whether LoRAs are part of the weights already.
    """

    settings: RunSettings
    geometry: Geometry
    clips: int | None = 1
    prompts: Sequence[str] = ()
    seeds: Sequence[int] = ()
    stored: str | None = None
    vae_dtype: str = ""
    vae_tiled: bool = False
    merged: bool = False

    @property
    def trained(self) -> str:
        """``832x480``."""
        return f"{self.geometry.width}x{self.geometry.height}"

    @property
    def size(self) -> str:
        """Of the pictures, ``832x480``."""
        return f"{self.settings.width}x{self.settings.height}"

    @property
    def area(self) -> float:
        """Of a picture, as a multiple of the trained area."""
        return self.settings.width * self.settings.height / (self.geometry.width * self.geometry.height)

    @property
    def shape(self) -> float:
        """How far the sides' ratio is from the trained one, as a factor of at least 1."""
        ratio = (self.settings.width / self.settings.height) / (self.geometry.width / self.geometry.height)
        return max(ratio, 1 / ratio)

    @property
    def long(self) -> bool:
        """Whether there are enough clips for small losses to add up."""
        return self.clips is None or self.clips >= MANY_CLIPS

    @property
    def quantised(self) -> str:
        """How weights are quantised, by the run or in their files; empty where they are not."""
        return self.settings.quantise if self.settings.quantise != NO_QUANTISATION else self.stored or ""

    @property
    def distilled(self) -> str:
        """Names of LoRAs that are made for few steps, as their names say."""
        return ", ".join(name for name in self.settings.loras if DISTILLED.search(name))

    @property
    def has_svi(self) -> bool:
        """Whether the preset was published with LoRAs of its own."""
        return bool(LORAS.get(self.settings.preset))

    @property
    def untaught(self) -> bool:
        """Whether no LoRA tells the base what the preset's conditioning means."""
        taught = any(not DISTILLED.search(name) for name in self.settings.loras)
        return self.has_svi and not (taught or self.merged)

    @property
    def from_pixels(self) -> bool:
        """Whether every clip goes through the VAE into the next."""
        return get_policy(self.settings.preset).hand_off == "pixel"

    @property
    def twins(self) -> tuple[int, int] | None:
        """The first two clips that start from the same noise."""
        seen: dict[int, int] = {}
        for clip, seed in enumerate(self.seeds):
            if seed in seen:
                return seen[seed], clip
            seen[seed] = clip
        return None

    @property
    def short(self) -> str:
        """The shortest prompt, where it says too little."""
        if self.geometry.width * self.geometry.height < LARGE_AREA or not self.prompts:
            return ""
        shortest = min(self.prompts, key=_words)
        return shortest if _words(shortest) < SHORT_PROMPT else ""


@dataclass(frozen=True)
class Rule:
    """One piece of experience.

    Attributes:
        name: of the rule.
        applies: whether it speaks against what is asked for.
        text: what it says; ``{f.size}`` and the like are filled in.
        source: who found it.
    """

    name: str
    applies: Callable[[Facts], object]
    text: str
    source: str = field(compare=False)


# Sources: [tips] pinned advice of SVI's authors (issue 51 of their repository) and docs/svi/tips.md; [comfyui] docs/svi/comfyui.md;
# [devlog] docs/DevLog.md; [users] threads in that repository, in those of the ComfyUI wrapper, and in users' notes (wanx).
RULES: tuple[Rule, ...] = (
    Rule(
        "untaught",
        lambda f: f.untaught,
        "preset {f.settings.preset} without its LoRA: a base does not know this conditioning, and pictures fall apart; give "
        "--lora NAME or FILE, or take preset wan",
        "docs/experiments.md: shot-untrained ends at 9 dB, wan at 12, shot at 27",
    ),
    Rule(
        "frames",
        lambda f: f.settings.num_frames != f.geometry.num_frames,
        "{f.settings.num_frames} frames per clip: the model was trained on {f.geometry.num_frames}, and other lengths cost "
        "colour and motion",
        "[tips]: 81 frames only, 121 degrade colours",
    ),
    Rule(
        "area",
        lambda f: not 0.5 <= f.area <= 1.5,
        "{f.size} has {f.area:.1f} times the area the model was trained on ({f.trained}): expect less",
        "[tips]: 480p is far more stable than 720p",
    ),
    Rule(
        "shape",
        lambda f: f.shape > 1.5,
        "{f.size} is far from the shape the model was trained on ({f.trained}): widen upright pictures first",
        "[tips]: keep near 480x832, outpaint verticals",
    ),
    Rule(
        "seed",
        lambda f: f.twins,
        "clips {f.twins[0]} and {f.twins[1]} start from the same noise: what it leaves in pictures adds up; leave the seeds of "
        "beats out, and every clip gets its own",
        "[devlog], [tips]: different seeds per clip. [users] of other tools disagree; nobody compared",
    ),
    Rule(
        "quantised",
        lambda f: f.quantised and f.long,
        "weights in {f.quantised} over many clips: what they lose adds up; SVI's authors ask for 16-bit weights",
        "[tips]: fp16 weights, 'otherwise we cannot ensure the long-term quality'",
    ),
    Rule(
        "vae",
        lambda f: f.from_pixels and (f.vae_tiled or f.vae_dtype not in ("", EXACT_VAE)),
        "every clip passes through a VAE that works in {f.vae_dtype}, in tiles: {f.vae_tiled}; its errors add up from clip to clip: "
        "use it whole and in fp32",
        "[devlog]: tiled bf16 VAE and static backgrounds accumulate errors",
    ),
    Rule(
        "attention",
        lambda f: "sage" in f.settings.attention,
        "attention in 8 bits ({f.settings.attention}): users see flashes between clips, which go away with --attention best",
        "[users]",
    ),
    Rule(
        "distilled",
        lambda f: f.has_svi and f.distilled,
        "step-distilled LoRA beside SVI ({f.distilled}): costs motion and prompt following; best found is 0.5 on the high-noise "
        "expert and 1.0 on the low-noise one",
        "[comfyui]",
    ),
    Rule(
        "distilled steps",
        lambda f: f.distilled and (f.settings.steps > 16 or f.settings.guidance > 2),
        "{f.distilled} is made for 4 to 8 steps at guidance 1 to 2, this run has {f.settings.steps} at "
        "{f.settings.guidance:g}: set --steps and --guidance",
        "[tips]: CFG 1 to 2 with distillation",
    ),
    Rule(
        "prompt",
        lambda f: f.short,
        "prompt {f.short!r} says little: tell in each what is seen and how it moves, in some 80 words as the model was trained",
        "[tips]: describe state and motion per clip; Wan's own prompt extension writes 80 to 100 words",
    ),
)


def advice(facts: Facts) -> tuple[str, ...]:
    """What the rules say, one line each; mostly nothing."""
    return tuple(rule.text.format(f=facts) for rule in RULES if rule.applies(facts))


def facts_of(prepared: Prepared, geometry: Geometry, info: ModelInfo, backend: Backend | None = None) -> Facts:
    """The facts of a job; ``backend``: once it is loaded."""
    clips = prepared.target
    planned = LOOKED_AT if clips is None else min(clips, LOOKED_AT)
    plans = list(itertools.islice(clip_plans(prepared.storyboard, prepared.settings), planned))
    vae = getattr(getattr(backend, "backend", backend), "vae", None)
    return Facts(
        prepared.settings,
        geometry,
        clips,
        tuple(plan.prompt for plan in plans),
        tuple(plan.seed for plan in plans),
        info.stored,
        str(getattr(vae, "dtype", "")).removeprefix("torch."),
        bool(getattr(vae, "use_tiling", False)),
        bool(info.defaults.get(MERGED)),
    )


def _words(text: str) -> int:
    return len(WORD.findall(text))
