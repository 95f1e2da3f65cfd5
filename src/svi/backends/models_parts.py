"""The parts of a model before they are loaded, and loading them: one path for every layout, for checks and for conversion.

A layout's reader only says what lies where (:class:`Part`); everything after that is here. Knows nothing about clips, LoRAs
or where a model computes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from svi.backends.layouts_files import header, headers, size_bytes, tensors
from svi.backends.placement import Placement
from svi.backends.weights import Parts, Tensors, checked, empty_weights, fill, layout, reading
from svi.errors import UserError

PartName = Literal["transformer", "transformer_2", "vae", "text_encoder", "image_encoder"]
STAGES: dict[PartName, str] = {
    "transformer": "transformer",
    "transformer_2": "low-noise transformer",
    "vae": "VAE",
    "text_encoder": "text encoder",
    "image_encoder": "image encoder",
}
# The reference keeps these in fp32 whatever the model's type: every clip passes through them, and what bf16 loses adds up.
EXACT = ("vae", "image_encoder")
# A text encoder whose files take more is worth being left for later: the 11 GB of Wan's are, those of a small model are not.
LARGE_TEXT_BYTES = 256 * 2**20
TIED_EMBEDDING = "encoder.embed_tokens.weight"  # of the text encoder: stored once or twice, held once


def as_stored(stream: Tensors) -> Tensors:
    """Tensors that have the library's names already."""
    return stream


@dataclass(frozen=True)
class Part:
    """One network of a model: where its weights lie, and which module they belong to.

    Attributes:
        name: which part.
        place: folder or file that errors name.
        files: weight files.
        make: makes the module; called where its parameters get no storage.
        names: from stored tensors to the names of the module's state dict.
        documents: JSON files that describe it.
    """

    name: PartName
    place: Path
    files: tuple[Path, ...]
    make: Callable[[], Any]
    names: Callable[[Tensors], Tensors] = as_stored
    documents: tuple[Path, ...] = ()

    def empty(self) -> Any:
        """The module without weights; parameters on the meta device.

        Raises:
            UserError: for a configuration that is none.
        """
        with reading(self.documents[0] if self.documents else self.files[0]), empty_weights():
            return self.make()

    def headers(self) -> Tensors:
        """Names and tensors without values, from the files' headers."""
        return self.names(headers(self.files))

    def tensors(self) -> Tensors:
        """Names and tensors, one at a time."""
        return self.names(tensors(self.files))

    @property
    def optional(self) -> tuple[str, ...]:
        """Names that may be absent."""
        return (TIED_EMBEDDING,) if self.name == "text_encoder" else ()

    def verify(self) -> Any:
        """Check names and shapes against the module, from headers alone; returns the module without weights.

        Raises:
            UserError: for the first thing that is missing, damaged or does not fit.
        """
        module = self.empty()
        for _ in checked(module, self.headers(), source=self.place, optional=self.optional):
            pass
        return module

    def load(self, placement: Placement) -> Any:
        """The module with its weights, in the types that the reference has."""
        module = self.empty()
        keep = module._keep_in_fp32_modules or () if self.name.startswith("transformer") else ()
        fill(
            module,
            self.tensors(),
            source=self.place,
            dtype=torch.float32 if self.name in EXACT else placement.dtype,
            device=placement.home(self.name),
            keep_fp32=keep,
            optional=self.optional,
            tie=_tie_embedding if self.name == "text_encoder" else None,
        )
        _refuse_meta(module, self.place)
        return module


@dataclass
class Survey:
    """What a model folder holds, before anything is loaded.

    Attributes:
        folder: the model folder.
        parts: by name, in the order of loading.
        files: JSON files that belong to no part.
        defaults: settings that the folder recommends.
        boundary: noise level at which its authors change experts, for a model of two.
        tokenizer: folder of the tokenizer; None where a caller does without.
    """

    folder: Path
    parts: dict[PartName, Part]
    files: list[Path] = field(default_factory=list)
    defaults: dict[str, Any] = field(default_factory=dict)
    boundary: float | None = None
    tokenizer: Path | None = None

    @property
    def experts(self) -> bool:
        """Whether the model has two transformers."""
        return "transformer_2" in self.parts

    def only(self, expert: str) -> Survey:
        """The same model with one of its two experts (``high``, ``low``) as its only transformer.

        Raises:
            UserError: for a model of one transformer.
        """
        if not self.experts:
            raise UserError(f"{self.folder} has one transformer, not two experts: leave the expert out")
        chosen = self.parts["transformer_2" if expert == "low" else "transformer"]
        rest = {name: part for name, part in self.parts.items() if not name.startswith("transformer")}
        return replace(self, parts={"transformer": replace(chosen, name="transformer"), **rest})


