"""Fetching models and LoRAs from the hub: asked for by name, resumed where it stopped, and verified by hash.

The hub's own client does the work: it goes on with half a file, and knows the hash of every file. Knows nothing about what is in
the files (``svi models check`` looks there).
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from svi.backends.catalogue import BASES, LORAS, MODELS, Lora, Model, model_of
from svi.backends.weights import HUB_FILES, HUB_ID, POCKET
from svi.errors import UserError, nearest
from svi.files import link_or_copy

Say = Callable[[str], None]
LORA_FOLDER = "loras"  # where LoRAs are looked for by name: in a model's folder, or beside it


@dataclass(frozen=True)
class Wanted:
    """Files of one repository: ``patterns`` of names, and how many bytes they are where that is known."""

    hub_id: str
    patterns: tuple[str, ...]
    size_bytes: int | None = None
    gated: bool = False
    licence: str = ""
    lora: str | None = None


def wanted(name: str, layout: str = "diffusers") -> list[Wanted]:
    """What a name stands for: a model of the catalogue, a preset (its model and LoRAs), a LoRA, or a hub id.

    Raises:
        UserError: for anything else; the nearest name is given.
    """
    models = {model.name: model for model in MODELS}
    loras = {lora.name: lora for group in LORAS.values() for lora in group}
    if name == POCKET:
        raise UserError("the pocket model is built in: there is nothing to download")
    if name in models:
        return [_model(models[name], layout)]
    if name in LORAS:
        base = model_of(BASES[name])
        return [*([] if base is None else [_model(base, layout)]), *map(_lora, LORAS[name])]
    if name in loras:
        return [_lora(loras[name])]
    if HUB_ID.fullmatch(name):
        known = next((model for model in MODELS if name in {model.hub_id, model.official_id}), None)
        if known is not None:
            return [_model(known, "official" if name == known.official_id else "diffusers")]
        return [Wanted(name, tuple(HUB_FILES))]
    raise UserError(f"unknown model {name!r}: {nearest(name, [*models, *LORAS, *loras])} (or give a hub id)")


def _model(model: Model, layout: str) -> Wanted:
    hub_id = model.official_id if layout == "official" else model.hub_id
    return Wanted(hub_id, tuple(HUB_FILES), model.size_bytes(layout), model.gated, model.licence)


def _lora(lora: Lora) -> Wanted:
    return Wanted(lora.hub_id, (lora.file,), lora.size_bytes, licence=lora.licence, lora=lora.name)


def download(
    name: str, *, to: Path | None = None, layout: str = "diffusers", say: Say = lambda line: None
) -> list[Path]:
    """Fetch what :func:`wanted` says, verify every file by its hash on the hub, and say where it lies.

    Args:
        name: see :func:`wanted`.
        to: folder for it (a model's files there, LoRAs in ``loras`` in it); left out, the hub client's cache, where models
            are found by their names.
        layout: of a model: ``diffusers`` or ``official``.
        say: called with one line per stage.

    Raises:
        UserError: for an unknown name, conditions that are not accepted yet, too little room, a broken connection (the same
            command goes on), and files that are not what the hub says (they are removed).
    """
    done = []
    for item in wanted(name, layout):
        about = f", {item.size_bytes / 1e9:.1f} GB" if item.size_bytes else ""
        say(f"{item.hub_id}{about}{f', licence: {item.licence}' if item.licence else ''}")
        target = _folder(item, to)
        if target is not None:
            target.mkdir(parents=True, exist_ok=True)
        with explained(item):
            _room(item, target)
            folder = Path(_snapshot(item, target))
            say("verifying hashes")
            _verify(item, folder, target)
        done += [_place_lora(item, folder, to)] if item.lora else [folder]
    return done


def _folder(item: Wanted, to: Path | None) -> Path | None:
    """LoRAs go through the cache: their folders on the hub are not where they are looked for by name."""
    return None if item.lora else to


def _snapshot(item: Wanted, target: Path | None, **options: Any) -> Any:
    from huggingface_hub import snapshot_download

    return snapshot_download(item.hub_id, allow_patterns=list(item.patterns), local_dir=target, **options)


def _room(item: Wanted, target: Path | None) -> None:
    files = _snapshot(item, target, dry_run=True)
    needed = sum(file.file_size or 0 for file in files if file.will_download)
    if not files:
        raise UserError(f"{item.hub_id} has none of {', '.join(item.patterns)}: the name may have changed on the hub")
    from huggingface_hub.constants import HF_HUB_CACHE

    place = next(path for path in (target or Path(HF_HUB_CACHE), Path.home(), Path("/")) if path.is_dir())
    free = shutil.disk_usage(place).free
    if free < needed:
        raise UserError(
            f"{place} has {free / 1e9:.1f} GB free, {needed / 1e9:.1f} GB are to be fetched: free some, or use --to"
        )


def _verify(item: Wanted, folder: Path, target: Path | None) -> None:
    """Every file that was asked for has the hash that the hub states; one that has not is removed."""
    from huggingface_hub import HfApi

    options: dict[str, Any] = {"local_dir": target} if target is not None else {"revision": folder.name}
    found = HfApi().verify_repo_checksums(item.hub_id, **options)
    wrong = [str(entry["path"]) for entry in found.mismatches]
    for path in wrong:
        (folder / path).resolve().unlink(missing_ok=True)
        (folder / path).unlink(missing_ok=True)
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise UserError(
            f"{folder / wrong[0]}{more} is not what {item.hub_id} has; removed: give the same command again"
        )


def _place_lora(item: Wanted, folder: Path, to: Path | None) -> Path:
    source = folder / item.patterns[0]
    if to is None:
        return source
    target = to / LORA_FOLDER / f"{item.lora}.safetensors"
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        link_or_copy(source.resolve(), target)
    return target


@contextlib.contextmanager
def explained(item: Wanted) -> Iterator[None]:
    """The hub client's errors as one line each, with the remedy."""
    from huggingface_hub import errors

    page = f"https://huggingface.co/{item.hub_id}"
    try:
        yield
    except UserError:
        raise
    except errors.GatedRepoError:
        raise UserError(
            f"{item.hub_id} wants its conditions accepted: open {page}, accept them, then run `hf auth login`"
        ) from None
    except errors.RepositoryNotFoundError:
        raise UserError(
            f"{item.hub_id} is not on the hub, or is private: look at {page}, or run `hf auth login`"
        ) from None
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"could not download {item.hub_id} ({reason}): give the same command again, it goes on where it stopped"
        ) from error


def downloaded(name: str, layouts: Sequence[str] = ("diffusers", "official")) -> bool:
    """Whether a model of the catalogue is in the hub client's cache, as far as that says; nothing is fetched."""
    from huggingface_hub import try_to_load_from_cache

    model = next(model for model in MODELS if model.name == name)
    ids = {"diffusers": (model.hub_id, "model_index.json"), "official": (model.official_id, "config.json")}
    return any(isinstance(try_to_load_from_cache(*ids[layout]), str) for layout in layouts)
