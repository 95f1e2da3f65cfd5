"""The pocket model's parts: the classes of Wan in a tiny configuration, written as an ordinary diffusers folder.

Knows the sizes and the folder layout; nothing about training. Loading is the business of ``svi.backends``, which
treats this folder like any other.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanTransformer3DModel
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import CLIPVisionConfig, CLIPVisionModel, PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from svi.pocket.world import captions

TEXT_DIM = 96
IMAGE_DIM = 96
MAX_VOCABULARY = 640

TRANSFORMER = dict(
    patch_size=(1, 2, 2),
    num_attention_heads=3,
    attention_head_dim=64,
    in_channels=36,
    out_channels=16,
    text_dim=TEXT_DIM,
    freq_dim=256,
    ffn_dim=768,
    num_layers=8,
    cross_attn_norm=True,
    qk_norm="rms_norm_across_heads",
    image_dim=IMAGE_DIM,
    added_kv_proj_dim=192,
)
VAE = dict(base_dim=16, z_dim=16, dim_mult=[1, 2, 4, 4], num_res_blocks=2)
TEXT = dict(
    d_model=TEXT_DIM,
    d_kv=32,
    d_ff=192,
    num_layers=3,
    num_heads=3,
    feed_forward_proj="gated-gelu",
    dense_act_fn="gelu_new",
    is_gated_act=True,
    dropout_rate=0.0,
)
IMAGE = dict(
    hidden_size=IMAGE_DIM,
    intermediate_size=192,
    num_hidden_layers=3,
    num_attention_heads=3,
    image_size=64,
    patch_size=16,
    hidden_act="gelu",
    projection_dim=64,
)
SETTINGS: dict[str, Any] = dict(
    height=64, width=96, num_frames=17, fps=16, steps=20, guidance=1.5, shift=5.0, negative_prompt=""
)


WEIGHT_FILES = {
    "transformer": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
    "image_encoder": "model.safetensors",
}


@dataclass
class Components:
    """The parts of a Wan image-to-video model."""

    transformer: WanTransformer3DModel
    vae: AutoencoderKLWan
    text_encoder: UMT5EncoderModel
    tokenizer: PreTrainedTokenizerFast
    image_encoder: CLIPVisionModel


def build_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE over lower-cased ``texts``: every caption word is one token, any other text still encodes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=MAX_VOCABULARY,
            special_tokens=["<pad>", "</s>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", model_max_length=512, padding_side="right"
    )


def new_components(seed: int, *, caption_count: int = 4000) -> Components:
    """Fresh random weights, deterministic by ``seed``; the tokenizer is made from pocket-world captions."""
    source = captions(seed)
    tokenizer = build_tokenizer(next(source) for _ in range(caption_count))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # the model classes initialise from the global generator
        return Components(
            transformer=WanTransformer3DModel(**TRANSFORMER),
            vae=AutoencoderKLWan(**VAE),
            text_encoder=UMT5EncoderModel(UMT5Config(vocab_size=len(tokenizer), **TEXT)),
            tokenizer=tokenizer,
            image_encoder=CLIPVisionModel(CLIPVisionConfig(**IMAGE)),
        )


def save_components(parts: Components, folder: Path, *, dtype: torch.dtype | None = None) -> None:
    """Write a diffusers folder (``model_index.json`` and one folder per part) plus ``svi.json`` with the recommended settings.

    ``dtype`` is the storage type of the weights; the parts in memory are left as they are.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, file in WEIGHT_FILES.items():
        module: Any = getattr(parts, name)
        config = module if file.startswith("diffusion") else module.config
        (config.save_config if file.startswith("diffusion") else config.save_pretrained)(folder / name)
        state = {key: value.to(dtype or value.dtype).contiguous() for key, value in module.state_dict().items()}
        state.pop("encoder.embed_tokens.weight", None)  # tied to shared.weight
        save_file(state, folder / name / file, metadata={"format": "pt"})
    parts.tokenizer.save_pretrained(folder / "tokenizer")
    FlowMatchEulerDiscreteScheduler(shift=SETTINGS["shift"]).save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "WanImageToVideoPipeline",
        "transformer": ["diffusers", "WanTransformer3DModel"],
        "vae": ["diffusers", "AutoencoderKLWan"],
        "text_encoder": ["transformers", "UMT5EncoderModel"],
        "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
        "image_encoder": ["transformers", "CLIPVisionModel"],
        "image_processor": [None, None],
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    (folder / "svi.json").write_text(json.dumps(SETTINGS, indent=2) + "\n")
