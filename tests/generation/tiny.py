"""A closed-form video model, small enough that a clip takes milliseconds, and a program that makes runs to be killed.

python tiny.py make RUN            make the run to its end
python tiny.py kill RUN SEED N     make it in child processes, N of which get SIGKILL at random moments
python tiny.py crash RUN           kill a child at its 1st file operation, the next at its 2nd ... until one survives
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from svi import files
from svi.backends.base import ModelInfo
from svi.condition import ClipCondition
from svi.errors import UserError, nearest
from svi.generation import clip_store, journal, making, playlist
from svi.generation.images import Reference
from svi.generation.manifest import RunSettings, checked_settings
from svi.generation.run import Run
from svi.generation.storyboard import Storyboard, storyboard_from_prompts
from svi.geometry import Geometry

GEOMETRY = Geometry(latent_channels=4, spatial_scale=8, height=32, width=48, num_frames=9, fps=8)
INFO = ModelInfo(
    name="tiny",
    files={"weights.safetensors": "a" * 64, "config.json": "b" * 64},
    loras={"sketch": "c" * 64},
    lora_strengths={"sketch": 1.0},
    lora_sources={"sketch": "sketch.safetensors"},
)


class TinyBackend:
    """Pulls noise towards the condition's mean plus a wave that depends on the prompt: clips differ and drift."""

    geometry = GEOMETRY

    def __init__(self, info: ModelInfo = INFO, step_s: float = 0.0) -> None:
        self.info = info
        self.step_s = step_s
        self.strengths: dict[str, float] = {}

    def encode_video(self, video: Tensor) -> Tensor:
        first, rest = video[:, :, :1], video[:, :, 1:]
        rest = rest.unflatten(2, (-1, 4)).mean(3)
        small = F.avg_pool3d(torch.cat([first, rest], 2), (1, 8, 8))
        return torch.cat([small, small.mean(1, keepdim=True)], 1)

    def decode(self, latents: Tensor) -> Iterator[Tensor]:
        for number, latent in enumerate(latents[0, :3].unbind(1)):
            picture = F.interpolate(latent[None], scale_factor=8, mode="bilinear")[0].permute(1, 2, 0)
            shown = ((picture.clamp(-1, 1) + 1) * 127.5).to(torch.uint8)
            yield shown[None].expand(4 if number else 1, -1, -1, -1).clone()

    def encode_text(self, prompts: Sequence[str]) -> Tensor:
        rows = [[(hash_of(prompt) >> (8 * i)) % 256 / 255 for i in range(4)] for prompt in prompts]
        return torch.tensor(rows)[:, None, :]

    def encode_image(self, images: Tensor) -> Tensor | None:
        return None

    def velocity(self, noisy: Tensor, sigma: Tensor, condition: ClipCondition) -> Tensor:
        time.sleep(self.step_s)
        level = sigma.view(-1, 1, 1, 1, 1)
        known = condition.values[:, :, :1]
        wave = condition.text.mean(1).view(-1, 4, 1, 1, 1) * (1 + self.strengths.get("sketch", 0.0))
        clean = 0.9 * known + 0.3 * torch.sin(6 * wave + known) + 0.1 * noisy
        return (noisy - clean) / level

    def set_lora_strengths(self, strengths: Mapping[str, float]) -> None:
        for name in strengths:
            if name not in self.info.loras:
                raise UserError(f"unknown LoRA {name!r}; {nearest(name, self.info.loras)}")
        self.strengths = dict(strengths)


def hash_of(text: str) -> int:
    """A stable hash (Python's own changes with each process)."""
    value = 5381
    for letter in text.encode():
        value = (value * 33 + letter) % 2**32
    return value


def reference() -> Reference:
    rows = torch.linspace(0, 255, 32).view(32, 1, 1)
    columns = torch.linspace(255, 0, 48).view(1, 48, 1)
    image = torch.cat([rows.expand(32, 48, 1), columns.expand(32, 48, 1), torch.full((32, 48, 1), 90.0)], 2)
    return Reference(image.to(torch.uint8), source="ramp.png")


