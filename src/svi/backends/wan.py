"""Wan 2.1 and 2.2 image-to-video behind the :class:`~svi.backends.base.Backend` protocol, and the one way to load a model.

Knows the model classes of diffusers and transformers. Knows nothing about clips, presets or runs: the pocket model
and the 14B models differ in their folder only.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from svi.backends import step_cache
from svi.backends.base import Backend, ModelInfo
from svi.backends.encoders import TEXT_TOKENS, TextEncoder, clip_features, clip_pixels
from svi.backends.experts import SIDES, TIMESTEPS, Expert, Experts, Keep, Side, pair
from svi.backends.models_packing import beside, in_place, token_timesteps, towards_given
from svi.backends.models_parts import refuse_unfit
from svi.backends.models_vae import codec
from svi.backends.placement import Placement, choose, prepare_encoders, prepare_transformer
from svi.backends.text_attention import fold_text_padding
from svi.backends.vae import to_uint8
from svi.condition import ClipCondition
from svi.errors import UserError
from svi.geometry import Geometry

if TYPE_CHECKING:
    from svi.backends.lora import LoraSpec
    from svi.backends.memory import ModelSizes

__all__ = ["TIMESTEPS", "WanBackend", "load_backend"]


class WanBackend:
    """A Wan image-to-video model: transformer (or two experts), VAE, UMT5, and CLIP where the model has an image branch.

    Latents, sigmas and velocities are fp32 whatever the transformer's type, so that rounding does not add up over
    the steps. Parts that :func:`load_backend` loads are frozen; through :meth:`velocity`, :meth:`encode_text` and
    :meth:`encode_image` gradients reach whatever the caller unfreezes, the VAE computes without.

    Attributes:
        geometry, info: see :class:`~svi.backends.base.Backend`.
        placement: device and types, with the reasons.
        transformer, vae, text_encoder, tokenizer, image_encoder: the parts, as the libraries make them.
        loras: the attached LoRAs, or None.
        runner: what :meth:`velocity` calls: the transformer, or a wrapper of it that trains it in several processes.
        experts: the two transformers of Wan 2.2 A14B; None for every other model. They share all sizes.
    """

    def __init__(
        self,
        transformer: Any,
        vae: Any,
        text_encoder: Any,
        tokenizer: Any | None,
        image_encoder: Any | None = None,
        *,
        info: ModelInfo | None = None,
        placement: Placement | None = None,
        loras: Any | None = None,
        experts: Experts | None = None,
    ) -> None:
        """Wrap parts that are already loaded. Where there are ``experts``, ``transformer`` may be any of them.

        Raises:
            UserError: for a transformer that does not read an image condition (text-to-video).
        """
        self._single, self.vae, self.experts = (None if experts else transformer), vae, experts
        self.runner: Any = self._single
        self.text_encoder, self.tokenizer, self.image_encoder = text_encoder, tokenizer, image_encoder
        self.info = info or ModelInfo("unnamed")
        self.placement = placement or Placement(torch.device(transformer.device), transformer.dtype)
        self.loras = loras
        self.geometry = _geometry(transformer, vae, self.info.defaults)
        self._image_width: int | None = transformer.config.image_dim
        self._in_place = transformer.config.in_channels == self.geometry.latent_channels
        self._codec = codec(vae)
        self._prompts = TextEncoder(text_encoder, tokenizer)
        if self.device.type == "cpu":
            fold_text_padding(transformer)

    @property
    def transformer(self) -> Any:
        """The transformer; of two experts the one in use."""
        return self.experts.current if self.experts else self._single

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self.placement.device

    @property
    def has_image_branch(self) -> bool:
        """Whether the transformer reads CLIP features."""
        return self._image_width is not None

    def encode_video(self, video: Tensor) -> Tensor:
        """``(B, 3, T, H, W)`` in [-1, 1] -> ``(B, C, F, h, w)`` normalised latents, fp32 (posterior mode)."""
        return self._codec.encode(video)

    def decode(self, latents: Tensor) -> Iterator[Tensor]:
        """``(1, C, F, h, w)`` normalised -> uint8 frames ``(t, H, W, 3)`` on the CPU: one, then four per latent frame.

        Raises:
            ValueError: for more than one video.
            FloatingPointError: where the latents are not finite; they would become arbitrary pixels.
        """
        if latents.ndim != 5 or latents.shape[0] != 1:
            raise ValueError(f"latents must be (1, C, F, h, w), not {tuple(latents.shape)}")
        if not torch.isfinite(latents).all():
            raise FloatingPointError(
                "the latents hold NaN or infinity: run in fp32 or bf16, or check weights and LoRAs"
            )
        for video in self._codec.decode(latents):
            yield to_uint8(video)[0]

    def encode_text(self, prompts: Sequence[str]) -> Tensor:
        """Prompts -> ``(B, 512, D)`` fp32, zero after each prompt's last token."""
        return self._prompts(prompts)

    def encode_image(self, images: Tensor) -> Tensor | None:
        """``(B, 3, H, W)`` in [-1, 1] -> ``(B, N, D)`` CLIP features (last layer but one), None without an image branch."""
        if not self.has_image_branch:
            return None
        if self.image_encoder is None:
            raise UserError("the transformer reads CLIP features, but the model folder has no image encoder")
        pixels = clip_pixels(images.to(self.device), self.image_encoder.config.image_size)
        return clip_features(self.image_encoder, pixels)

    def velocity(self, noisy: Tensor, sigma: Tensor, condition: ClipCondition) -> Tensor:
        """Predicted ``noise - clean`` for ``noisy`` ``(B, C, F, h, w)`` at ``sigma`` ``(B,)``, fp32.

        Raises:
            ValueError: for a text that is not exactly 512 tokens long, or an image embedding that is missing or in excess.
        """
        if condition.text.shape[1] != TEXT_TOKENS:
            raise ValueError(f"text must be padded to {TEXT_TOKENS} tokens, not {condition.text.shape[1]}")
        if (condition.image is not None) != self.has_image_branch:
            state = "needs" if self.has_image_branch else "has no place for"
            raise ValueError(f"this model {state} an image embedding")
        if condition.image is not None and condition.image.shape[-1] != self._image_width:
            raise UserError(
                f"the image embedding has {condition.image.shape[-1]} numbers per token, this transformer reads "
                f"{self._image_width}: the image encoder is another model's, fetch the one that belongs to it"
            )
        device, dtype = self.device, self.placement.dtype
        level = torch.as_tensor(sigma, dtype=torch.float32, device=device).expand(noisy.shape[0])
        timestep = TIMESTEPS * level
        if self._in_place:
            inputs = in_place(noisy, condition)
            timestep = token_timesteps(timestep, condition, self.geometry.patch)
        else:
            inputs = beside(noisy, condition)
        predicted = self._predict(
            condition,
            level,
            hidden_states=inputs.to(device, dtype),
            timestep=timestep,
            encoder_hidden_states=condition.text.to(device, dtype),
            encoder_hidden_states_image=None if condition.image is None else condition.image.to(device, dtype),
        ).to(noisy.device, torch.float32)
        return towards_given(predicted, noisy, level.to(noisy.device), condition) if self._in_place else predicted

    def _predict(self, condition: ClipCondition, level: Tensor, **inputs: Tensor | None) -> Tensor:
        """What the transformer says, or for each of the batch the expert of its noise level."""
        if self.experts is None:
            with step_cache.around(self.runner, condition, level):
                return self.runner(**inputs, return_dict=False)[0]

        def call(transformer: Any, where: Tensor | slice) -> Tensor:
            chosen = {name: None if value is None else value[where] for name, value in inputs.items()}
            with step_cache.around(transformer, condition, level[where]):
                return transformer(**chosen, return_dict=False)[0]

        return self.experts.predict(level, call)

    def set_expert_boundary(self, boundary: float | None) -> None:
        """Noise level at and above which the high-noise expert works; None = as the model's authors have it.

        Nothing to do for a model of one transformer.

        Raises:
            UserError: for a level outside 0 to 1.
        """
        if self.experts is not None:
            self.experts.set_boundary(boundary)

    def set_lora_strengths(self, strengths: Mapping[str, float]) -> None:
        """Strength of each loaded LoRA for what follows; one that is not named gets the strength it was loaded with.

        Raises:
            UserError: for a LoRA that is not loaded; the message names the nearest.
        """
        loras = self.experts or self.loras
        if loras is not None:
            loras.set_strengths(strengths)
        elif strengths:
            raise UserError(f"no LoRA is loaded, so {next(iter(strengths))!r} has no strength: load it with --lora")


