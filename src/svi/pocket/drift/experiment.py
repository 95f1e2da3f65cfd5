"""What a drift experiment compares: arms in scenes over held-out worlds. Plain, frozen data; no models, no files but YAML.

Every arm sees the same worlds with the same noise, so that differences are taken world by world.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from svi.conditioning.policy import MECHANISMS, POLICIES, get_policy
from svi.errors import UserError, nearest
from svi.pocket.scene import CAMERAS, FAMILIES, LIGHTINGS
from svi.solvers import SOLVERS

Count = Annotated[int, Field(strict=True, ge=1)]
Natural = Annotated[int, Field(strict=True, ge=0)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$", max_length=60)]
Value = TypeVar("Value")


class _Plain(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Scene(_Plain):
    """Which worlds: held-out ones of a kind. What is None is drawn."""

    family: str | None = Field("things", description=f"{', '.join(FAMILIES)}.")
    camera: str | None = Field("stands", description=f"{', '.join(CAMERAS)}.")
    lighting: str | None = Field("day", description=f"{', '.join(LIGHTINGS)}.")
    num_objects: Literal[1, 2, 3] | None = Field(None, description="Things in the world.")
    events: bool = Field(False, description="A story of beats; false: everything goes on as it began.")
    worlds: Count | None = Field(None, description="How many; None = as the experiment says.")


class Arm(_Plain):
    """What makes the clips."""

    source: Literal["model", "truth", "vae", "copy-clips", "ping-pong", "copy-reference"] = Field(
        "model",
        description="A model, or a control: the truth itself, truth through the VAE, and three ways to fool a measure "
        "(the first clip again and again, forwards and backwards, the reference as every frame).",
    )
    preset: str = Field("wan", description="How clips hand over; a control takes its clip lengths from it.")
    loras: dict[str, float] = Field({}, description="Strength by name or file.")
    model: str | None = Field(None, description="None = the experiment's.")
    steps: Count | None = None
    guidance: Annotated[float, Field(ge=0)] | None = None
    solver: str | None = None
    seed_stride: Natural | None = Field(
        None, description="Of the noise seed from clip to clip; 0 = the same noise again."
    )
    scenes: tuple[str, ...] = Field((), description="Only in these scenes; none named = in all.")


class Gain(_Plain):
    """The error gain: a known error in the frames that a clip continues, and the error of the clip that comes out."""

    worlds: Count = 8
    kinds: tuple[Literal["colour", "blur", "noise", "own"], ...] = ("colour", "blur", "noise", "own")
    sizes: tuple[Annotated[float, Field(gt=0, le=64)], ...] = Field((4.0, 8.0, 16.0), description="RMS in grey levels.")


class Experiment(_Plain):
    """Arms x scenes x worlds x clips."""

    name: Name
    about: str = ""
    model: str = "pocket"
    scenes: dict[Name, Scene] = Field(min_length=1)
    arms: dict[Name, Arm] = Field(min_length=1)
    pairs: tuple[tuple[str, str], ...] = Field(
        (), description="Arms to compare, world by world; none = all with the first."
    )
    worlds: Count = 16
    clips: Count = 50
    seed: Natural = Field(0, description="Which held-out worlds, and the noise.")
    sheets: Natural = Field(4, description="Worlds per scene that get a contact sheet.")
    videos: Natural = Field(0, description="Worlds per scene that get a video per arm.")
    gain: Gain | None = None

    def cut(
        self,
        *,
        worlds: int | None = None,
        clips: int | None = None,
        arms: tuple[str, ...] = (),
        model: str | None = None,
    ) -> Experiment:
        """The same with fewer or more of something.

        Raises:
            UserError: for an arm that it does not have.
        """
        for arm in arms:
            if arm not in self.arms:
                raise UserError(f"{self.name} has no arm {arm!r}: {nearest(arm, self.arms)}")
        changes: dict[str, Any] = {"worlds": worlds, "clips": clips, "model": model}
        if worlds is not None:
            changes["scenes"] = {name: kind.model_copy(update={"worlds": None}) for name, kind in self.scenes.items()}
        if arms:
            kept = {name: arm for name, arm in self.arms.items() if name in arms}
            changes |= {"arms": kept, "pairs": tuple(pair for pair in self.pairs if set(pair) <= set(kept))}
        return self.model_copy(update={name: value for name, value in changes.items() if value is not None})

    def compared(self) -> tuple[tuple[str, str], ...]:
        """The pairs of arms (a, b) whose difference a - b is reported."""
        first, *others = self.arms
        return self.pairs or tuple((name, first) for name in others)

    def worlds_in(self, scene: str) -> int:
        """How many worlds a scene has."""
        return self.scenes[scene].worlds or self.worlds

    def to_yaml(self) -> str:
        """The experiment as a file that :func:`load_experiment` reads back."""
        plain = self.model_dump(mode="json", exclude_defaults=True)
        return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=100)


CONTROLS = {"truth": Arm(source="truth"), "vae": Arm(source="vae")}
FOOLERS = {name: Arm(source=name) for name in ("copy-clips", "ping-pong", "copy-reference")}
STANDING, PANNING = Scene(), Scene(camera="pans")


def quick() -> Experiment:
    """What runs in minutes on two cores with the bundled weights alone."""
    return Experiment(
        name="quick",
        about="How the bundled base drifts, with and without an anchor, between truth and three fakes.",
        scenes={"standing": STANDING},
        arms={"base": Arm(), "shot-untrained": Arm(preset="shot"), **CONTROLS, **FOOLERS},
        worlds=2,
        clips=6,
        sheets=2,
    )


def base() -> Experiment:
    """How the bundled model drifts without any help: what error-recycling fine-tuning has to beat."""
    return Experiment(
        name="base",
        about="Plain image to video, chained by its last frame.",
        scenes={"standing": STANDING, "panning": PANNING},
        arms={"base": Arm(), "vae": Arm(source="vae"), "truth": Arm(source="truth")},
        worlds=16,
        clips=50,
        videos=1,
    )


def members(preset: str, lora: str) -> dict[str, Arm]:
    """The three arms of a preset: its conditioning alone, the control without recycling, ERFT."""
    return {
        f"{lora}-untrained": Arm(preset=preset),
        f"{lora}-control": Arm(preset=preset, loras={f"{lora}-control": 1.0}),
        lora: Arm(preset=preset, loras={lora: 1.0}),
    }


FAMILY = {"shot": "shot", "film": "film", "svi2-wan21": "svi2", "pro": "pro"}  # LoRA by preset


def main() -> Experiment:
    """The main result: plain base, conditioning alone, control and ERFT, for four presets."""
    trained = {name: arm for preset, lora in FAMILY.items() for name, arm in members(preset, lora).items()}
    return Experiment(
        name="main",
        about="Does recycling stop drift, and what of it does the anchor do alone?",
        scenes={"standing": STANDING, "panning": PANNING.model_copy(update={"worlds": 16})},
        arms={"base": Arm(), **trained, **CONTROLS},
        pairs=tuple(
            (lora, other) for lora in FAMILY.values() for other in ("base", f"{lora}-untrained", f"{lora}-control")
        ),
        worlds=64,
        clips=50,
        videos=2,
        gain=Gain(worlds=16),
    )


def long() -> Experiment:
    """Ten times as long: eight worlds x 500 clips, plain base and the four trained members."""
    trained = {lora: Arm(preset=preset, loras={lora: 1.0}) for preset, lora in FAMILY.items()}
    return main().model_copy(
        update={
            "name": "long",
            "about": "Does it hold for 500 clips?",
            "scenes": {"standing": STANDING},
            "arms": {"base": Arm(), **trained, "truth": CONTROLS["truth"]},
            "pairs": (),
            "worlds": 8,
            "clips": 500,
            "videos": 0,
            "gain": None,
        }
    )


def mechanisms() -> Experiment:
    """What other methods do against drift, each mechanism alone on the plain base (``svi bench miniature`` shows their videos)."""
    return Experiment(
        name="mechanisms",
        about="Noise on the carried frame, guidance by history, inverted order and padding with an anchor, untrained.",
        scenes={"standing": STANDING},
        arms={
            "base": Arm(),
            **{name: Arm(preset=name) for name in MECHANISMS},
            "anchor": Arm(preset="shot"),
            **CONTROLS,
        },
        worlds=32,
        clips=50,
        videos=1,
    )


EXPERIMENTS: dict[str, Callable[[], Experiment]] = {
    "quick": quick,
    "base": base,
    "main": main,
    "long": long,
    "mechanisms": mechanisms,
}


def load_experiment(name: str) -> Experiment:
    """A built-in experiment by name, or one from a YAML or JSON file.

    Raises:
        UserError: for an unknown name or key, or a value out of range; the message names place and remedy.
    """
    if name in EXPERIMENTS:
        return EXPERIMENTS[name]()
    path = Path(name)
    if path.suffix not in (".yaml", ".yml", ".json") and not path.is_file():
        raise UserError(f"unknown experiment {name!r}: {nearest(name, EXPERIMENTS)} (or give a YAML file)")
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, Mapping):
        raise UserError(f"{path} holds no experiment: write name, scenes and arms (see: svi drift quick --print)")
    try:
        experiment = Experiment.model_validate({"name": path.stem, **data})
    except ValidationError as error:
        raise UserError(f"{path}: {_first_mistake(error)}") from None
    return checked(experiment, str(path))


def checked(experiment: Experiment, where: str) -> Experiment:
    """The experiment, its words looked up.

    Raises:
        UserError: for a word that nobody knows; the nearest is named.
    """
    for name, arm in experiment.arms.items():
        place = f"{where}: arm {name}"
        _known(arm.preset, POLICIES, f"{place}: unknown preset")
        if get_policy(arm.preset).drive is not None:
            raise UserError(
                f"{place}: preset {arm.preset} needs {get_policy(arm.preset).drive}, which worlds do not give"
            )
        if arm.solver is not None:
            _known(arm.solver, SOLVERS, f"{place}: unknown solver")
        for scene in arm.scenes:
            _known(scene, experiment.scenes, f"{place}: unknown scene")
        if arm.source != "model" and arm.loras:
            raise UserError(f"{place}: {arm.source} is no model and takes no LoRA")
    for name, kind in experiment.scenes.items():
        tables: tuple[tuple[str, str | None, tuple[str, ...]], ...] = (
            ("family", kind.family, FAMILIES),
            ("camera", kind.camera, CAMERAS),
            ("lighting", kind.lighting, LIGHTINGS),
        )
        for what, word, known in tables:
            if word is not None:
                _known(word, known, f"{where}: scene {name}: unknown {what}")
    for name in (name for pair in experiment.pairs for name in pair):
        _known(name, experiment.arms, f"{where}: pairs: unknown arm")
    return experiment


def _known(word: str, words: Any, what: str) -> None:
    if word not in words:
        raise UserError(f"{what} {word!r}: {nearest(word, words)}")


def _first_mistake(error: ValidationError) -> str:
    mistake = error.errors(include_url=False)[0]
    place = [str(part) for part in mistake["loc"]]
    if mistake["type"] == "extra_forbidden":
        inner: type[_Plain] = Scene if place[0] == "scenes" else Arm
        levels: tuple[type[_Plain], ...] = (Experiment, Gain, inner)
        level = levels[min(len(place), 3) - 1]
        return f"unknown key {'.'.join(place)!r}: {nearest(place[-1], level.model_fields)}"
    return f"{'.'.join(place)}: {mistake['msg']}, not {mistake['input']!r}"
