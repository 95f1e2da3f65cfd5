"""A storyboard: scenes of beats, each beat a prompt for one clip or more, and the plan of clip k that follows from it.

Knows nothing about models, images or runs. The plan of clip ``k`` is a pure function of the storyboard, the settings and
``k``, so a resumed run needs no history, and a storyboard may be edited while an endless run goes on.
"""

from __future__ import annotations

import bisect
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from svi.errors import UserError, nearest
from svi.generation.marked_yaml import Marked, Place, parse
from svi.generation.textfile import read_text

SCHEMA_FILE = Path(__file__).with_name("storyboard.schema.json")
MAX_SEED = 2**53 - 1  # exact in every JSON reader; leaves room for seed + stride * k

Text = Annotated[str, StringConstraints(strict=True, strip_whitespace=True)]
Prompt = Annotated[str, StringConstraints(strict=True, strip_whitespace=True, min_length=1)]
Seed = Annotated[int, Field(strict=True, ge=0, le=MAX_SEED)]
Steps = Annotated[int, Field(strict=True, ge=1, le=1000)]
Guidance = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
Strength = Annotated[float, Field(ge=-10, le=10, allow_inf_nan=False)]
Count = Annotated[int, Field(strict=True, ge=1, le=10**9)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Beat(_Frozen):
    """One prompt, for one clip or more."""

    prompt: Prompt = Field(description="What happens in this beat.")
    repeat: Count = Field(1, description="How many clips in a row show this beat.")
    seed: Seed | None = Field(
        None, description="Seed of this beat's first clip; None = the run's seed + stride * clip."
    )
    guidance: Guidance | None = Field(None, description="Guidance scale of this beat; None = the run's.")
    steps: Steps | None = Field(None, description="Denoising steps of this beat; None = the run's.")
    loras: dict[str, Strength] = Field(default_factory=dict, description="LoRA strengths that differ from the run's.")


class Scene(_Frozen):
    """Beats that belong together."""

    name: Text = Field("", description="For people; not given to the model.")
    beats: tuple[Beat, ...] = Field(min_length=1)


class Storyboard(_Frozen):
    """What a long video shows, beat by beat. One clip takes one prompt; the last prompt repeats when clips outnumber prompts."""

    version: Literal[1] = Field(1, description="Version of this format.")
    title: Text = Field("", description="Title, stored in the video's metadata.")
    image: Text | None = Field(None, description="Reference image, relative to this file.")
    preset: Text | None = Field(None, description="How clips hand over to one another (shot, film, pro ...).")
    prefix: Text = Field("", description="Put before every prompt as '<prefix>, <prompt>'.")
    negative_prompt: Text | None = Field(None, description="What guidance moves away from; None = the model's own.")
    seed: Seed | None = Field(None, description="Seed of the run.")
    guidance: Guidance | None = Field(None, description="Guidance scale of the run.")
    steps: Steps | None = Field(None, description="Denoising steps of the run.")
    clips: Count | Literal["endless"] | None = Field(None, description="Clips to make; None = one per prompt.")
    scenes: tuple[Scene, ...] = Field(min_length=1)

    @cached_property
    def _starts(self) -> tuple[list[int], list[tuple[int, int, Beat]]]:
        """First clip of every beat, and every beat with its scene and its number in the whole."""
        flat = [(i, beat) for i, scene in enumerate(self.scenes) for beat in scene.beats]
        ends = list(itertools.accumulate(beat.repeat for _, beat in flat))
        return [0, *ends[:-1]], [(scene, number, beat) for number, (scene, beat) in enumerate(flat)]

    @property
    def planned_clips(self) -> int:
        """Clips that have a prompt of their own."""
        return sum(beat.repeat for scene in self.scenes for beat in scene.beats)

    def at(self, clip: int) -> BeatAt:
        """The beat of clip ``clip`` (from 0); after the last beat, the last beat."""
        starts, flat = self._starts
        position = bisect.bisect_right(starts, clip) - 1
        scene, number, beat = flat[position]
        return BeatAt(beat, scene, number, clip - starts[position])

    def prompt(self, clip: int) -> str:
        """The full prompt of clip ``clip``: ``<prefix>, <prompt>`` as published (``--prompt_prefix``)."""
        text = self.at(clip).beat.prompt
        return f"{self.prefix}, {text}" if self.prefix else text

    def with_overrides(self, **fields: Any) -> Storyboard:
        """A storyboard with other top-level fields; None keeps a field as it is."""
        changes = {name: value for name, value in fields.items() if value is not None}
        return validated({**self.model_dump(), **changes}, "storyboard") if changes else self

    def to_yaml(self) -> str:
        """The storyboard as YAML that :func:`parse_storyboard` reads back; defaults are left out."""
        data = {"version": self.version, **self.model_dump(mode="json", exclude_defaults=True)}
        return yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=100)