def settings(**changes: object) -> RunSettings:
    # fmt: off
    base = {
        "preset": "wan", "height": 32, "width": 48, "num_frames": 9, "fps": 8, "seed": 7, "steps": 3,
        "guidance": 2.0, "shift": 5.0, "loras": {"sketch": 1.0},
    }
    # fmt: on
    return checked_settings({**base, **changes})


def new_run(
    out: Path,
    *,
    clips: int | None = 4,
    prompts: Sequence[str] = ("a", "b", "c"),
    story: Storyboard | None = None,
    **changes: object,
) -> Run:
    return Run.create(
        out,
        settings=settings(**changes),
        storyboard=story or storyboard_from_prompts(prompts),
        reference=reference(),
        model=INFO,
        clips=clips,
    )


def _child(path: Path, step_s: float, die_at: int | None = None) -> int:
    """Fork a process that makes the run; with ``die_at`` it kills itself at that file operation. Returns its id."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        if die_at is not None:
            _die_at(die_at)
        Run.open(path).generate(TinyBackend(step_s=step_s))
        code = 0
    finally:
        os._exit(code)


def _die_at(number: int) -> None:
    """Count every write, rename, append and sync; SIGKILL in the middle of number ``number``."""
    left = [number]

    def deadly(function, half):
        def call(*args, **named):
            left[0] -= 1
            if left[0] < 0:
                half(*args)
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **named)

        return call

    def half_written(path: Path, data: bytes) -> None:
        path.write_bytes(data[: len(data) // 2])

    def half_line(log: journal.Journal, *_: object) -> None:
        with log.path.open("ab") as stream:
            stream.write(b'{"time": "2026-01-01T00:00:0')

    def nothing(*_: object) -> None:
        pass

    for module in (files, clip_store):
        module.write_synced = deadly(files.write_synced, half_written)
        module.publish = deadly(files.publish, nothing)
    journal.Journal.append = deadly(journal.Journal.append, half_line)
    playlist.Playlist.append = deadly(playlist.Playlist.append, nothing)
    making.remove_leftovers = deadly(making.remove_leftovers, nothing)


def _wait(process: int) -> bool:
    """Whether the child came to its end by itself; anything but a clean end or SIGKILL is an error."""
    _, status = os.waitpid(process, 0)
    if os.WIFEXITED(status):
        if os.WEXITSTATUS(status):
            raise SystemExit("a child failed")
        return True
    return False


def kill(path: Path, seed: int, kills: int) -> None:
    """Kill at random moments, spread over the run however fast the machine is: some children first make a clip or two."""
    draw, run = random.Random(seed), Run.open(path)
    target = run.target or 0
    for done in range(kills):
        process = _child(path, step_s=0.02)
        made = run.count
        wished = min(target - 3, made + draw.choice((0, 0, 1, 1, 2)))
        while run.count < wished:
            time.sleep(0.001)
        time.sleep(draw.uniform(0, 0.1 if made < target - 3 else 0.02))
        os.kill(process, signal.SIGKILL)
        if _wait(process):
            raise SystemExit(f"the run ended after {done} kills: make it longer")
        check_playlist(path)
    print(f"{kills} kills, {run.count} clips survived")
    assert _wait(_child(path, step_s=0.0))


def check_playlist(path: Path) -> None:
    """Whatever happened, a player finds whole lines and files that exist, in order."""
    if not (path / "video.m3u8").exists():
        return
    text = (path / "video.m3u8").read_text()
    segments = [line for line in text.splitlines() if not line.startswith("#")]
    assert (text[:8], text[-1]) == ("#EXTM3U\n", "\n"), text
    assert all((path / segment).is_file() for segment in segments), text
    assert segments == sorted(segments), text


def crash(path: Path) -> None:
    number = 0
    while not _wait(_child(path, step_s=0.0, die_at=number)):
        number += 1
        check_playlist(path)
    print(f"{number} crash points")


if __name__ == "__main__":
    torch.set_num_threads(1)
    command, run = sys.argv[1], Path(sys.argv[2])
    if command == "make":
        Run.open(run).generate(TinyBackend())
    elif command == "kill":
        kill(run, int(sys.argv[3]), int(sys.argv[4]))
    elif command == "crash":
        crash(run)
