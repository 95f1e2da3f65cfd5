"""Tiny random Wan models of every kind, written in every layout, for the tests of models."""

import json
import re
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from svi.backends import official
from svi.backends.layouts import MEAN_22, STD_22
from svi.backends.official import DIT, DIT_BLOCK
from svi.backends.placement import Placement
from svi.condition import ClipCondition

KIT = Path(__file__).parents[1] / "data" / "parity" / "wan21-i2v-tiny"
CLIP_FILE = "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth"
T5_FILE = "models_t5_umt5-xxl-enc-bf16.pth"
STEMS = {
    "transformer": "diffusion_pytorch_model",
    "transformer_2": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
    "image_encoder": "model",
}
WORDS = ["<pad>", "</s>", "<unk>", "a", "cat", "moves", "sits"]
# A noise level of each expert, whatever the boundary.
SIGMA = {"high": torch.tensor([0.95]), "low": torch.tensor([0.5])}
WINDOW = {"height": 32, "width": 64, "num_frames": 9, "fps": 16, "steps": 2}
SMALL = dict(
    num_attention_heads=2, attention_head_dim=48, text_dim=32, ffn_dim=64, num_layers=2, qk_norm="rms_norm_across_heads"
)
INDEX = {"_class_name": "WanImageToVideoPipeline", "transformer": ["diffusers", "WanTransformer3DModel"]}


def draw(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def condition(channels, image=False):
    """Three latent frames of 4 by 6, the first of them given."""
    known = torch.zeros(1, 4, 3, 4, 6)
    known[:, :, 0] = 1
    text = torch.zeros(1, 512, 32)
    text[:, :5] = draw(3, 1, 5, 32)
    return ClipCondition(draw(2, 1, channels, 3, 4, 6), known, text, draw(4, 1, 257, 64) if image else None)


def write_tokenizer(folder):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=512, **names).save_pretrained(folder)


def transformer(seed, **changes):
    from diffusers import WanTransformer3DModel

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return WanTransformer3DModel(**{**SMALL, "in_channels": 36, "out_channels": 16, **changes}).requires_grad_(
            False
        )


def newer_vae(seed=5):
    from diffusers import AutoencoderKLWan

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoencoderKLWan(
            base_dim=8,
            decoder_base_dim=8,
            z_dim=48,
            is_residual=True,
            patch_size=2,
            in_channels=12,
            out_channels=12,
            scale_factor_spatial=16,
            latents_mean=list(MEAN_22),
            latents_std=list(STD_22),
        ).requires_grad_(False)


def parts(kind):
    """The parts of a tiny ``2.1``, ``a14b`` or ``5b``."""
    kit = official.load(KIT, Placement(torch.device("cpu")), need_tokenizer=False)
    rest = {"vae": kit.vae, "text_encoder": kit.text_encoder}
    if kind == "2.1":
        # The kit's own transformer reads features of another width than its small tower gives.
        return {
            "transformer": transformer(4, image_dim=64, added_kv_proj_dim=96),
            **rest,
            "image_encoder": kit.image_encoder,
        }
    if kind == "a14b":
        return {"transformer": transformer(1), "transformer_2": transformer(2), **rest}
    return {"transformer": transformer(3, in_channels=48, out_channels=48), **rest, "vae": newer_vae()}


def state(module):
    return {name: value for name, value in module.state_dict().items() if name != "encoder.embed_tokens.weight"}


def write_diffusers(folder, modules, **index):
    for name, module in modules.items():
        stem = STEMS[name]
        (module.save_config if stem.startswith("diff") else module.config.save_pretrained)(folder / name)
        save_file(state(module), folder / name / f"{stem}.safetensors")
    write_tokenizer(folder / "tokenizer")
    second = {"transformer_2": ["diffusers", "WanTransformer3DModel"]} if "transformer_2" in modules else {}
    (folder / "model_index.json").write_text(json.dumps({**INDEX, **second, **index}))
    (folder / "svi.json").write_text(json.dumps(WINDOW))
    return folder


def official_dit(module):
    """A transformer's tensors by official names."""
    top, block = ({new: old for old, new in table.items()} for table in (DIT, DIT_BLOCK))

    def back(name):
        match = re.fullmatch(r"(blocks\.\d+\.)?(.+)", name)
        table = block if match[1] else top
        stem, _, leaf = match[2].rpartition(".")
        return (match[1] or "") + (table[match[2]] if match[2] in table else f"{table[stem]}.{leaf}")

    return {back(name): value for name, value in module.state_dict().items()}