def _geometry(transformer: Any, vae: Any, defaults: Mapping[str, Any]) -> Geometry:
    """Scales from the parts' own configuration, the window from what the model folder recommends."""
    refuse_unfit(transformer.config, vae.config)
    window = {key: int(defaults[key]) for key in ("height", "width", "num_frames", "fps") if key in defaults}
    return Geometry(
        latent_channels=vae.config.z_dim,
        temporal_scale=vae.config.scale_factor_temporal,
        spatial_scale=vae.config.scale_factor_spatial,
        patch=tuple(transformer.config.patch_size),
        **window,
    )


def load_backend(
    model: str = "pocket",
    *,
    loras: Sequence[str] = (),
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    allow_download: bool = False,
    keep_experts: Keep | None = None,
    expert: Side | None = None,
    team: Any | None = None,
    progress: Callable[[str], None] | None = None,
    **running: Any,
) -> Backend:
    """Load a model with its LoRAs.

    Args:
        model: ``pocket`` (the built-in one), a folder in the diffusers or the official Wan layout or of single files, or a
            hub id.
        loras: ``NAME|FILE[:STRENGTH]`` each; see :mod:`svi.backends.lora`. Of a model of two experts, one that says ``high`` or
            ``low`` in its metadata or its name goes to that expert, others to both.
        device: left out, the CUDA device if there is one, otherwise the CPU.
        dtype: of transformer and text encoder; left out, bf16 where the card computes in it, otherwise fp32.
        allow_download: whether a hub id that is not on this machine may be downloaded. Nothing is otherwise.
        keep_experts: where the expert that is not in use waits (see :class:`~svi.backends.experts.Experts`); left out, by free memory.
        expert: load this one of two experts alone, as training needs it.
        team: processes that share the tokens of each evaluation (:class:`svi.backends.parallel.Team`).
        progress: called with one line at each stage.
        running: how it runs, as :func:`svi.backends.placement.choose` takes it (``memory``, ``speed``, ``attention``, ``quantise``,
            ``text``, ``disk``, ``window`` ...); left out, everything is resident and nothing is estimated, as training needs it.

    Raises:
        UserError: for an unknown model, missing or damaged files (named, with the remedy), a LoRA that does not fit.
    """
    from svi.backends import weights
    from svi.backends.lora import find_lora, parse_spec

    say = progress or (lambda line: None)
    specs = [parse_spec(spec) for spec in loras]
    placement = choose(
        device, dtype, **{**running, "memory": "resident", "disk": None}
    )  # what is wrong without looking at the model
    folder = weights.find_model(model, allow_download=allow_download)
    if running:
        placement = choose(device, dtype, **running, sizes=_sizes(folder, expert))
    for line in placement.lines():  # before loading: it may take minutes, and the memory of the machine
        say(line)

    dressed = _dresser(specs, folder, placement, team, say)
    with weights.quiet_libraries():
        parts = weights.load_parts(folder, placement, say, expert=expert)
        if parts.experts:
            _refuse_unfit_loras(specs, folder)
        first = dressed(parts.transformer, "high" if parts.experts else expert)
        experts = None
        if parts.experts:
            load = {side: partial(_read, parts.experts[side], dressed, side) for side in SIDES}
            home, keep = placement.home("transformer"), keep_experts or _keep(placement)
            experts = pair(load, first, parts.boundary, home, keep, [spec.name for spec in specs], say)
        prepare_encoders(placement, text_encoder=parts.text_encoder, image_encoder=parts.image_encoder)
    info = ModelInfo(
        name=model,
        files=weights.hashes(folder, parts.files),
        loras={spec.name: weights.sha256(find_lora(spec.source, folder)) for spec in specs},
        lora_strengths={spec.name: spec.strength for spec in specs},
        lora_sources={spec.name: spec.origin for spec in specs},
        defaults=parts.defaults,
    )
    if experts is not None:
        say(experts.line())
    return WanBackend(
        parts.transformer,
        parts.vae,
        parts.text_encoder,
        parts.tokenizer,
        parts.image_encoder,
        info=info,
        placement=placement,
        loras=None if experts else first.loras,
        experts=experts,
    )


