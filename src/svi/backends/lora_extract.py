"""Extracting a LoRA: the low-rank difference of two models, matrix by matrix, and how much of it a rank keeps."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from svi.backends.lora_base import BaseWeights, Reader, base_weights, part_of, weights_sha256
from svi.backends.lora_formats import Format, hint, natural, official_module
from svi.backends.lora_read import LoraFile, LoraMetadata, Pair
from svi.backends.lora_write import refuse_existing, suited, write_lora
from svi.backends.weights import find_model
from svi.errors import UserError

OVERSAMPLE, ITERATIONS = 16, 4
# Matrices with no side longer than this many times the sketch are decomposed exactly: it is no slower.
EXACT = 4


@dataclass(frozen=True)
class ExtractReport:
    """What :func:`extract` did.

    Attributes:
        out: the file; ``rank``: its rank.
        energy: share of the squared difference of the chosen matrices that the LoRA keeps, in [0, 1].
        modules: the same for each module.
        equal: number of chosen matrices that do not differ.
        left_out: other tensors that differ (biases, norms, what no pattern chose); a LoRA does not change them.
        left_out_energy: their share of the squared difference of the whole model.
    """

    out: Path
    rank: int
    energy: float
    modules: Mapping[str, float]
    equal: int
    left_out: tuple[str, ...]
    left_out_energy: float


def extract(
    base: str,
    tuned: str,
    out: Path,
    *,
    rank: int,
    targets: Sequence[str] = (),
    to: Format = "diffusers",
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    expert: str | None = None,
    seed: int = 0,
    allow_download: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> ExtractReport:
    """Write the LoRA of ``rank`` that comes nearest to turning ``base`` into ``tuned`` (least squares per matrix).

    Args:
        base, tuned: models by name, folder or hub id, of one shape.
        rank: matrices with a shorter side get that much instead.
        targets: patterns of modules by diffusers or official names (``*.attn1.*``); default every linear layer.
        dtype: storage type of the LoRA; the mathematics are fp32.
        device: where to compute.
        expert: ``high`` or ``low``, for models of two experts.
        seed: of the randomised decomposition.
        say: called with one line per block.

    Raises:
        UserError: for models of other names or shapes (both named), equal models, a pattern that matches nothing.
    """
    refuse_existing(out)
    if rank < 1:
        raise UserError(f"the rank must be at least 1, not {rank}")
    folders = [find_model(model, allow_download=allow_download) for model in (base, tuned)]
    part = part_of(folders[0], expert, "the LoRA")
    before, after = (base_weights(folder, part) for folder in folders)
    _refuse_unlike(before, after)
    chosen = _chosen(before, targets)
    pairs, kept, total, others = _decomposed(before, after, chosen, rank, device, seed, say)
    if not pairs:
        what = "in the chosen matrices" if others else "at all"
        raise UserError(f"{base} and {tuned} do not differ {what}: there is nothing to extract")
    share = {module: min(1.0, kept[module] / total[module]) for module in pairs}
    energy = min(1.0, sum(kept.values()) / sum(total.values()))
    ordered = {module: pairs[module] for module in sorted(pairs, key=natural)}
    lora = suited(LoraFile(str(out), to, ordered), to, dtype=dtype)
    details = {"tuned": tuned, "tuned_sha256": weights_sha256(folders[1], part), "energy": round(energy, 6)}
    metadata = LoraMetadata(
        base=base,
        base_sha256=weights_sha256(folders[0], part),
        recipe="extract",
        expert=expert,
        details={"extract": details},
    )
    write_lora(out, lora, metadata, to)
    left = sum(others.values())
    return ExtractReport(
        out, rank, energy, share, len(chosen) - len(pairs), tuple(others), left / (left + sum(total.values()))
    )


def _decomposed(
    before: BaseWeights,
    after: BaseWeights,
    chosen: set[str],
    rank: int,
    device: str,
    seed: int,
    say: Callable[[str], None],
) -> tuple[dict[str, Pair], dict[str, float], dict[str, float], dict[str, float]]:
    """Pairs of the chosen modules that differ, their squared norms and the differences', and those of other tensors."""
    pairs: dict[str, Pair] = {}
    kept: dict[str, float] = {}
    total: dict[str, float] = {}
    others: dict[str, float] = {}
    generator = torch.Generator().manual_seed(seed)
    with Reader(before) as old, Reader(after) as new:
        for name in before.entries:
            difference = new[name].float() - old[name].float()
            energy = float(difference.square().sum(dtype=torch.float64))
            module = name.removesuffix(".weight")
            if energy and name not in chosen:
                others[name] = energy
            elif energy:
                a, b, kept[module] = low_rank(difference.to(device), rank, generator)
                pairs[module], total[module] = Pair(a.cpu(), b.cpu(), None, module), energy
                say(f"{module}: {kept[module] / energy:.1%} kept")
    return pairs, kept, total, others


def low_rank(matrix: Tensor, rank: int, generator: torch.Generator) -> tuple[Tensor, Tensor, float]:
    """The nearest matrix of ``rank`` as two factors: ``a`` (rank, in), ``b`` (out, rank), and its squared norm.

    Randomised subspace iteration (Halko, Martinsson and Tropp, 2011, algorithm 4.4) where the matrix is large, the exact
    decomposition where it is small. The singular values are shared equally between the factors.
    """
    out, in_ = matrix.shape
    sketch = min(rank + OVERSAMPLE, out, in_)
    if max(out, in_) <= EXACT * sketch:
        u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    else:
        probe = torch.randn(in_, sketch, generator=generator).to(matrix)
        basis = torch.linalg.qr(matrix @ probe).Q
        for _ in range(ITERATIONS):
            basis = torch.linalg.qr(matrix @ torch.linalg.qr(matrix.T @ basis).Q).Q
        inner, s, v = torch.linalg.svd(basis.T @ matrix, full_matrices=False)
        u = basis @ inner
    kept = min(rank, s.numel())
    root = s[:kept].sqrt()
    return root[:, None] * v[:kept], u[:, :kept] * root, float(s[:kept].square().sum(dtype=torch.float64))


def _refuse_unlike(before: BaseWeights, after: BaseWeights) -> None:
    lacking = [name for name in before.entries if name not in after.entries]
    extra = [name for name in after.entries if name not in before.entries]
    if lacking or extra:
        owner, name = (after.folder, lacking[0]) if lacking else (before.folder, extra[0])
        raise UserError(f"{owner} lacks {name}, which the other model has: extract needs two models of one kind")
    for name, entry in before.entries.items():
        other = after.entries[name].shape
        if entry.shape != other:
            raise UserError(
                f"{name} is {entry.shape} in {before.folder} and {other} in {after.folder}: extract needs two models of "
                "one size"
            )


def _chosen(base: BaseWeights, targets: Sequence[str]) -> set[str]:
    """Parameters of the linear layers that ``targets`` name."""
    linear = [name for name, entry in base.entries.items() if len(entry.shape) == 2 and _names(name)]
    if not targets:
        return set(linear)
    chosen: set[str] = set()
    for pattern in targets:
        found = {name for name in linear if any(fnmatch.fnmatchcase(known, pattern) for known in _names(name))}
        if not found:
            near = hint(pattern, (known for name in linear for known in _names(name)))
            raise UserError(f"--target {pattern!r} matches no linear layer of {base.folder}{near}")
        chosen |= found
    return chosen


def _names(parameter: str) -> tuple[str, ...]:
    """Diffusers and official name of the module whose weight ``parameter`` is; empty where no LoRA can name it."""
    module = parameter.removesuffix(".weight")
    official = official_module(module)
    return () if module == parameter or official is None else (module, official)