def official_newer_vae(module):
    """A VAE of Wan 2.2 by official names; written apart from the code that reads them."""
    swaps = [
        (r"^quant_conv", "conv1"),
        (r"^post_quant_conv", "conv2"),
        (r"(en|de)coder\.conv_in", r"\1coder.conv1"),
        (r"(en|de)coder\.norm_out", r"\1coder.head.0"),
        (r"(en|de)coder\.conv_out", r"\1coder.head.2"),
        (r"mid_block\.resnets\.0", "middle.0"),
        (r"mid_block\.attentions\.0", "middle.1"),
        (r"mid_block\.resnets\.1", "middle.2"),
        (r"down_blocks\.(\d+)\.resnets", r"downsamples.\1.downsamples"),
        (r"down_blocks\.(\d+)\.downsampler", r"downsamples.\1.downsamples.2"),
        (r"up_blocks\.(\d+)\.resnets", r"upsamples.\1.upsamples"),
        (r"up_blocks\.(\d+)\.upsampler", r"upsamples.\1.upsamples.3"),
        (r"\.conv_shortcut\.", ".shortcut."),
        (r"(middle\.\d|samples\.\d)\.norm1\.", r"\1.residual.0."),
        (r"(middle\.\d|samples\.\d)\.conv1\.", r"\1.residual.2."),
        (r"(middle\.\d|samples\.\d)\.norm2\.", r"\1.residual.3."),
        (r"(middle\.\d|samples\.\d)\.conv2\.", r"\1.residual.6."),
    ]
    found = {}
    for name, value in module.state_dict().items():
        for pattern, new in swaps:
            name = re.sub(pattern, new, name)  # noqa: PLW2901
        found[name] = value
    return found


def config(module):
    """The sparse official configuration of a transformer."""
    made = module.config
    width = made.num_attention_heads * made.attention_head_dim
    return {
        "_class_name": "WanModel",
        "dim": width,
        "num_heads": made.num_attention_heads,
        "in_dim": made.in_channels,
    } | {
        "out_dim": made.out_channels,
        "num_layers": made.num_layers,
        "ffn_dim": made.ffn_dim,
    }


def write_official(folder, modules):
    folder.mkdir(parents=True, exist_ok=True)
    pair = "transformer_2" in modules
    for name, sub in (("transformer", "high_noise_model"), ("transformer_2", "low_noise_model")):
        if name in modules:
            place = folder / sub if pair else folder
            place.mkdir(exist_ok=True)
            save_file(official_dit(modules[name]), place / "diffusion_pytorch_model.safetensors")
            (place / "config.json").write_text(json.dumps(config(modules[name])))
    shutil.copy(KIT / "config-encoders.json", folder)
    shutil.copy(KIT / T5_FILE, folder)
    if "image_encoder" in modules:
        shutil.copy(KIT / CLIP_FILE, folder)
    if modules["vae"].config.patch_size is None:
        shutil.copy(KIT / "Wan2.1_VAE.pth", folder)
    else:
        torch.save(official_newer_vae(modules["vae"]), folder / "Wan2.2_VAE.pth")
    write_tokenizer(folder / "google" / "umt5-xxl")
    (folder / "svi.json").write_text(json.dumps(WINDOW))
    return folder


def write_loose(folder, modules, *, prefix="model.diffusion_model.", change=lambda state: state):
    """Single files as ComfyUI sorts them."""
    kit = {name: torch.load(KIT / file, weights_only=True) for name, file in KIT_FILES.items()}
    for place in ("diffusion_models", "vae", "text_encoders", "clip_vision"):
        (folder / place).mkdir(parents=True, exist_ok=True)
    for name, side in (("transformer", "high_noise"), ("transformer_2", "low_noise")):
        if name in modules:
            stored = {f"{prefix}{key}": value for key, value in official_dit(modules[name]).items()}
            save_file(change(stored), folder / "diffusion_models" / f"wan_{side}.safetensors")
    save_file(kit["vae"], folder / "vae" / "wan_2.1_vae.safetensors")
    text = {name: value.clone() for name, value in state(modules["text_encoder"]).items()}
    marks = {"spiece_model": torch.zeros(3, dtype=torch.uint8)}
    save_file({**text, **marks}, folder / "text_encoders" / "umt5.safetensors")
    if "image_encoder" in modules:
        tower = {f"vision_model.{name}": value for name, value in state(modules["image_encoder"]).items()}
        save_file({**tower, "visual_projection.weight": torch.zeros(2, 2)}, folder / "clip_vision" / "h.safetensors")
    shutil.copy(KIT / "config-encoders.json", folder)
    (folder / "config.json").write_text(json.dumps({"num_heads": 2}))
    write_tokenizer(folder / "tokenizer")
    (folder / "svi.json").write_text(json.dumps(WINDOW))
    return folder


KIT_FILES = {"vae": "Wan2.1_VAE.pth"}


def copy_of(folder, target):
    return Path(shutil.copytree(folder, target))
