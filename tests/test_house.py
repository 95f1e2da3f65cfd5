"""The house keeps its own rules: sizes, words, links, versions, and an import that stays light."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from svi.cli.parser import parse
from svi.conditioning.policy import PRESETS

ROOT = Path(__file__).resolve().parent.parent
MAX_FILE_LINES, MAX_FUNCTION_LINES = 400, 60
SOURCES = sorted((ROOT / "src" / "svi").rglob("*.py"))
PYTHON = sorted(p for folder in ("src", "tests", "benchmarks", "tools") for p in (ROOT / folder).rglob("*.py"))
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
GLOBAL_RNG = re.compile(r"(torch\.(rand|randn|randint|randperm|normal|bernoulli|multinomial|manual_seed)$)|^random\.")
HEAVY = ("torch", "numpy", "diffusers", "transformers", "peft", "av", "PIL")


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    yield from (n for n in ast.walk(parsed(path)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))


def length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of code: a docstring that lists arguments makes no function harder to read."""
    assert function.end_lineno is not None
    lines = function.end_lineno - function.lineno + 1
    if ast.get_docstring(function) is None:
        return lines
    docstring = function.body[0]
    assert docstring.end_lineno is not None
    return lines - (docstring.end_lineno - docstring.lineno + 1)


def test_there_is_something_to_check():
    assert len(SOURCES) > 20
    assert len(PAGES) > 5


@pytest.mark.parametrize("path", PYTHON, ids=name)
def test_files_and_functions_stay_small(path: Path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_FILE_LINES
    long = {f.name: length(f) for f in functions(path) if length(f) > MAX_FUNCTION_LINES}
    assert not long, f"functions over {MAX_FUNCTION_LINES} lines: {long}"


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_every_module_says_what_it_does(path: Path):
    if path.name == "__init__.py" and not path.read_text(encoding="utf-8").strip():
        return
    docstring = ast.get_docstring(parsed(path)) or ""
    assert len(docstring.split()) >= 5, "a module's docstring says what it does and what it knows nothing about"


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_randomness_comes_from_a_generator(path: Path):
    """Every draw names its generator, or stands in a `fork_rng` block, as the initialisation of model classes must."""
    tree = parsed(path)
    forks = [n for n in ast.walk(tree) if isinstance(n, ast.With) and "fork_rng" in ast.unparse(n.items[0])]
    forked = {id(node) for fork in forks for node in ast.walk(fork)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and id(node) not in forked and GLOBAL_RNG.search(ast.unparse(node.func)):
            assert any(k.arg == "generator" for k in node.keywords), f"line {node.lineno}: {ast.unparse(node)}"


def test_the_readme_lists_the_files_that_exist():
    spec = importlib.util.spec_from_file_location("readme_tree", ROOT / "tools" / "readme_tree.py")
    assert spec is not None
    assert spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    assert tool.replaced(page) == page, "run `make tree`"


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith(("http://", "https://", "mailto:")):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), f"{link} leads nowhere"
        if anchor:
            assert anchor in anchors(target), f"{link}: no such heading"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_files_named_in_pages_exist(page: Path):
    """A path in backticks that looks like one of ours is one."""
    text = page.read_text(encoding="utf-8")
    for path in re.findall(r"`((?:src|tests|docs|benchmarks|tools)/[\w./-]+\.\w+)`", text):
        assert (ROOT / path).exists(), f"{name(page)} names {path}"


def commands(page: Path) -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.startswith("svi ")]


@pytest.mark.parametrize("line", [line for page in PAGES for line in commands(page)])
def test_commands_in_pages_are_understood(line: str):
    words = shlex.split(line, comments=True)
    parse(words[1:])


def test_pages_know_every_preset():
    for page in ("README.md", "docs/method.md"):
        text = (ROOT / page).read_text(encoding="utf-8")
        missing = [preset for preset in PRESETS if f"`{preset}`" not in text]
        assert not missing, f"{page} does not know {missing}"


def test_versions_agree():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    code = "import svi; print(svi.__version__)"
    imported = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert imported == declared == importlib.metadata.version("stable-video-infinity")
    assert f"## {declared}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_constraints_pin_every_dependency():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = [*project["dependencies"], *(d for extra in project["optional-dependencies"].values() for d in extra)]
    pinned = {re.split("==", line)[0].lower().replace("_", "-") for line in _pins()}
    for requirement in declared:
        wanted = re.split(r"[<>=!\[; ]", requirement)[0].lower().replace("_", "-")
        assert wanted in pinned, f"constraints.txt does not pin {wanted}"


def _pins() -> list[str]:
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


@pytest.mark.parametrize("start", ["import svi", "import svi.cli"])
def test_import_is_light(start: str):
    code = f"import sys; {start}; print(*[m for m in {HEAVY!r} if m in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not loaded, f"`{start}` imports {loaded}"


def test_help_is_fast():
    """`svi --help` takes less than a second of processor time; the clock on the wall would measure what else runs."""
    before = os.times()
    subprocess.run([sys.executable, "-m", "svi.cli", "--help"], capture_output=True, check=True)
    after = os.times()
    spent = after.children_user - before.children_user + after.children_system - before.children_system
    assert spent < 1.0
