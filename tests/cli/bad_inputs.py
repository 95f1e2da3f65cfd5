"""Bad inputs, as data: what is wrong, the command that has it, and what the error line must name.

Each case is a function of the folder to work in (with ``cat.png`` and, where asked for, a finished run ``run``) that
returns the words of the command. ``{model}`` in a word stands for the model folder.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

Words = list[str]
Setup = Callable[[Path], None]


@dataclass(frozen=True)
class Case:
    """``needs_run``: a finished run stands in ``run``; ``loads``: only the weights themselves can tell that it is wrong."""

    name: str
    words: Words
    keywords: tuple[str, ...]
    setup: Setup | None = None
    needs_run: bool = False
    loads: bool = False


CASES: list[Case] = []
GENERATE = ["generate", "cat.png", "--prompt", "a cat", "--model", "{model}"]


def case(name: str, words: Words, *keywords: str, **options: object) -> None:
    CASES.append(Case(name, words, keywords, **options))  # type: ignore[arg-type]


def generate(name: str, words: Words, *keywords: str, **options: object) -> None:
    case(name, [*GENERATE, *words], *keywords, **options)


def image(name: str, data: bytes | None, *keywords: str, file: str = "bad.png") -> None:
    def setup(home: Path) -> None:
        if data is not None:
            (home / file).write_bytes(data)

    case(f"image {name}", ["generate", file, "--prompt", "a cat", "--model", "{model}"], *keywords, setup=setup)


def prompts(name: str, data: bytes, *keywords: str, file: str = "story.txt", option: str = "--prompts") -> None:
    def setup(home: Path) -> None:
        (home / file).write_bytes(data)

    case(f"{option} {name}", ["generate", "cat.png", option, file, "--model", "{model}"], *keywords, setup=setup)


def storyboard(name: str, text: str, *keywords: str) -> None:
    prompts(name, text.encode(), *keywords, file="story.yaml", option="--storyboard")


def on_run(name: str, words: Words, *keywords: str, setup: Setup | None = None, **options: object) -> None:
    case(name, words, *keywords, setup=setup, needs_run=True, **options)


def png(width: int, height: int) -> bytes:
    """A valid header, and pixels that break off at once."""
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    start = struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))
    return b"\x89PNG\r\n\x1a\n" + start + struct.pack(">I", 9000) + b"IDATx"


# ---- words ---------------------------------------------------------------------------------------------------------
case("no such command", ["generat"], "generat", "did you mean 'generate'")
case("no such option", ["generate", "--stesp", "4"], "--stesp", "did you mean '--steps'")
case("option without its value", ["generate", "--steps"], "--steps", "expected one argument")
case("two images", ["generate", "cat.png", "dog.png", "--model", "{model}"], "too many", "dog.png")
case("two ways to print", ["generate", "--json", "--quiet"], "--quiet", "not allowed with")
generate("no threads", ["--threads", "0"], "--threads", "at least 1")
case("pocket without a verb", ["pocket"], "svi pocket build")

# ---- images --------------------------------------------------------------------------------------------------------
image("missing", None, "bad.png", "does not exist")
image("empty", b"", "bad.png", "is empty")
image("not an image", b"this is no picture\n", "bad.png", "not a png, jpeg or webp")
image("truncated", png(48, 32), "bad.png", "damaged or truncated")
image("huge", png(60_000, 60_000), "bad.png", "megapixels")
image("vector", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "bad.svg", "not a png", file="bad.svg")
case(
    "image is a folder",
    ["generate", "pics", "--prompt", "a", "--model", "{model}"],
    "pics",
    "folder",
    setup=lambda home: (home / "pics").mkdir(),
)
case("image without prompts", ["generate", "cat.png", "--model", "{model}"], "no prompts", "--prompt")
case("prompts without an image", ["generate", "--prompt", "a cat", "--model", "{model}"], "no image", "IMAGE")

# ---- prompts -------------------------------------------------------------------------------------------------------
generate("prompt file missing", [], "story.txt", "does not exist")
CASES[-1].words[2:4] = ["--prompts", "story.txt"]
prompts("empty", b"", "story.txt", "is empty")
prompts("only comments", b"# a cat\n\n# walks\n", "story.txt", "no prompts")
prompts("binary", b"a cat\x00\x01\x02walks", "story.txt", "binary")
prompts("Latin-1", "ein K\u00e4tzchen".encode("latin-1"), "story.txt", "UTF-8")
prompts("UTF-16", "a cat".encode("utf-16"), "story.txt", "UTF-16")
prompts("a call", b"prompts = [open('/etc/passwd').read()]\n", "story.txt", "code", "line 1")
prompts("an import", b"import os\nprompts = ['a cat']\n", "story.txt", "code", "line 1")
prompts("an f-string", b"prompts = ['a cat', f'{1 + 1}']\n", "story.txt", "code")
prompts("half a list", b"prompts = ['a cat',\n", "story.txt", "prompts = [")
case("prompt file is a folder", ["generate", "cat.png", "--prompts", "."], "folder")
case("empty prompt", ["generate", "cat.png", "--prompt", "  "], "prompt is empty")
generate("prompts twice", ["--prompts", "story.txt"], "only one of", "--prompts")

# ---- storyboards ---------------------------------------------------------------------------------------------------
SCENES = "scenes:\n- beats:\n  - prompt: a cat\n"
storyboard("unknown key", f"guidence: 3\n{SCENES}", "line 1", "guidence", "did you mean 'guidance'")
storyboard("unknown key in a beat", f"{SCENES}    repaet: 2\n", "line 4", "repaet", "did you mean 'repeat'")
storyboard("beat without prompt", "scenes:\n- beats:\n  - repeat: 2\n", "line 3", "prompt", "missing")
storyboard("repeat of zero", f"{SCENES}    repeat: 0\n", "line 4", "repeat", "greater than or equal to 1")
storyboard("no scenes", "title: nothing\n", "scenes", "missing")
storyboard("number for a prompt", "scenes:\n- beats:\n  - prompt: 12\n", "line 3", "quotes")
storyboard("broken YAML", "scenes: [\n", "story.yaml", "line")
storyboard("a Python object", "scenes: !!python/object/apply:os.system ['true']\n", "story.yaml", "line 1")
storyboard("unknown preset", f"preset: flim\n{SCENES}", "flim", "did you mean 'film'")
storyboard("strength of an unknown LoRA", f"{SCENES}    loras: {{style: 0.5}}\n", "style", "not loaded")
storyboard("clips in words", f"clips: forever\n{SCENES}", "line 1", "clips", "endless")
case(
    "storyboard whose image is missing",
    ["generate", "--storyboard", "story.yaml", "--model", "{model}"],
    "dog.png",
    "does not exist",
    setup=lambda home: (home / "story.yaml").write_text(f"image: dog.png\n{SCENES}") and None,
)

# ---- length, size, sampling ----------------------------------------------------------------------------------------
for value in ("0", "-3", "2.5", "many"):
    generate(f"--clips {value}", ["--clips", value], "--clips must be", value)
for value in ("0", "-1", "nan", "inf", "long"):
    generate(f"--seconds {value}", ["--seconds", value], "--seconds must be", value)
generate("clips and endless", ["--clips", "3", "--endless"], "only one of", "clips", "endless")
generate("clips and seconds", ["--clips", "3", "--seconds", "4"], "only one of", "clips", "seconds")
generate("size that does not divide", ["--size", "100x50"], "100x50", "multiples of 16", "96x48")
for value in ("64", "0x64", "axb", "-16x16", "64x64x64"):
    generate(f"--size {value}", [f"--size={value}"], "--size must be WIDTHxHEIGHT", value)
for value, nearest in (("16", "17"), ("1", "5"), ("18", "17")):
    generate(f"--frames {value}", ["--frames", value], "4n+1", value, f"nearest is {nearest}")
generate("frames fewer than the overlap", ["--frames", "5", "--preset", "film"], "5 frames", "film", "overlap")
for value in ("0", "-1", "1.5", "ten"):
    generate(f"--steps {value}", ["--steps", value], "--steps must be", value)
for value in ("-1", "nan", "inf", "high"):
    generate(f"--guidance {value}", ["--guidance", value], "--guidance must be", value)
generate("--seed -1", ["--seed", "-1"], "--seed must be at least 0")
generate("--seed too large", ["--seed", str(2**70)], "seed", "should be less")
generate("steps beyond reason", ["--steps", "100000"], "steps", "1000")
generate("unknown solver", ["--solver", "eular"], "eular", "did you mean 'euler'")
generate("unknown preset", ["--preset", "flim"], "flim", "did you mean 'film'")
generate("preset that needs audio", ["--preset", "talk"], "talk", "audio")

# ---- model, LoRA, machine ------------------------------------------------------------------------------------------
case("unknown model", ["generate", "cat.png", "--prompt", "a", "--model", "pokcet"], "pokcet", "did you mean 'pocket'")
case("model is a file", ["generate", "cat.png", "--prompt", "a", "--model", "cat.png"], "cat.png", "is a file")
case(
    "folder is no model",
    ["generate", "cat.png", "--prompt", "a", "--model", "."],
    "no model folder",
    "model_index.json",
)
case(
    "hub model not here",
    ["generate", "cat.png", "--prompt", "a", "--model", "nobody/nothing"],
    "nobody/nothing",
    "--download",
)
generate("unknown device", ["--device", "gpu"], "gpu", "cuda")
generate("device that is not there", ["--device", "cuda:99"], "cuda:99", "cpu")
generate("unknown dtype", ["--dtype", "float8"], "float8", "float")
generate("unknown LoRA", ["--lora", "sketch"], "sketch", "LoRA")
generate("LoRA file missing", ["--lora", "style.safetensors:0.5"], "style.safetensors", "missing")


def lora(name: str, words: Words, *keywords: str, data: bytes | None = None, loads: bool = False) -> None:
    def setup(home: Path) -> None:
        if data is None:
            save_file({"blocks.0.attn9.to_q.lora_A.weight": torch.zeros(2, 8)}, home / "style.safetensors")
        else:
            (home / "style.safetensors").write_bytes(data)

    generate(f"LoRA {name}", ["--lora", *words], *keywords, setup=setup, loads=loads)


lora(
    "not safetensors", ["style.safetensors"], "style.safetensors", "damaged or not safetensors", data=b"PK\x03\x04" * 20
)
lora("truncated", ["style.safetensors"], "style.safetensors", "damaged", data=struct.pack("<Q", 900) + b'{"a":')
lora("empty file", ["style.safetensors"], "style.safetensors", "damaged", data=b"")
lora("strength in words", ["style.safetensors:strong"], "strength", "strong")
lora("strength nan", ["style.safetensors:nan"], "strength", "nan")
lora("strength infinite", ["style.safetensors:inf"], "strength", "inf")
lora("keys of another model", ["style.safetensors"], "style.safetensors", loads=True)
generate("LoRA is a picture", ["--lora", "cat.png", "x.safetensors"], "cat.png", "not a .safetensors")

# ---- where to write ------------------------------------------------------------------------------------------------
generate("--out is a file", ["--out", "cat.png"], "cat.png", "file", "--out")
generate("--out below a file", ["--out", "cat.png/run"], "cat.png")
generate("--out has other things in it", ["--out", "."], "other things", "--out")
on_run("--out is a run", [*GENERATE, "--out", "run"], "already holds a run", "svi resume")
generate("--out cannot be made", ["--out", "/proc/nothing/run"], "/proc", "cannot", loads=True)
case("schema over a file", ["schema", "--out", "cat.png"], "cat.png", "exists already")
case("parity on a folder that is no kit", ["parity", "."], "no parity kit")


# ---- runs ----------------------------------------------------------------------------------------------------------
MEMORY = "clips/0002/take-0/memory.safetensors"


def spoil(file: str) -> Setup:
    """Changes one byte in the middle of a file of the run."""

    def setup(home: Path) -> None:
        path = home / "run" / file
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 0xFF
        path.write_bytes(data)

    return setup


def remove(folder: str) -> Setup:
    def setup(home: Path) -> None:
        (home / "run" / folder).rename(home / "elsewhere")

    return setup


def other_weights(home: Path) -> None:
    path = home / "run" / "run.json"
    manifest = json.loads(path.read_text())
    name = next(name for name in manifest["model"]["files"] if name.startswith("transformer"))
    manifest["model"]["files"][name] = "0" * 64
    path.write_text(json.dumps(manifest))


def spoiled_and_longer(home: Path) -> None:
    spoil(MEMORY)(home)
    (home / "run" / "state.json").write_text('{"version": 1, "target": 9, "retake": null}')


for verb in ("resume", "show", "export", "extend"):
    words = [verb, "nothing", *(["--clips", "1"] if verb == "extend" else [])]
    case(f"{verb} of what is not there", words, "nothing", "does not exist")
case("resume of a folder that is no run", ["resume", "."], "not a run", "run.json")
case("resume of a file", ["resume", "cat.png"], "cat.png", "not a run")
on_run("resume with a damaged run.json", ["resume", "run"], "run.json", "damaged", setup=spoil("run.json"))
on_run("resume with other weights", ["resume", "run"], "transformer", "svi branch", setup=other_weights, loads=True)
on_run("extend without length", ["extend", "run"], "--clips", "--seconds")
on_run("extend by nothing", ["extend", "run", "--clips", "0"], "--clips", "at least 1")
on_run(
    "extend with an empty prompt file",
    ["extend", "run", "--prompts", "e.txt"],
    "e.txt",
    "empty",
    setup=lambda home: (home / "e.txt").touch(),
)
on_run("retake of a clip that does not exist", ["retake", "run", "--clip", "3"], "clip 3", "0 to 2")
on_run("retake of clip -1", ["retake", "run", "--clip", "-1"], "--clip", "at least 0")
on_run("retake with an empty prompt", ["retake", "run", "--clip", "1", "--prompt", " "], "prompt is empty")
on_run("branch beyond the end", ["branch", "run", "--at", "4"], "4", "0 to 3")
on_run("branch into something else", ["branch", "run", "--at", "1", "--out", "."], "other things")
on_run("branch shorter than its start", ["branch", "run", "--at", "3", "--clips", "2"], "3", "2")
on_run("branch with an unknown preset", ["branch", "run", "--at", "1", "--preset", "por"], "por", "did you mean 'pro'")
on_run("export to an unknown format", ["export", "run", "--format", "avi"], "avi", "mp4")
on_run("export to an unknown ending", ["export", "run", "--out", "cat.mov"], "mov", "mp4")
on_run("export over a file", ["export", "run", "--format", "gif", "--out", "cat.png"], "cat.png", "exists already")
on_run("export into no folder", ["export", "run", "--out", "none/cat.mp4"], "none", "does not exist")
on_run("export of clips that are not there", ["export", "run", "--range", "2-5"], "clip 5", "0 to 2")
on_run("export of seconds that are not there", ["export", "run", "--range", "90-95s"], "90-95s", "video")
on_run("export of a range backwards", ["export", "run", "--range", "2-1"], "2-1", "ends before")
on_run("export of words", ["export", "run", "--range", "all"], "range", "2-3", "all")
on_run("export too large", ["export", "run", "--scale", "99"], "scale", "16")
on_run("sheet that is no PNG", ["show", "run", "--sheet", "sheet.bmp"], "PNG", "sheet.png")
on_run("sheet into no folder", ["show", "run", "--sheet", "none/sheet.png"], "none", "does not exist")
on_run(
    "resume after a damaged clip",
    ["resume", "run"],
    "memory.safetensors",
    "svi retake",
    setup=spoiled_and_longer,
    loads=True,
)
on_run(
    "branch after a damaged clip",
    ["branch", "run", "--at", "3", "--seed", "9"],
    "memory.safetensors",
    "retake",
    setup=spoil(MEMORY),
    loads=True,
)
on_run("resume with a clip gone", ["resume", "run"], "clip 1", "missing", setup=remove("clips/0001"), loads=True)
on_run("resume without its picture", ["resume", "run"], "x", setup=remove("state.json"))
CASES[-1] = Case(
    "resume without state.json",
    ["resume", "run"],
    ("state.json", "missing", "svi extend"),
    remove("state.json"),
    True,
    True,
)
