"""What the benchmarks share: a run to measure, the machine in words, and sections of docs/benchmarks.md.

Measures nothing itself.
"""

from __future__ import annotations

import os
import platform
import shlex
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from svi.backends.base import Backend

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "benchmarks.md"
COLOURS = ("red", "blue", "green", "yellow", "purple", "orange", "white", "pink")
MOTIONS = ("moves left", "moves right", "stops", "turns up", "turns down")


def machine() -> str:
    """Processor, cores, threads and versions, as measured results need them."""
    import diffusers

    name = _processor()
    return (
        f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads in use, fp32; "
        f"Python {platform.python_version()}, torch {torch.__version__.split('+')[0]}, diffusers {diffusers.__version__}"
    )


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def prompts(count: int) -> list[str]:
    """``count`` prompts, no two alike, so that a cache which grows with them would show."""
    return [
        f"a {COLOURS[k % len(COLOURS)]} ball {MOTIONS[k // len(COLOURS) % len(MOTIONS)]}, scene {k}"
        for k in range(count)
    ]


def picture(height: int, width: int) -> Tensor:
    """A reference image ``(H, W, 3)`` uint8 of the pocket world."""
    from svi.pocket.world import World

    return torch.as_tensor(World.sample(7, size=(height, width)).render(0.0))


@contextmanager
def new_run(backend: Backend, clips: int, steps: int | None, preset: str = "wan") -> Iterator[Any]:
    """A run of ``clips`` clips in a temporary folder."""
    from svi.generation.images import load_reference
    from svi.generation.manifest import resolve_settings
    from svi.generation.run import Run
    from svi.generation.storyboard import storyboard_from_prompts

    window = backend.geometry
    size = (window.width, window.height)
    story = storyboard_from_prompts(prompts(clips))
    settings = resolve_settings(window, backend.info, story, width=size[0], height=size[1], preset=preset, steps=steps)
    reference = load_reference(picture(window.height, window.width), size, window)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        yield Run.create(out, settings=settings, storyboard=story, reference=reference, model=backend.info, clips=clips)


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def write_section(name: str, body: str) -> None:
    """Replace section ``name`` of docs/benchmarks.md, between its two markers; the command line stands above it.

    Raises:
        ValueError: if the page has lost the markers.
    """
    start, end = f"<!-- {name}: written by its benchmark -->", f"<!-- end of {name} -->"
    page = PAGE.read_text(encoding="utf-8")
    if start not in page or end not in page:
        raise ValueError(f"{PAGE.name} needs the lines {start!r} and {end!r}")
    command = shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    text = f"{start}\n`{command}`, {date.today().isoformat()}, {machine()}\n\n{body}\n{end}"
    PAGE.write_text(page[: page.index(start)] + text + page[page.index(end) + len(end) :], encoding="utf-8")
    print(f"wrote section {name} of {PAGE.relative_to(ROOT)}")
