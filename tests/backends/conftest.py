"""A tiny Wan in both layouts: the parity kit as it is, and the same weights as a diffusers folder."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from svi.backends import official
from svi.backends.placement import Placement
from svi.backends.wan import load_backend
from svi.condition import ClipCondition

KIT = Path(__file__).parents[1] / "data" / "parity" / "wan21-i2v-tiny"
WORDS = ["a", "red", "blue", "ball", "cat", "moves", "stops", "turns", "left", "right", "over", "the", "wall", "&"]
PARTS = {
    "transformer": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
    "image_encoder": "model",
}


def write_tokenizer(folder):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: index for index, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=512
    ).save_pretrained(folder)


@pytest.fixture(scope="session")
def kit():
    return KIT


@pytest.fixture(scope="session")
def diffusers_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    parts = official.load(KIT, Placement(torch.device("cpu")), need_tokenizer=False)
    for name, stem in PARTS.items():
        module = getattr(parts, name)
        (module.save_config if stem.startswith("diff") else module.config.save_pretrained)(folder / name)
        state = {key: value for key, value in module.state_dict().items() if key != "encoder.embed_tokens.weight"}
        save_file(state, folder / name / f"{stem}.safetensors")
    write_tokenizer(folder / "tokenizer")
    (folder / "model_index.json").write_text(
        json.dumps({"_class_name": "WanImageToVideoPipeline", "transformer": ["diffusers", "WanTransformer3DModel"]})
    )
    (folder / "svi.json").write_text(json.dumps({"height": 64, "width": 96, "num_frames": 17, "fps": 16, "steps": 6}))
    return folder


@pytest.fixture
def model_copy(diffusers_folder, tmp_path):
    """A copy that a test may damage."""
    return Path(shutil.copytree(diffusers_folder, tmp_path / "model"))


@pytest.fixture
def kit_copy(kit, tmp_path):
    """A copy of the kit with a tokenizer that a test may damage."""
    folder = Path(shutil.copytree(kit, tmp_path / "kit"))
    write_tokenizer(folder / "google" / "umt5-xxl")
    return folder


@pytest.fixture(scope="session")
def backend(diffusers_folder):
    return load_backend(str(diffusers_folder), device="cpu", dtype="fp32")


def draw(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="session")
def inputs():
    """Noisy latents and a condition of two latent frames at 32x48."""
    known = torch.zeros(1, 4, 2, 4, 6)
    known[:, :, 0] = 1
    text = torch.zeros(1, 512, 32)
    text[:, :5] = draw(3, 1, 5, 32)
    return draw(1, 1, 16, 2, 4, 6), ClipCondition(draw(2, 1, 16, 2, 4, 6), known, text, draw(4, 1, 257, 1280))
