"""Text embeddings on disk, so that a text encoder of 11 GB is loaded once per prompt and not once per run.

An entry is found by a hash of the prompt and of everything that decides its embedding; it holds the tokens that are not
padding, without loss. Entries that cannot be read are made again. Knows nothing about encoders.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from svi.errors import UserError
from svi.files import explained, write_atomic

SUFFIX = ".safetensors"
BUDGET_BYTES = 2**30  # some 3,000 prompts of Wan 14B
LIBRARIES = ("torch", "transformers", "tokenizers", "ftfy")  # another version may round or split words otherwise
Encode = Callable[[Sequence[str]], Tensor]


def default_folder() -> Path:
    """Where embeddings are kept: ``$SVI_CACHE/text``, else ``svi/text`` in the user's folder for caches."""
    chosen = os.environ.get("SVI_CACHE")
    base = Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "svi"
    return base / "text"


def identity(files: Mapping[str, str], dtype: torch.dtype, device: torch.device) -> str:
    """What the embeddings of an encoder depend on, as one string; versions of libraries included.

    Args:
        files: hashes of its weight, configuration and tokenizer files, by name.
        dtype, device: what and where it computes; another kind of device rounds differently.
    """
    versions = [metadata.version(name) for name in LIBRARIES]
    return json.dumps([sorted(files.items()), str(dtype), device.type, versions])


class TextCache:
    """A folder of embeddings, least recently used ones removed first.

    Args:
        folder: made when the first entry is written.
        identity: see :func:`identity`; entries of another one are never found.
        budget_bytes: most that the folder holds.
    """

    def __init__(self, folder: Path, identity: str, *, budget_bytes: int = BUDGET_BYTES) -> None:
        self.folder, self.identity, self.budget_bytes = folder, identity, budget_bytes

    def get(self, prompt: str) -> Tensor | None:
        """Embedding ``(1, T, D)`` of a prompt, padded with zeros as it was; None where there is none, or none that can be read."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        path = self._path(prompt)
        try:
            found = load_file(path)
            tokens, length = found["tokens"], int(found["length"])
        except (OSError, SafetensorError, KeyError, ValueError):
            return None
        if tokens.ndim != 2 or len(tokens) > length or not torch.isfinite(tokens).all():
            return None
        with contextlib.suppress(OSError):
            os.utime(path)  # used: the last to go
        return F.pad(tokens, (0, 0, 0, length - len(tokens)))[None]

    def put(self, prompt: str, embedding: Tensor) -> None:
        """Keep ``embedding`` ``(1, T, D)``, zero after the prompt's last token.

        Raises:
            UserError: where the folder cannot be written.
        """
        from safetensors.torch import save

        if embedding.ndim != 3 or embedding.shape[0] != 1:
            raise ValueError(f"an embedding of one prompt is (1, T, D), not {tuple(embedding.shape)}")
        row = embedding[0].detach().cpu()
        used = int(row.any(dim=1).nonzero().max()) + 1 if row.any() else 0
        with explained(self.folder, "create"):
            self.folder.mkdir(parents=True, exist_ok=True)
        write_atomic(self._path(prompt), save({"tokens": row[:used].clone(), "length": torch.tensor(len(row))}))
        self._prune()

    def _path(self, prompt: str) -> Path:
        digest = hashlib.sha256(json.dumps([self.identity, prompt], ensure_ascii=False).encode()).hexdigest()
        return self.folder / f"{digest}{SUFFIX}"

    def _prune(self) -> None:
        entries = []
        for path in self.folder.glob(f"*{SUFFIX}"):
            with contextlib.suppress(OSError):  # another process removes as well
                status = path.stat()
                entries.append((status.st_mtime_ns, status.st_size, path))
        spare = sum(size for _, size, _ in entries) - self.budget_bytes
        for _, size, path in sorted(entries)[:-1]:  # never the one just written
            if spare <= 0:
                return
            path.unlink(missing_ok=True)
            spare -= size


def cached(encode: Encode, cache: TextCache) -> Encode:
    """``encode`` with ``cache`` in front of it; asked for one prompt at a time, since neighbours change the last bit.

    ``encode`` is called for prompts that are not there, and only then: it may load its encoder at the first call.
    A cache that cannot be written costs time, not the video.
    """

    def remembered(prompts: Sequence[str]) -> Tensor:
        return torch.cat([_one(prompt, encode, cache) for prompt in prompts])

    return remembered


def late(load: Callable[[], Encode]) -> Encode:
    """An encoder that is loaded at its first call, and stays: never, where :func:`cached` finds everything."""
    loaded: list[Encode] = []

    def encode(prompts: Sequence[str]) -> Tensor:
        if not loaded:
            loaded.append(load())
        return loaded[0](prompts)

    return encode


def _one(prompt: str, encode: Encode, cache: TextCache) -> Tensor:
    found = cache.get(prompt)
    if found is not None:
        return found
    made = encode([prompt])
    with contextlib.suppress(UserError):
        cache.put(prompt, made)
    return made