@dataclass(frozen=True)
class BeatAt:
    """A beat as met by one clip: ``scene`` and ``number`` count from 0, ``offset`` is the clip's place in the beat."""

    beat: Beat
    scene: int
    number: int
    offset: int


def storyboard_from_prompts(prompts: Sequence[str], **fields: Any) -> Storyboard:
    """One scene with one beat per prompt; ``fields`` are top-level fields of the storyboard."""
    if not prompts:
        raise UserError("there are no prompts: give at least one")
    given = {name: value for name, value in fields.items() if value is not None}
    return validated({**given, "scenes": [{"beats": [{"prompt": text} for text in prompts]}]}, "prompts")


def load_storyboard(path: Path | str) -> Storyboard:
    """Read a YAML or JSON storyboard; every mistake is a UserError with file and line."""
    path = Path(path)
    return parse_storyboard(read_text(path, "storyboard"), str(path))


def parse_storyboard(text: str, name: str = "storyboard") -> Storyboard:
    """A storyboard from YAML or JSON text; a plain list of prompts will do. ``name`` begins every message."""
    marked = parse(text, name)
    data = marked.data
    if isinstance(data, list) and data and all(isinstance(item, str) for item in data):
        return storyboard_from_prompts(data)
    if not isinstance(data, dict):
        raise UserError(f"{name}: a storyboard is a mapping with `scenes`, or a list of prompts in quotes")
    return validated(data, name, marked)


def validated(data: Mapping[str, Any], name: str, marked: Marked | None = None) -> Storyboard:
    """Check ``data``; the first mistake becomes a UserError with its line and, for a wrong key, the nearest right one."""
    try:
        return Storyboard.model_validate(data)
    except ValidationError as error:
        mistakes = error.errors(include_url=False)
    # A mistyped key also leaves the right one missing: the typing error is the one to name.
    mistake = min(mistakes, key=lambda mistake: mistake["type"] != "extra_forbidden")
    place = tuple(mistake["loc"])
    where = f", line {marked.line(place)}" if marked else ""
    if mistake["type"] == "extra_forbidden":
        hint = nearest(str(place[-1]), _keys_at(place[:-1]))
        raise UserError(f"{name}{where}: unknown key {place[-1]!r}; {hint}")
    raise UserError(f"{name}{where}: {_spell(place)}: {_explain(mistake)}")


def storyboard_schema() -> dict[str, Any]:
    """JSON schema of a storyboard, as published in ``storyboard.schema.json`` beside this file."""
    schema = Storyboard.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def schema_text() -> str:
    """The text of ``storyboard.schema.json``."""
    return json.dumps(storyboard_schema(), indent=2) + "\n"


def _keys_at(place: Place) -> list[str]:
    names = [part for part in place if isinstance(part, str)]
    if not names:
        return list(Storyboard.model_fields)
    return list(Beat.model_fields if names[-1] == "beats" else Scene.model_fields)


def _spell(place: Place) -> str:
    text = ""
    for part in place:
        if isinstance(part, int):
            text += f"[{part}]"
        elif not part.startswith(
            ("constrained", "literal", "int", "float", "str")
        ):  # pydantic's names of union branches
            text += f".{part}" if text else part
    return text or "storyboard"


def _explain(mistake: Mapping[str, Any]) -> str:
    if mistake["type"] == "missing":
        return "is missing"
    if mistake["type"] == "string_type" and not isinstance(mistake["input"], dict | list):
        return f"must be text, not {mistake['input']!r}: put it in quotes"
    if mistake["type"] == "string_too_short":
        return "must not be empty"
    if mistake["loc"] and mistake["loc"][0] == "clips":
        return f"must be a number of clips (at least 1) or 'endless', not {mistake['input']!r}"
    value = mistake["input"]
    shown = f", not {value!r}" if isinstance(value, int | float | str | bool) else ""
    return str(mistake["msg"]).replace("Input should", "should") + shown
