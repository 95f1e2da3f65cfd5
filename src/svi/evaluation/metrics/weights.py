"""The weight files of the metrics: what they are, under which licence, where they are found, and what to do without.

Knows nothing about networks. Nothing is downloaded unless :func:`download` is called; a file that is not what was
published is refused, because its scores would carry a name that they have no right to.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.error import URLError

from svi.errors import UserError, nearest
from svi.files import explained, file_sha256, replacing

FOLDER_VARIABLE = "SVI_METRIC_WEIGHTS"
MB = 1_000_000


@dataclass(frozen=True)
class WeightFile:
    """One network as it is published.

    Attributes:
        name: how options, folders and messages call it.
        metrics: which need it.
        licence: of the weights, as far as their publisher says.
        size_bytes: about; for planning.
        file: name of the published file; None for a folder of the transformers layout.
        hub: repository on the Hugging Face hub.
        url: of the file.
        sha256: of the file, or its leading digits where the publisher gives only those; None when unknown.
        vbench: where VBench keeps the same file, below its cache.
        research_only: not for commercial use.
    """

    name: str
    metrics: tuple[str, ...]
    licence: str
    size_bytes: int
    file: str | None = None
    hub: str | None = None
    url: str | None = None
    sha256: str | None = None
    vbench: str | None = None
    research_only: bool = False


_IQA = "https://github.com/chaofengc/IQA-PyTorch/releases/download/v0.1-weights/"
_TORCH = "https://download.pytorch.org/models/"

_ROWS = (
    WeightFile("dino-vitb16", ("subject_consistency",), "Apache-2.0", 343 * MB, hub="facebook/dino-vitb16"),
    WeightFile("clip-vit-b32", ("background_consistency",), "MIT", 605 * MB, hub="openai/clip-vit-base-patch32"),
    WeightFile("clip-vit-l14", ("aesthetic_quality",), "MIT", 1711 * MB, hub="openai/clip-vit-large-patch14"),
    WeightFile(
        "laion-aesthetic-v1",
        ("aesthetic_quality",),
        "MIT",
        4_000,
        file="sa_0_4_vit_l_14_linear.pth",
        url="https://raw.githubusercontent.com/LAION-AI/aesthetic-predictor/main/sa_0_4_vit_l_14_linear.pth",
        vbench="aesthetic_model/emb_reader",
    ),
    WeightFile(
        "musiq-spaq",
        ("imaging_quality",),
        "Apache-2.0 (google-research/musiq, converted by IQA-PyTorch)",
        109 * MB,
        file="musiq_spaq_ckpt-358bb6af.pth",
        url=_IQA + "musiq_spaq_ckpt-358bb6af.pth",
        sha256="358bb6af",
        vbench="pyiqa_model",
    ),
    WeightFile(
        "raft-large-things",
        ("dynamic_degree",),
        "BSD-3-Clause",
        21 * MB,
        file="raft_large_C_T_V1-22a6c225.pth",
        url=_TORCH + "raft_large_C_T_V1-22a6c225.pth",
        sha256="22a6c225",
    ),
    WeightFile(
        "amt-s",
        ("motion_smoothness",),
        "CC BY-NC 4.0",
        12 * MB,
        file="amt-s.pth",
        hub="lalala125/AMT",
        vbench="amt_model",
        research_only=True,
    ),
    WeightFile(
        "alexnet",
        ("lpips_reference", "lpips_truth"),
        "BSD-3-Clause",
        244 * MB,
        file="alexnet-owt-7be5be79.pth",
        url=_TORCH + "alexnet-owt-7be5be79.pth",
        sha256="7be5be79",
    ),
    WeightFile(
        "i3d-torchscript",
        ("fvd",),
        "Apache-2.0 (Kinetics-400 I3D, as distributed with StyleGAN-V)",
        51 * MB,
        file="i3d_torchscript.pt",
        url="https://www.dropbox.com/s/ge9e5ujwgetktms/i3d_torchscript.pt?dl=1",
    ),
    WeightFile(
        "syncnet-v2",
        ("sync_c", "sync_d"),
        "MIT (code); weights by the Visual Geometry Group, Oxford",
        55 * MB,
        file="syncnet_v2.model",
        url="https://www.robots.ox.ac.uk/~vgg/software/lipsync/data/syncnet_v2.model",
    ),
)
TABLE: Mapping[str, WeightFile] = {row.name: row for row in _ROWS}


@dataclass(frozen=True)
class Places:
    """Where weights are looked for, in this order.

    Attributes:
        paths: a file (or folder of the transformers layout) by name of :data:`TABLE`.
        folder: holds files under their published names and folders under the names of :data:`TABLE`; by default what
            the environment variable ``SVI_METRIC_WEIGHTS`` says.
        caches: look also where transformers, torch.hub and VBench keep what they downloaded.
        hashes: SHA-256 that a file must have, by name; needed for files that are programs, where the table knows none.
    """

    paths: Mapping[str, Path] = field(default_factory=dict)
    folder: Path | None = None
    caches: bool = True
    hashes: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in (*self.paths, *self.hashes):
            row(name)


def row(name: str) -> WeightFile:
    """The row of the table.

    Raises:
        UserError: no such weights.
    """
    if name not in TABLE:
        raise UserError(f"no weights are called {name!r}: {nearest(name, TABLE)}")
    return TABLE[name]


def find(name: str, places: Places) -> Path | None:
    """The file or folder, or None. A path that was given by name is the only one looked at."""
    wanted = row(name)
    if name in places.paths:
        path = Path(places.paths[name])
        return path if _usable(wanted, path) else None
    return next((path for path in _candidates(wanted, places) if _usable(wanted, path)), None)


def why_missing(name: str, places: Places) -> str | None:
    """None where the weights are there; else one line that says where they were looked for, and the remedy."""
    wanted = row(name)
    if find(name, places) is not None:
        return None
    if name in places.paths:
        kind = "file" if wanted.file else "folder with config.json and model.safetensors"
        return f"weights {name}: {places.paths[name]} is no {kind}; give the path of {_what(wanted)}"
    folder = _folder(places)
    put = f"into {folder}" if folder else f"into a folder and name it in ${FOLDER_VARIABLE}"
    size = f"{wanted.size_bytes / MB:.0f} MB, " if wanted.size_bytes >= MB else ""
    return f"weights {name} not found: put {_what(wanted)} ({size}{wanted.licence}) {put}"


def fingerprint(name: str, places: Places) -> str | None:
    """SHA-256 of the weights that would be used, None without; the same file is read once per process."""
    path = find(name, places)
    if path is None:
        return None
    main = path if path.is_file() else _weights_in(path)
    assert main is not None
    status = main.stat()
    return _hash_once(main, status.st_mtime_ns, status.st_size)


def verified(name: str, places: Places) -> Path:
    """The file or folder, after a look at its hash where one is known.

    Raises:
        UserError: missing, or not the published file.
    """
    reason = why_missing(name, places)
    if reason is not None:
        raise UserError(reason)
    path, found = find(name, places), fingerprint(name, places)
    assert path is not None
    assert found is not None
    known = expected_hash(name, places)
    if known is not None and not found.startswith(known.lower()):
        raise UserError(f"{path} is not the published {name} (sha256 {found}, not {known}...): fetch it again")
    return path


def expected_hash(name: str, places: Places) -> str | None:
    """The hash that the caller or the table knows, or its leading digits, or None."""
    return places.hashes.get(name) or row(name).sha256


def download(name: str, folder: Path) -> Path:
    """Fetch weights into ``folder``, where ``Places(folder=folder)`` finds them. Only ever called because a user asked.

    Raises:
        UserError: not reachable, or what came is not the published file.
    """
    wanted = row(name)
    with explained(folder, "create"):
        folder.mkdir(parents=True, exist_ok=True)
    if wanted.url is not None:
        assert wanted.file is not None
        _download_file(wanted, folder / wanted.file)
    else:
        _download_from_hub(wanted, folder)
    return verified(name, Places(folder=folder, caches=False))


def _download_file(wanted: WeightFile, target: Path) -> None:
    from torch.hub import download_url_to_file

    assert wanted.url is not None
    with replacing(target) as temporary:
        try:
            download_url_to_file(wanted.url, str(temporary), progress=False)
        except URLError as error:
            raise _unreachable(wanted, error) from error
        found = file_sha256(temporary)
        if wanted.sha256 is not None and not found.startswith(wanted.sha256):
            raise UserError(f"what came from {wanted.url} has sha256 {found}, not {wanted.sha256}...: try again")


def _download_from_hub(wanted: WeightFile, folder: Path) -> None:
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download

    assert wanted.hub is not None
    try:
        if wanted.file is not None:
            hf_hub_download(wanted.hub, wanted.file, local_dir=folder)
            return
        files = set(HfApi().list_repo_files(wanted.hub))
        weights = "model.safetensors" if "model.safetensors" in files else "pytorch_model.bin"
        snapshot_download(wanted.hub, local_dir=folder / wanted.name, allow_patterns=["config.json", weights])
    except Exception as error:  # whatever the hub's HTTP library of the day raises
        raise _unreachable(wanted, error) from error


def _unreachable(wanted: WeightFile, error: Exception) -> UserError:
    return UserError(f"cannot fetch {wanted.name} ({str(error)[:160]}): fetch {_what(wanted)} by hand")


def _what(wanted: WeightFile) -> str:
    if wanted.file and wanted.url:
        return f"{wanted.file} from {wanted.url}"
    return f"{wanted.file or 'the files'} of {wanted.hub} on the Hugging Face hub"


def _folder(places: Places) -> Path | None:
    named = os.environ.get(FOLDER_VARIABLE)
    return places.folder or (Path(named).expanduser() if named else None)


def _candidates(wanted: WeightFile, places: Places) -> Iterator[Path]:
    folder = _folder(places)
    if folder is not None:
        yield folder / (wanted.file or wanted.name)
    if not places.caches:
        return
    if wanted.hub is not None:
        yield from _in_hub_cache(wanted.hub, wanted.file)
    if wanted.url is not None and wanted.file is not None:
        home = os.environ.get("TORCH_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "torch"
        yield Path(home).expanduser() / "hub" / "checkpoints" / wanted.file
    if wanted.vbench is not None and wanted.file is not None:
        cache = Path(os.environ.get("VBENCH_CACHE_DIR") or "~/.cache/vbench").expanduser()
        yield cache / wanted.vbench / wanted.file


def _in_hub_cache(repository: str, file: str | None) -> Iterator[Path]:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repository, file or "config.json")
    if isinstance(found, str):
        yield Path(found) if file else Path(found).parent


def _weights_in(folder: Path) -> Path | None:
    """The file that transformers would read: safetensors first."""
    paths = (folder / name for name in ("model.safetensors", "pytorch_model.bin"))
    return next((path for path in paths if path.is_file()), None)


def _usable(wanted: WeightFile, path: Path) -> bool:
    if wanted.file is not None:
        return path.is_file()
    return (path / "config.json").is_file() and _weights_in(path) is not None


@functools.lru_cache(maxsize=64)
def _hash_once(path: Path, modified_ns: int, size: int) -> str:
    """Hash of a file; time and size are part of what is remembered, so a replaced file is read again."""
    del modified_ns, size
    return file_sha256(path)
