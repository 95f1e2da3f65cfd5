"""Wan 2.1 and 2.2 image-to-video behind the :class:`~svi.backends.base.Backend` protocol, and the one way to load a model.

Knows the model classes of diffusers and transformers. Knows nothing about clips, presets or runs: the pocket model
and the 14B models differ in their folder only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from svi.backends import step_cache
from svi.backends.base import Backend, ModelInfo
from svi.backends.decoder import decoded
from svi.backends.encoders import TEXT_TOKENS, TextEncoder, clip_features, clip_pixels
from svi.backends.experts import Experts, Keep, Side
from svi.backends.models_packing import beside, in_place, token_timesteps, towards_given
from svi.backends.models_parts import refuse_unfit
from svi.backends.models_vae import codec
from svi.backends.placement import Placement, choose, prepare_encoders
from svi.backends.text_attention import fold_text_padding
from svi.backends.text_cache import Encode, TextCache, cached, default_folder, identity, late
from svi.condition import ClipCondition
from svi.errors import UserError
from svi.geometry import Geometry
from svi.schedule import TIMESTEPS

if TYPE_CHECKING:
    from svi.backends.lora import LoraSpec
    from svi.backends.weights import Parts

__all__ = ["WanBackend", "load_backend"]


class WanBackend:
    """A Wan image-to-video model: transformer (or two experts), VAE, UMT5, and CLIP where the model has an image branch.

    Latents, sigmas and velocities are fp32 whatever the transformer's type, so that rounding does not add up over
    the steps. Parts that :func:`load_backend` loads are frozen; through :meth:`velocity`, :meth:`encode_text` and
    :meth:`encode_image` gradients reach whatever the caller unfreezes, the VAE computes without.

    Attributes:
        geometry, info: see :class:`~svi.backends.base.Backend`.
        placement: device and types, with the reasons.
        transformer, vae, text_encoder, tokenizer, image_encoder: the parts, as the libraries make them. The text encoder is
            None where embeddings are cached on disk: it is then loaded for prompts that are not there, and out of sight.
        loras: the attached LoRAs, or None.
        runner: what :meth:`velocity` calls: the transformer, or a wrapper of it that trains it in several processes.
        experts: the two transformers of Wan 2.2 A14B; None for every other model. They share all sizes.
    """

    def __init__(
        self,
        transformer: Any,
        vae: Any,
        text_encoder: Any | None,
        tokenizer: Any | None,
        image_encoder: Any | None = None,
        *,
        info: ModelInfo | None = None,
        placement: Placement | None = None,
        loras: Any | None = None,
        experts: Experts | None = None,
        prompts: Encode | None = None,
    ) -> None:
        """Wrap parts that are already loaded. Where there are ``experts``, ``transformer`` may be any of them.

        ``prompts``: what :meth:`encode_text` asks instead of ``text_encoder``, which may then be None.

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
        self._prompts: Encode = prompts or TextEncoder(text_encoder, tokenizer)
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
        return self.decode_stream([latents])

    def decode_stream(self, pieces: Iterable[Tensor]) -> Iterator[Tensor]:
        """As :meth:`decode`, for latents that come in pieces and follow one another in time: see :class:`~svi.backends.decoder.Decoder`."""
        return decoded(self._codec, pieces)

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
    text_cache: bool | None = False,
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
        text_cache: whether embeddings of prompts are kept on disk (:mod:`svi.backends.text_cache`), and the text encoder is
            read for the first one that is not there; None = where that encoder is large.
        progress: called with one line at each stage.
        running: how it runs, as :func:`svi.backends.placement.choose` takes it (``memory``, ``speed``, ``attention``, ``quantise``,
            ``text``, ``disk``, ``window`` ...); left out, everything is resident and nothing is estimated, as training needs it.

    Raises:
        UserError: for an unknown model, missing or damaged files (named, with the remedy), a LoRA that does not fit.
    """
    from svi.backends import weights
    from svi.backends.dress import Dresser, sizes_of
    from svi.backends.lora import parse_spec

    say = progress or (lambda line: None)
    specs = [parse_spec(spec) for spec in loras]
    # What is wrong without looking at the model comes first.
    placement = choose(device, dtype, **{**running, "memory": "resident", "disk": None})
    folder = weights.find_model(model, allow_download=allow_download)
    if running:
        placement = choose(device, dtype, **running, sizes=sizes_of(folder, expert))
    for line in placement.lines():  # before loading: it may take minutes, and the memory of the machine
        say(line)
    with weights.quiet_libraries():
        parts = weights.load_parts(folder, placement, say, expert=expert, late_text=text_cache)
        first, experts = Dresser(specs, folder, placement, team, say).both(parts, expert, keep_experts)
        prepare_encoders(placement, text_encoder=parts.text_encoder, image_encoder=parts.image_encoder)
    return WanBackend(
        parts.transformer,
        parts.vae,
        parts.text_encoder,
        parts.tokenizer,
        parts.image_encoder,
        info=_info(model, folder, parts, specs),
        placement=placement,
        loras=None if experts else first.loras,
        experts=experts,
        prompts=None if parts.read_text is None else _remembered(parts, folder, placement, say),
    )


def _info(model: str, folder: Path, parts: Parts, specs: Sequence[LoraSpec]) -> ModelInfo:
    """What a run has to remember of a loaded model."""
    from svi.backends import weights
    from svi.backends.lora import find_lora

    return ModelInfo(
        name=model,
        files=weights.hashes(folder, parts.files),
        loras={spec.name: weights.sha256(find_lora(spec.source, folder)) for spec in specs},
        lora_strengths={spec.name: spec.strength for spec in specs},
        lora_sources={spec.name: spec.origin for spec in specs},
        defaults=parts.defaults,
        stored=parts.stored,
    )


def _remembered(parts: Parts, folder: Path, placement: Placement, say: Callable[[str], None]) -> Encode:
    """Prompts by way of the cache on disk; the text encoder is read for the first that is not there, and stays."""
    from svi.backends import weights

    read = parts.read_text
    assert read is not None

    def load() -> Encode:
        with weights.quiet_libraries():
            encoder = read()
        prepare_encoders(placement, text_encoder=encoder, image_encoder=None)
        return TextEncoder(encoder, parts.tokenizer)

    works_on = torch.device("cpu") if placement.layout.text == "cpu" else placement.device
    cache = TextCache(default_folder(), identity(weights.hashes(folder, parts.text_files), placement.dtype, works_on))
    say(f"text encoder: read for prompts that are not in {cache.folder} yet")
    return cached(late(load), cache)
