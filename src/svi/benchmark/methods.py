"""What makes the videos of a benchmark: a preset with its model and LoRAs, or a control; and the words for it.

Data and its parser. Knows nothing about suites, and makes no video.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from svi.backends.lora import find_lora, parse_spec
from svi.backends.weights import find_model, hashes, sha256
from svi.conditioning.policy import POLICIES, get_policy
from svi.errors import UserError, nearest
from svi.evaluation.fakes import FAKES

VAE = "vae"
CONTROLS = {name: f"{kind.role}: {kind.about}" if kind.role != "truth" else kind.about for name, kind in FAKES.items()}
CONTROLS[VAE] = "the true video through the model's VAE: what no rollout can better"
KEYS = ("preset", "lora", "model", "steps", "guidance", "solver", "of")


@dataclass(frozen=True)
class Method:
    """What makes videos: a preset with its model and LoRAs, or a control.

    Attributes:
        of: whose first clip a fooler repeats.
        stands_for: of what it is an example, for people.
    """

    name: str
    preset: str = "wan"
    loras: tuple[str, ...] = ()
    model: str | None = None
    control: str | None = None
    of: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    stands_for: str = ""

    @property
    def inverted(self) -> bool:
        """Whether its videos are made from the last clip to the first."""
        return self.control is None and get_policy(self.preset).hand_off == "inverted"

    def made_with(self, model: str, *, download: bool = False) -> dict[str, Any]:
        """Everything that decides its pictures, by name or hash: what makes other pictures is another method.

        Args:
            model: where the method names none.
            download: whether a hub model that is not here may be fetched.

        Raises:
            UserError: for a model or a LoRA that is not there.
        """
        if self.control is not None:
            return {"control": self.control, "of": self.of}
        folder = find_model(self.model or model, allow_download=download)
        weights = [path for path in folder.rglob("*.safetensors") if "loras" not in path.relative_to(folder).parts]
        specs = [parse_spec(lora) for lora in self.loras]
        return {
            "preset": self.preset,
            "settings": dict(self.settings),
            "loras": {spec.name: [sha256(find_lora(spec.source, folder)), spec.strength] for spec in specs},
            "weights": dict(hashes(folder, weights)),
        }

    @property
    def about(self) -> str:
        """In a line, for tables."""
        if self.control is not None:
            told = CONTROLS[self.control] + (f", of {self.of}" if self.of else "")
        else:
            parts = [f"preset {self.preset}", *(f"LoRA {lora}" for lora in self.loras)]
            parts += [f"model {self.model}"] if self.model else []
            told = ", ".join([*parts, *(f"{key} {value}" for key, value in self.settings.items())])
        return f"{self.stands_for} ({told})" if self.stands_for else told


def parse_method(text: str) -> Method:
    """``NAME[:key=value,...]``: ``shot``, ``erft:preset=shot,lora=shot:0.9,steps=8``, ``truth``, ``copy-clips:of=shot``.

    Raises:
        UserError: for an unknown key or name; the nearest is named.
    """
    name, _, rest = text.partition(":")
    given: dict[str, list[str]] = {}
    for part in filter(None, rest.split(",")):
        key, equals, value = part.partition("=")
        if not equals or key not in KEYS:
            raise UserError(f"method {text!r}: {key!r} is no key: {nearest(key, KEYS)}")
        given.setdefault(key, []).append(value)
    if name in CONTROLS and set(given) <= {"of"}:
        return Method(name, control=name, of=given.get("of", [None])[-1])
    if "of" in given:
        raise UserError(f"method {text!r}: only controls ({', '.join(CONTROLS)}) are made of another method's video")
    preset = given.get("preset", [name])[-1]
    if preset not in POLICIES:
        raise UserError(f"method {text!r}: unknown preset {preset!r}: {nearest(preset, [*POLICIES, *CONTROLS])}")
    settings = {key: convert(given[key][-1], text) for key, convert in _NUMBERS.items() if key in given}
    if "solver" in given:
        settings["solver"] = given["solver"][-1]
    return Method(name, preset, tuple(given.get("lora", ())), given.get("model", [None])[-1], settings=settings)


def _number(kind: Callable[[str], Any]) -> Callable[[str, str], Any]:
    def convert(value: str, text: str) -> Any:
        try:
            return kind(value)
        except ValueError:
            raise UserError(f"method {text!r}: {value!r} is no number") from None

    return convert


_NUMBERS = {"steps": _number(int), "guidance": _number(float)}
