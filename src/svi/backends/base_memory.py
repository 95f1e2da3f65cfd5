"""What training a LoRA on a Wan transformer costs, before anything of it is loaded: its size, and what a backward pass needs.

Pure arithmetic on shapes; a test holds it to a real transformer. Builds on :mod:`svi.backends.memory`, which knows what the model
itself costs; nothing here about devices, optimizers or banks.
"""

from __future__ import annotations

from collections.abc import Sequence

from svi.backends.catalogue import MODELS
from svi.backends.memory import IMAGE_TOKENS, KNOWN_MODELS, TEXT_TOKENS, ModelSizes, TransformerShape, Window
from svi.backends.weights import find_model
from svi.errors import UserError

KNOWN = {"single": "wan2.1-i2v-14b", "experts": "wan2.2-i2v-a14b", "in place": "wan2.2-ti2v-5b"}
FP32 = 4
# What a block keeps for its backward pass, per token and width, beside the inputs of its adapters: six tensors in fp32 (norms,
# rotations, modulation) and eight in the type that it computes in (query, key, value and result of the attentions, what goes into
# them), two more where it attends to an image.
KEPT_FP32, KEPT_OWN, KEPT_WITH_IMAGE = 6, 8, 2
# Bytes per text token or image token and width, for their keys and values.
TEXT_KEPT, IMAGE_KEPT = 8, 4


def base_sizes(model: str) -> tuple[ModelSizes, Window]:
    """Sizes of a model and its window: from its configuration where it is here, as published where it is not.

    Raises:
        UserError: for a model that is neither here nor known.
    """
    try:
        folder = find_model(model)
    except UserError:
        for known in MODELS:
            if model in (known.name, known.hub_id, known.official_id):
                return KNOWN_MODELS[KNOWN[known.kind]]
        raise
    from svi.backends.models_parts import survey
    from svi.backends.peek import peek

    geometry, _ = peek(model)
    modules = {str(name): part.empty() for name, part in survey(folder).parts.items()}
    return ModelSizes.of_modules(model, modules), Window(geometry.height, geometry.width, geometry.num_frames)


def adapted(shape: TransformerShape, targets: Sequence[str]) -> list[tuple[str, int, int]]:
    """Matrices of one block that get an adapter: name, width that comes in, width that goes out."""
    d, added = shape.width, shape.added_kv_proj_dim
    names = ("to_q", "to_k", "to_v", "to_out.0")
    matrices = [(f"{attention}.{name}", d, d) for attention in ("attn1", "attn2") for name in names]
    matrices += [(f"attn2.{name}", added, d) for name in ("add_k_proj", "add_v_proj") if added]
    matrices += [("ffn.net.0.proj", d, shape.ffn_dim), ("ffn.net.2", shape.ffn_dim, d)]
    return [row for row in matrices if any(row[0] == t or row[0].endswith(f".{t}") for t in targets)]


def lora_parameters(shape: TransformerShape, targets: Sequence[str], rank: int) -> int:
    """Numbers in a LoRA of that rank."""
    return shape.num_layers * rank * sum(inside + outside for _, inside, outside in adapted(shape, targets))


def block_bytes(
    shape: TransformerShape, tokens: int, targets: Sequence[str], rank: int, *, dtype_bytes: int, batch: int = 1
) -> int:
    """Bytes that one block keeps for its backward pass.

    Most adapters read what attention keeps anyway; those of the feed-forward keep their input, which has the input of the GELU
    beside it.

    Args:
        tokens: of one video.
        targets, rank: of the LoRA.
        dtype_bytes: of what the block computes in.
        batch: videos.
    """
    d = shape.width
    given = ("attn2.to_k", "attn2.to_v", "attn2.add_k_proj", "attn2.add_v_proj")  # read text or image, not the video
    count = sum(name not in given for name, _, _ in adapted(shape, targets))
    of_image = KEPT_WITH_IMAGE if shape.added_kv_proj_dim else 0
    kept = d * (KEPT_FP32 * FP32 + (KEPT_OWN + of_image) * dtype_bytes) + shape.ffn_dim * dtype_bytes
    feed_forward = sum(inside for name, inside, _ in adapted(shape, targets) if name.startswith("ffn"))
    video = tokens * (kept + dtype_bytes * (feed_forward + rank * count))
    images = IMAGE_TOKENS if shape.added_kv_proj_dim else 0
    return batch * (video + d * (TEXT_TOKENS * TEXT_KEPT + images * IMAGE_KEPT))


def checkpoint_bytes(shape: TransformerShape, tokens: int, *, dtype_bytes: int, batch: int = 1) -> int:
    """Bytes that gradient checkpointing keeps: what went into each block."""
    given = TEXT_TOKENS + (IMAGE_TOKENS if shape.added_kv_proj_dim else 0)
    return batch * shape.num_layers * shape.width * (tokens + given) * dtype_bytes


def latent_values(sizes: ModelSizes, window: Window) -> tuple[int, int, int, int]:
    """``(C, F, h, w)`` of a clip."""
    return sizes.vae.z_dim, *sizes.latent_shape(window)
