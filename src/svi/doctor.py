"""What this machine is, what runs on it and what is broken, each with its remedy.

Nothing is believed because it is installed: attention implementations are run, a video is encoded and read back, and a small
model makes two clips. Knows nothing about how a page looks.
"""

from __future__ import annotations

import io
import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from svi.backends import attention, placement
from svi.backends.memory import GIB, KNOWN_MODELS, ModelSizes, Window
from svi.backends.timing import matmul_flops
from svi.backends.weights import SETTINGS_FILE, find_model
from svi.conditioning.policy import PRESETS
from svi.errors import UserError
from svi.files import read_json
from svi.generation.manifest import software_versions
from svi.self_test import self_test
from svi.speed import SPEEDS

DISTRIBUTION = "stable-video-infinity"
LEAST_DISK_BYTES = GIB
# Of what matrix products reach, so much of a clip's work gets done, by speed preset: on an H200 the published code gets 371 of
# 790 TFLOP/s, compiled blocks with the fastest exact attention about 620. An estimate, not a measurement: `svi bench speed`.
SHARE = {"reference": 0.47, "balanced": 0.78}
Say = Callable[[str], None]


@dataclass(frozen=True)
class Problem:
    """Something that is broken, and what mends it."""

    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.what}: {self.remedy}"


@dataclass(frozen=True)
class Prospect:
    """Whether and how a model would run here.

    Attributes:
        model, presets: which model, and the presets made for it.
        profile: memory profile; None where it does not fit.
        peak: estimated, in words; why not, where it does not fit.
        seconds: estimated for a clip, by speed preset.
    """

    model: str
    presets: tuple[str, ...]
    profile: str | None
    peak: str
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass
class Examination:
    """What was found, topic by topic."""

    versions: dict[str, str] = field(default_factory=dict)
    machine: dict[str, str] = field(default_factory=dict)
    choices: list[str] = field(default_factory=list)
    attention: list[str] = field(default_factory=list)
    codecs: list[str] = field(default_factory=list)
    models: list[Prospect] = field(default_factory=list)
    self_test: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {**asdict(self), "problems": [str(problem) for problem in self.problems]}


def examine(device: str | None = None, *, run_self_test: bool = True, say: Say = lambda line: None) -> Examination:
    """Examine this machine, as for a model on ``device``.

    Raises:
        UserError: for a device that is not there.
    """
    found = Examination()
    chosen = placement.choose(device)
    found.versions = software_versions()
    found.problems += _requirement_problems()
    found.machine, problems = _machine(chosen.device)
    found.problems += problems
    found.choices = chosen.lines()
    say("trying attention implementations")
    found.attention, problems = _attention(chosen)
    found.problems += problems
    say("encoding and reading a video")
    found.codecs, problems = _codecs()
    found.problems += problems
    say("measuring matrix products")
    found.models = list(_prospects(chosen, matmul_flops(chosen.device, chosen.dtype)))
    if run_self_test:
        say("making two clips with the pocket model")
        found.self_test, problems = _self_tests(chosen.device)
        found.problems += problems
    return found


# -- software ----------------------------------------------------------------------------------------------------------


def _requirement_problems() -> Iterator[Problem]:
    """Libraries that are missing or of a version that is not supported, by the package's own requirements."""
    from packaging.requirements import Requirement

    try:
        wanted = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        yield Problem("svi is not installed as a package", "pip install . (or `make demo`) in its folder")
        return
    for line in wanted:
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            yield Problem(f"{requirement.name} is missing", f"pip install '{requirement}'")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            yield Problem(f"{requirement.name} {version} is not supported", f"pip install '{requirement}'")


# -- hardware ----------------------------------------------------------------------------------------------------------


def _machine(device: torch.device) -> tuple[dict[str, str], list[Problem]]:
    ram = placement.free_ram_bytes()
    disk = shutil.disk_usage(Path.cwd())
    facts = {
        "system": platform.platform(),
        "processor": f"{os.cpu_count()} cores, {torch.get_num_threads()} threads in use",
        "memory": "unknown" if ram is None else f"{ram / GIB:.1f} GiB free",
        "disk": f"{disk.free / GIB:.1f} GiB free in {Path.cwd()}",
    }
    problems = []
    if disk.free < LEAST_DISK_BYTES:
        problems.append(Problem(f"the disk of {Path.cwd()} is nearly full", "free some space, or run svi elsewhere"))
    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        capability = ".".join(map(str, torch.cuda.get_device_capability(number)))
        name = torch.cuda.get_device_name(number)
        facts[f"GPU {number}"] = f"{name}, capability {capability}, {free / GIB:.1f} of {total / GIB:.1f} GiB free"
    driver = _driver()
    if driver is not None:
        facts["driver"] = driver
        if not torch.cuda.is_available():
            build = f"was built for CUDA {torch.version.cuda}" if torch.version.cuda else "was built for CPUs"
            remedy = (
                "install torch as https://pytorch.org/get-started/locally says for this driver, or update the driver"
            )
            problems.append(
                Problem(f"there is an NVIDIA card ({driver}), but torch {torch.__version__} {build}", remedy)
            )
    return facts, problems


