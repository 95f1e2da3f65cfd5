"""Is a model whole? From headers alone: every missing, truncated or foreign file by name, each with the command that mends it.

Nothing is loaded, nothing is fetched. Knows the layouts through their readers; nothing about how a model is used.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from svi.backends import folders, layouts_loose, official
from svi.backends.catalogue import MODELS, Model
from svi.backends.layouts import identify, plain
from svi.backends.layouts_files import SUFFIXES, header, size_bytes
from svi.backends.models_parts import STAGES, Part, PartName, Survey, refuse_misfits, survey
from svi.backends.weights import EXPERT_FOLDERS, find_model, layout, read_json
from svi.errors import UserError

INDEX = ".safetensors.index.json"
IMAGE_BRANCH = {"img_emb.proj.0.weight", "condition_embedder.image_embedder.norm1.weight"}


@dataclass(frozen=True)
class Row:
    """A part as it was found: ``title`` says what its tensors are, ``state`` is ``ok`` or what is wrong."""

    part: str
    title: str
    files: int
    bytes: int
    state: str


@dataclass
class Report:
    """What :func:`check` found.

    Attributes:
        model: as the user named it; ``folder``: where it lies.
        layout: ``diffusers``, ``official``, ``loose``, or ``file``.
        rows: its parts.
        problems: one line each, with the remedy; empty where the model is whole.
        title: the published model that its tensors are, or None.
    """

    model: str
    folder: str
    layout: str
    rows: list[Row] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    title: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


def check(model: str) -> Report:
    """Look at a model folder, a hub id in the cache, or a single weight file.

    Raises:
        UserError: where there is nothing of that name.
    """
    path = Path(model).expanduser()
    if path.is_file() and path.suffix in SUFFIXES:
        return _check_file(path)
    folder = find_model(model)
    report = Report(model, str(folder), layout(folder))
    makers = {"diffusers": _diffusers, "official": _official, "loose": _loose}[report.layout]
    parts: dict[PartName, Part] = {}
    for name, make in makers(folder):
        if name == "image_encoder" and not _reads_images(parts.get("transformer")):
            continue
        part, row, problems = _check_part(name, make)
        report.rows.append(row)
        report.problems += problems
        if part is not None:
            parts[name] = part
    if not report.problems:
        report.problems += _together(folder)
    report.title = next((row.title for row in report.rows if row.part.endswith("transformer")), None)
    report.problems += _tokenizer(folder, report.layout)
    report.problems = [f"{problem}{_mend(problem, report)}" for problem in dict.fromkeys(report.problems)]
    return report


Makers = Iterator[tuple[PartName, Callable[[], Part]]]


def _diffusers(folder: Path) -> Makers:
    listed = read_json(folder / "model_index.json")
    names: list[PartName] = ["transformer", "transformer_2", "vae", "text_encoder", "image_encoder"]
    for name in names:
        if name != "transformer_2" or (listed.get(name) or [None])[0] is not None:
            yield name, partial(folders.part, name, folder / name)


def _official(folder: Path) -> Makers:
    pair = any((folder / name).is_dir() for name in EXPERT_FOLDERS)
    places = [folder / name for name in EXPERT_FOLDERS] if pair else [folder]
    names: list[PartName] = ["transformer", "transformer_2"]
    encoders = folder / "config-encoders.json"
    sizes = read_json(encoders) if encoders.is_file() else {}
    for name, place in zip(names, places, strict=False):
        yield name, partial(_official_transformer, name, place)
    config = places[0] / "config.json"
    vae = read_json(config).get("vae", {}) if config.is_file() else {}
    yield "vae", lambda: official.vae_part(official.one(folder, "*VAE.pth"), vae)
    yield "text_encoder", lambda: official.text_part(official.one(folder, "models_t5_*.pth"), sizes.get("t5", {}))
    yield "image_encoder", lambda: official.image_part(official.one(folder, "models_clip_*.pth"), sizes.get("clip", {}))


def _official_transformer(name: PartName, place: Path) -> Part:
    return official.transformer_part(name, place, read_json(place / "config.json"))


def _loose(folder: Path) -> Makers:
    found: Survey = layouts_loose.survey(folder)
    for name, part in found.parts.items():
        yield name, partial(_as_found, part)


def _as_found(part: Part) -> Part:
    return part


def _reads_images(transformer: Part | None) -> bool:
    if transformer is None:
        return False
    try:
        return any(plain(name) in IMAGE_BRANCH for name, _ in transformer.headers()) or any(
            name in IMAGE_BRANCH for path in transformer.files for name in header(path).shapes
        )
    except UserError:
        return False


def _check_part(name: PartName, make: Callable[[], Part]) -> tuple[Part | None, Row, list[str]]:
    problems: list[str] = []
    try:
        part = make()
    except UserError as error:
        missing = [str(error), *_missing_shards(str(error))]
        return None, Row(STAGES[name], "", 0, 0, "missing"), list(dict.fromkeys(missing))
    shapes: dict[str, tuple[int, ...]] = {}
    holds: dict[str, str] = {}
    quantised = None
    for path in part.files:
        try:
            read = header(path)
        except UserError as error:
            problems.append(str(error))
            continue
        shapes |= read.shapes
        holds |= dict.fromkeys(read.shapes, path.name)
        quantised = quantised or read.quantised
    identity = identify(shapes, quantised=quantised)
    if not problems:
        problems += _misplaced(part, holds)
        try:
            part.verify()
        except UserError as error:
            foreign = identity.role not in {name.removesuffix("_2"), "unknown"} or identity.role == "unknown"
            problems.append(f"{error} (its tensors are {identity})" if foreign else str(error))
    state = "ok" if not problems else "damaged"
    return part, Row(STAGES[name], str(identity), len(part.files), size_bytes(part.files), state), problems


def _together(folder: Path) -> list[str]:
    """Whether parts that are whole in themselves are of one model."""
    try:
        found = survey(folder)
        refuse_misfits(found, {name: part.empty() for name, part in found.parts.items()})
    except UserError as error:
        return [str(error)]
    return []


def _missing_shards(message: str) -> list[str]:
    """Where one shard is missing: the other ones that are, too; a reader stops at the first."""
    place = Path(message.partition(" is missing")[0]).parent
    for index in place.glob(f"*{INDEX}"):
        weight_map = read_json(index).get("weight_map")
        names = sorted({str(name) for name in weight_map.values()}) if isinstance(weight_map, dict) else []
        return [
            f"{place / name} is missing, though {index.name} lists it: fetch the file again"
            for name in names
            if not (place / name).is_file()
        ]
    return []


def _misplaced(part: Part, holds: Mapping[str, str]) -> list[str]:
    """Tensors that lie in another shard than the index says: shards of two downloads, mixed."""
    for document in part.documents:
        if not document.name.endswith(INDEX):
            continue
        weight_map = json.loads(document.read_text(encoding="utf-8")).get("weight_map", {})
        for name, shard in weight_map.items():
            if name in holds and holds[name] != shard:
                return [f"{document} says {name} is in {shard}, it is in {holds[name]}: fetch the part again"]
            if name not in holds:
                return [f"{document} lists {name}, which {shard} does not hold: fetch the file again"]
    return []


def _tokenizer(folder: Path, kind: str) -> list[str]:
    places = {"diffusers": ("tokenizer",), "official": (official.TOKENIZER,)}.get(kind, layouts_loose.TOKENIZERS)
    if any((folder / place / name).is_file() for place in places for name in ("tokenizer.json", "spiece.model")):
        return []
    return [f"{folder / places[0]} has no tokenizer.json or spiece.model: fetch the model folder again"]


def published(report: Report) -> Model | None:
    """The published model that a report is about, as far as its tensors tell."""
    title = (report.title or "").partition(" (")[0]
    found = [model for model in MODELS if model.title.startswith(title)] if title.startswith("Wan") else []
    exact = [model for model in found if model.title.rpartition("-")[2].lower() in report.folder.lower()]
    return next(iter(exact or found), None)


def _mend(problem: str, report: Report) -> str:
    """The command that brings the files back, where it is known what they are files of."""
    model = published(report)
    if model is None or "fetch" not in problem or report.layout == "loose":
        return ""
    hub_id = model.official_id if report.layout == "official" else model.hub_id
    if "snapshots" in Path(report.folder).parts:
        return f" (svi models download {hub_id})"
    named = [word.rstrip(":,") for word in problem.split() if word.startswith(report.folder)]
    file = Path(named[0]).relative_to(report.folder).as_posix() if named else ""
    what = f' --include "{file}*"' if file not in {"", "."} else ""
    return f" (hf download {hub_id}{what} --local-dir {report.folder})"


def _check_file(path: Path) -> Report:
    report = Report(str(path), str(path), "file")
    try:
        read = header(path)
    except UserError as error:
        report.problems.append(str(error))
        return report
    identity = identify(read.shapes, quantised=read.quantised)
    report.title = str(identity)
    report.rows.append(Row(identity.role, str(identity), 1, path.stat().st_size, "ok"))
    if identity.role == "unknown":
        report.problems.append(f"{path} is no part of a Wan model: it seems to be {identity}")
    return report
