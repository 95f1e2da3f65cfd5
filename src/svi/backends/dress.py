"""A loaded transformer made ready for work: the LoRAs of its side, beside its weights or in them, and how it runs.

One path for a model of one transformer and for the two experts of Wan 2.2, the second of which may be loaded much later. Knows
nothing about clips, prompts or the other parts of a model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from svi.backends.experts import SIDES, Expert, Experts, Keep, Side, pair
from svi.backends.placement import Placement, prepare_transformer
from svi.backends.text_attention import fold_text_padding

if TYPE_CHECKING:
    from svi.backends.lora import LoraSpec
    from svi.backends.memory import ModelSizes
    from svi.backends.weights import Parts


@dataclass(frozen=True)
class Dresser:
    """Puts on transformers all that belongs on them.

    Attributes:
        specs: LoRAs that were asked for, of both sides.
        folder: of the model.
        placement: how it runs.
        team: processes that share the tokens of each evaluation, or None.
        say: told each stage in one line.
    """

    specs: Sequence[LoraSpec]
    folder: Path
    placement: Placement
    team: Any | None
    say: Callable[[str], None]

    def __call__(self, module: Any, side: Side | None) -> Expert:
        """``module`` ready for work, in place; ``side``: which of two experts it is.

        Raises:
            UserError: for a LoRA that does not fit it.
        """
        from svi.backends.lora import load_loras
        from svi.backends.lora_fuse import fuse_loras, why_apart

        mine = [spec for spec in self.specs if side is None or lora_side(spec, self.folder) in {side, None}]
        adapters: Any | None = None
        if mine and why_apart(self.placement) is None:
            adapters = fuse_loras(module, mine, folder=self.folder, say=self.say)
        elif mine:
            adapters = load_loras(module, mine, folder=self.folder)
        prepare_transformer(module, self.placement, team=self.team, say=self.say)
        if self.placement.device.type == "cpu":
            fold_text_padding(module)
        return Expert(module, adapters)

    def both(self, parts: Parts, expert: Side | None, keep: Keep | None) -> tuple[Expert, Experts | None]:
        """The transformer of ``parts``, and the pair where there are two; arguments as of ``load_backend``."""
        from svi.backends.lora_fuse import why_apart

        if not parts.experts:
            first = self(parts.transformer, expert)
        else:
            _refuse_unfit_loras(self.specs, self.folder)
            first = self(parts.transformer, "high")
        if self.specs and self.placement.speed.merge_loras and (why := why_apart(self.placement)) is not None:
            self.say(f"LoRAs beside the weights: {why}")
        if not parts.experts:
            return first, None
        load: Mapping[Side, Callable[[], Expert]] = {
            side: partial(_read, parts.experts[side], self, side) for side in SIDES
        }
        home, names = self.placement.home("transformer"), [spec.name for spec in self.specs]
        experts = pair(load, first, parts.boundary, home, keep or _keep(self.placement), names, self.say)
        self.say(experts.line())
        return first, experts


def _read(load: Callable[[], Any], dressed: Dresser, side: Side) -> Expert:
    from svi.backends import weights

    with weights.quiet_libraries():
        return dressed(load(), side)


def _keep(placement: Placement) -> Keep | None:
    """Where the expert that is not in use waits, where the memory profile says so."""
    if placement.layout.in_turn:
        return "swap"
    return "both" if placement.layout.transformer == "visit" else None


def _refuse_unfit_loras(specs: Sequence[LoraSpec], folder: Path) -> None:
    """LoRAs of the expert that may be loaded much later: what does not fit is found now, on a module without weights."""
    from svi.backends import lora_read
    from svi.backends.lora import converted, find_lora
    from svi.backends.models_parts import survey

    for spec in specs:
        if lora_side(spec, folder) == "low":
            converted(lora_read.read(find_lora(spec.source, folder)), survey(folder).parts["transformer_2"].empty())


def sizes_of(folder: Path, expert: Side | None) -> ModelSizes:
    """What the model takes, from configurations and headers; ``expert``: with this one of two alone."""
    from svi.backends.memory import ModelSizes
    from svi.backends.models_parts import survey

    found = survey(folder)
    parts = (found if expert is None else found.only(expert)).parts
    configs = {name: part.empty().config for name, part in parts.items()}
    plain: dict[str, Mapping[str, Any]] = {
        name: dict(made) if isinstance(made, dict) else made.to_dict() for name, made in configs.items()
    }
    return ModelSizes.of(folder.name, plain)


def lora_side(spec: LoraSpec, folder: Path) -> Side | None:
    """The expert that a LoRA is for, by its metadata, else by its file's name; None = it does not say."""
    from svi.backends.layouts_files import header
    from svi.backends.layouts_loose import noise_side
    from svi.backends.lora import find_lora
    from svi.backends.weights import reading

    path = find_lora(spec.source, folder)
    if path.suffix == ".safetensors":
        with reading(path):
            stated = dict(json.loads(header(path).metadata.get("svi", "{}"))).get("expert")
        if stated is not None:
            return next((side for side in SIDES if side == stated), None)
    named = noise_side(path.name)
    return next((side for side in SIDES if side == named), None)
