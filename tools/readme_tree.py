"""Writes the list of files in README.md: one line per file, taken from the first sentence of its docstring.

`make tree` runs it; a test compares. Knows nothing about what the files do beyond what they say themselves.
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
START, END = "<!-- tree: written by `make tree` -->", "<!-- end of tree -->"
#: Files that cannot say it themselves, in the order in which they are listed.
TOP = {
    "Makefile": "what you can run: demo, test, lint, parity, bench",
    "pyproject.toml": "package, dependencies, and the rules of ruff, mypy, pytest and import-linter",
    "constraints.txt": "the versions that are tested",
    ".ci/run": "what continuous integration runs",
    "CHANGELOG.md": "what changed",
    "CONTRIBUTING.md": "house rules, the numerics rule, how to add a preset",
    "LICENSE": "Apache 2.0",
}
FOLDERS = ("src/svi", "benchmarks", "tools", "docs", "tests")
WIDTH = 120


def summary(path: Path) -> str:
    """First sentence of a Python file's docstring, or first line after the heading of a Markdown file."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        paragraph = (ast.get_docstring(ast.parse(text)) or "").split("\n\n")[0]
    else:
        paragraph = next((part for part in text.split("\n\n") if part.strip() and not part.startswith("#")), "")
    named = re.sub(r":\w+:`~?(?:[\w.]+\.)?(\w+)`", r"\1", paragraph)  # :class:`~svi.a.B` -> B
    sentence = " ".join(named.split()).replace("`", "")
    return re.split(r"(?<=[.?!]) ", sentence)[0].rstrip(".:")


def files(folder: Path) -> list[Path]:
    """Files of a folder that deserve a line: sources and pages, without empty package markers."""
    found = [p for p in folder.iterdir() if p.suffix in (".py", ".md") and (p.name != "__init__.py" or summary(p))]
    return sorted(found, key=lambda p: (p.name == "__init__.py", p.name))


def lines(folder: Path, depth: int = 0) -> list[tuple[str, str]]:
    """``(indented name, summary)`` of a folder, its files first, then its folders."""
    name = folder.relative_to(ROOT).as_posix() if depth == 0 else folder.name
    rows = [("  " * depth + name + "/", "")]
    rows += [("  " * (depth + 1) + path.name, summary(path)) for path in files(folder)]
    for child in sorted(folder.iterdir()):
        if child.is_dir() and any(child.rglob("*.py")):
            rows += lines(child, depth + 1)
    return rows


def tree() -> str:
    """The list as a fenced block between its two markers."""
    rows = list(TOP.items()) + [row for folder in FOLDERS for row in lines(ROOT / folder)]
    indent = max(len(name) for name, _ in rows) + 2
    body = [f"{name:<{indent}}{what}".rstrip() for name, what in rows]
    return "\n".join([START, "```text", *(_shorten(line) for line in body), "```", END])


def replaced(page: str) -> str:
    """`page` with its list of files made anew.

    Raises:
        ValueError: if the page has lost its markers.
    """
    if START not in page or END not in page:
        raise ValueError(f"README.md needs the lines {START!r} and {END!r}: the list of files goes between them")
    return page[: page.index(START)] + tree() + page[page.index(END) + len(END) :]


def _shorten(line: str) -> str:
    return line if len(line) <= WIDTH else line[: WIDTH - 1].rsplit(" ", 1)[0].rstrip(",;:") + " …"


if __name__ == "__main__":
    readme = ROOT / "README.md"
    page = readme.read_text(encoding="utf-8")
    readme.write_text(replaced(page), encoding="utf-8")
    sys.exit(0)