def _driver() -> str | None:
    """Card and driver as nvidia-smi names them; None where there is none, or no card."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    words = [tool, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(words, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.strip().splitlines()[0] if answer.strip() else None


def _attention(chosen: placement.Placement) -> tuple[list[str], list[Problem]]:
    names = attention.candidates(chosen.device)
    if chosen.device.type == "cuda":
        names = tuple(dict.fromkeys((*names, *attention.ASKED_FOR)))
    lines, problems = [], []
    for name in names:
        trial = attention.tried(name, chosen.device, chosen.dtype)
        state = f"runs, error {trial.error:.1e}" if trial.runs else "does not run"
        lines.append(f"{name}: {state}{'; ' + trial.why if trial.why else ''}")
        if name == attention.NATIVE and not trial.exact:
            remedy = "reinstall torch for this machine (pip install --force-reinstall torch)"
            problems.append(Problem(f"torch's own attention is wrong on {chosen.device} ({trial.why})", remedy))
    return lines, problems


# -- codecs ------------------------------------------------------------------------------------------------------------


def _codecs() -> tuple[list[str], list[Problem]]:
    """Encode a short video as runs do, and read it back."""
    import av

    remedy = "install PyAV's wheel from PyPI, which brings its codecs (pip install --force-reinstall av)"
    try:
        frames = _round_trip("libx264")
    except Exception as error:  # a broken FFmpeg fails in many ways, and all mean: no video
        return [f"libx264: broken ({error})"], [Problem(f"H.264 video cannot be written ({error})", remedy)]
    problems = [] if frames == 8 else [Problem(f"of 8 frames of H.264 video {frames} came back", remedy)]
    others = [name for name in ("libx265", "libsvtav1", "h264_nvenc", "aac") if name in av.codecs_available]
    return [f"libx264: 8 frames written, {frames} read", f"also built in: {', '.join(others) or 'none'}"], problems


def _round_trip(codec: str) -> int:
    import av
    import numpy as np

    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream: Any = container.add_stream(codec, rate=16)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for number in range(8):
            picture = np.full((64, 96, 3), 16 * number, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    file.seek(0)
    with av.open(file) as container:
        return sum(1 for _ in container.decode(video=0))


# -- models ------------------------------------------------------------------------------------------------------------


def _prospects(chosen: placement.Placement, matmul: float) -> Iterator[Prospect]:
    """How the built-in and the published models would run, from their sizes and the speed of matrix products here."""
    yield _prospect(*_pocket(), tuple(PRESETS), chosen, matmul)
    for sizes, window in KNOWN_MODELS.values():
        presets = tuple(name for name, policy in PRESETS.items() if policy.base.startswith(sizes.title))
        if presets:
            yield _prospect(sizes, window, presets, chosen, matmul)


def _pocket() -> tuple[ModelSizes, Window]:
    folder = find_model("pocket")
    parts = ("transformer", "vae", "text_encoder", "image_encoder")
    settings = read_json(folder / SETTINGS_FILE)
    window = Window(settings["height"], settings["width"], settings["num_frames"])
    return ModelSizes.of(
        "pocket (built in)", {part: read_json(folder / part / "config.json") for part in parts}
    ), window


def _prospect(
    sizes: ModelSizes, window: Window, presets: tuple[str, ...], chosen: placement.Placement, matmul: float
) -> Prospect:
    try:
        placed = placement.choose(chosen.device, chosen.dtype, sizes=sizes, window=window)
    except UserError as error:
        return Prospect(sizes.title, presets, None, str(error))
    assert placed.estimate is not None
    work = sizes.clip_flops(window, PRESETS[presets[0]].steps)
    seconds = {name: work / (share * matmul) for name, share in SHARE.items() if name in SPEEDS}
    there = placement.Machine.look(chosen.device)
    ram = there.ram_bytes
    if chosen.device.type != "cuda" and ram is not None and placed.estimate.ram > placement.SHARE * ram:
        return Prospect(sizes.title, presets, None, f"needs {placed.estimate.line()}, {ram / GIB:.1f} GiB are free")
    return Prospect(sizes.title, presets, placed.memory, placed.estimate.line(), seconds)


def _self_tests(device: torch.device) -> tuple[list[str], list[Problem]]:
    """On the CPU, and on the card where there is one."""
    lines: list[str] = []
    problems: list[Problem] = []
    for where in dict.fromkeys(("cpu", str(device))):
        try:
            outcome = self_test(where)
        except UserError as error:
            lines.append(f"{where}: broken")
            problems.append(Problem("the pocket model does not run", str(error)))
            continue
        lines.append(f"{where}: {outcome.line} ({outcome.seconds:.1f} s)")
        if outcome.passed is False:
            remedy = (
                "install the versions that are tested (pip install -c constraints.txt), then `svi parity` tells more"
            )
            problems.append(Problem(f"self-test on {where}: {outcome.line}", remedy))
    return lines, problems