def survey(folder: Path) -> Survey:
    """What lies where in a model folder of any layout; configurations and headers are read, no weights.

    Raises:
        UserError: for a folder that is no model, and for missing or foreign files in it.
    """
    from svi.backends import folders, layouts_loose, official

    readers: Mapping[str, Callable[[Path], Survey]] = {
        "diffusers": folders.survey,
        "official": official.survey,
        "loose": layouts_loose.survey,
    }
    return readers[layout(folder)](folder)


def load(
    found: Survey,
    placement: Placement,
    say: Callable[[str], None] = lambda line: None,
    *,
    late_text: bool | None = False,
) -> Parts:
    """Load what a survey found; every header is checked before the first tensor is read.

    Of a model of two experts the one for low noise is left to its loader, so that it need not be in memory.

    Args:
        late_text: whether the text encoder is left to its loader, too; None = where its files are large.

    Raises:
        UserError: for missing, damaged or foreign files, each named with the remedy.
    """
    from svi.backends.folders import load_tokenizer
    from svi.backends.peek import recommended

    files = [*found.files]
    empty = {}
    for name, part in found.parts.items():
        empty[name] = part.verify()
        files.extend([*part.documents, *part.files])
    refuse_misfits(found, empty)
    for_text = [*found.parts["text_encoder"].documents, *found.parts["text_encoder"].files]
    tokenizer_files: list[Path] = []
    tokenizer = None if found.tokenizer is None else load_tokenizer(found.tokenizer, tokenizer_files)
    files.extend(tokenizer_files)
    if late_text is None:
        late_text = size_bytes(found.parts["text_encoder"].files) > LARGE_TEXT_BYTES
    later = {"transformer_2", *(["text_encoder"] if late_text else [])}
    modules: dict[str, Any] = {}
    for name, part in found.parts.items():
        if name not in later:
            say(f"loading {STAGES[name]}")
            modules[name] = part.load(placement)
    found.defaults = {**recommended(modules["vae"].config.z_dim), **found.defaults}
    parts = Parts(
        modules["transformer"],
        modules["vae"],
        modules.get("text_encoder"),
        tokenizer,
        modules.get("image_encoder"),
        files,
        dict(found.defaults),
        read_text=_loader(found.parts["text_encoder"], placement, say) if late_text else None,
        text_files=[*for_text, *tokenizer_files],
        stored=next((kind for path in found.parts["transformer"].files if (kind := header(path).quantised)), None),
    )
    if found.experts:
        pair: dict[str, PartName] = {"high": "transformer", "low": "transformer_2"}
        parts.experts = {expert: _loader(found.parts[name], placement, say) for expert, name in pair.items()}
        parts.boundary = found.boundary
    return parts


def _loader(part: Part, placement: Placement, say: Callable[[str], None]) -> Callable[[], Any]:
    def read() -> Any:
        say(f"loading {STAGES[part.name]}")
        return part.load(placement)

    return read


def _tie_embedding(module: Any) -> None:
    module.set_input_embeddings(module.shared)


def refuse_misfits(found: Survey, modules: Mapping[PartName, Any]) -> None:
    """Raise UserError where parts, each whole in itself, are not of one image-to-video model; modules may be empty."""
    transformer = modules["transformer"].config
    refuse_unfit(transformer, modules["vae"].config)
    width = modules["text_encoder"].config.d_model
    if transformer.text_dim != width:
        raise UserError(
            f"{found.parts['text_encoder'].place}: its embeddings have {width} numbers, the transformer reads "
            f"{transformer.text_dim}: not of one model"
        )
    if not found.experts:
        return
    low = modules["transformer_2"].config
    for key, value in transformer.items():
        if not key.startswith("_") and low.get(key) != value:
            place = found.parts["transformer_2"].place
            raise UserError(f"{place}: its {key} is {low.get(key)}, the other expert's {value}: not of one model")


def refuse_unfit(transformer: Any, vae: Any) -> None:
    """Raise UserError where the configurations of transformer and VAE are not those of an image-to-video model."""
    if transformer.out_channels != vae.z_dim:
        raise UserError(
            f"the VAE has {vae.z_dim} latent channels, the transformer {transformer.out_channels}: they are "
            "of different models (the Wan 2.1 VAE goes with the 14B models, the Wan 2.2 VAE with TI2V-5B)"
        )
    expected = 2 * vae.z_dim + vae.scale_factor_temporal
    if vae.patch_size is not None:  # TI2V-5B: the latents of the newer VAE are conditioned in place
        expected = vae.z_dim
    if transformer.in_channels != expected:
        raise UserError(
            f"the transformer reads {transformer.in_channels} channels, image-to-video needs {expected}: "
            "this is a text-to-video model; take the I2V one"
        )


def _refuse_meta(module: Any, place: Path) -> None:
    """The loaders of the libraries return modules without weights after a mere warning; this one does not."""
    for name, value in [*module.named_parameters(), *module.named_buffers()]:
        if value.is_meta:
            raise UserError(f"{place} gives no value for {name}: fetch the model folder again")