def _dresser(
    specs: Sequence[LoraSpec], folder: Path, placement: Placement, team: Any | None, say: Callable[[str], None]
) -> Callable[[Any, Side | None], Expert]:
    """Puts on a transformer all that belongs on it: the LoRAs of its side, and how it runs."""
    from svi.backends.lora import load_loras

    def dressed(module: Any, side: Side | None) -> Expert:
        mine = [spec for spec in specs if side is None or lora_side(spec, folder) in {side, None}]
        adapters = load_loras(module, mine, folder=folder) if mine else None
        prepare_transformer(module, placement, team=team, say=say)
        if placement.device.type == "cpu":
            fold_text_padding(module)
        return Expert(module, adapters)

    return dressed


def _refuse_unfit_loras(specs: Sequence[LoraSpec], folder: Path) -> None:
    """LoRAs of the expert that may be loaded much later: what does not fit is found now, on a module without weights."""
    from svi.backends import lora_read
    from svi.backends.lora import converted, find_lora
    from svi.backends.models_parts import survey

    for spec in specs:
        if lora_side(spec, folder) == "low":
            converted(lora_read.read(find_lora(spec.source, folder)), survey(folder).parts["transformer_2"].empty())


def _sizes(folder: Path, expert: Side | None) -> ModelSizes:
    """What the model takes, from configurations and headers."""
    from svi.backends.memory import ModelSizes
    from svi.backends.models_parts import survey

    found = survey(folder)
    parts = (found if expert is None else found.only(expert)).parts
    configs = {name: part.empty().config for name, part in parts.items()}
    plain: dict[str, Mapping[str, Any]] = {
        name: dict(made) if isinstance(made, dict) else made.to_dict() for name, made in configs.items()
    }
    return ModelSizes.of(folder.name, plain)


def _keep(placement: Placement) -> Keep | None:
    """Where the expert that is not in use waits, where the memory profile says so."""
    if placement.layout.in_turn:
        return "swap"
    return "both" if placement.layout.transformer == "visit" else None


def _read(load: Callable[[], Any], dressed: Callable[[Any, Side], Expert], side: Side) -> Expert:
    from svi.backends import weights

    with weights.quiet_libraries():
        return dressed(load(), side)


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
