"""Prompt files: three formats, read as data; everything else is one clear line."""

from pathlib import Path

import pytest

from svi.errors import UserError
from svi.generation.prompts import load_prompts


def prompts_of(path: Path) -> list[str]:
    story = load_prompts(path)
    return [story.prompt(k) for k in range(story.planned_clips)]


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.txt", "a cat\n\n# not this\n  a dog \r\nprompts are fun\n", ["a cat", "a dog", "prompts are fun"]),
        ("a.txt", "\ufeffa cat\n", ["a cat"]),
        ("a.txt", "import os\n", ["import os"]),
        ("a.txt", 'prompts = ["a cat", "a \\"big\\" dog",]\n', ["a cat", 'a "big" dog']),
        ("a.txt", "# tom\nprompts = [\n'one',\n'two ' 'halves',\n]\n", ["one", "two halves"]),
        ("a.py", "prompts = ('x', 'y')", ["x", "y"]),
        ("a.json", '["a", "b"]', ["a", "b"]),
        ("a.txt", '["a", "b"]', ["a", "b"]),
        ("a.yaml", "scenes: [{beats: [{prompt: p, repeat: 2}]}]", ["p", "p"]),
    ],
)
def test_formats(tmp_path: Path, name: str, text: str, expected: list[str]) -> None:
    file = tmp_path / name
    file.write_bytes(text.encode())
    assert prompts_of(file) == expected


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("import os\nprompts = ['a']", 1),
        ("prompts = ['a']\nprint(prompts)", 2),
        ("prompts = ['a', open('x').read()]", 1),
        ("prompts = [f'{1}']", 1),
        ("prompts = ['a', 3]", 1),
        ("prompts = list('ab')", 1),
        ("prompts = ['a'] + ['b']", 1),
        ("prompts = ['a']\nprompts = ['b']", 2),
        ("x = prompts = ['a']\nprompts = ['a']", 1),
        ("prompts = [\n'a',\n[c for c in 'b'],\n]", 3),
    ],
)
def test_code_is_refused_with_its_line(tmp_path: Path, text: str, line: int) -> None:
    file = tmp_path / "prompt.txt"
    file.write_text(text)
    with pytest.raises(UserError, match=rf"prompt.txt contains code, line {line}:"):
        load_prompts(file)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b" \n\t\n", "is empty"),
        (b"\xef\xbb\xbf", "is empty"),
        (b"# only\n# comments\n", "holds no prompts"),
        (b"prompts = []", "holds no prompts"),
        (b"prompts = ['a', '  ']", "holds an empty prompt"),
        (b"prompts = ['a'", "line 1: not of the form"),
        (b"a cat\n\x00\x01\x02", "is binary"),
        (b"\x89PNG\r\n\x1a\n\x00\x00", "is binary"),
        (b"ein K\xe4tzchen", "line 1: not UTF-8"),
        (b"a\nb\n\xff", "line 3: not UTF-8"),
        ("a cat".encode("utf-16"), "is UTF-16"),
        (b"a" * (4 * 1024 * 1024 + 1), "is larger than 4 MiB"),
    ],
)
def test_bad_files(tmp_path: Path, data: bytes, message: str) -> None:
    file = tmp_path / "prompt.txt"
    file.write_bytes(data)
    with pytest.raises(UserError, match=message):
        load_prompts(file)


def test_missing_and_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        load_prompts(tmp_path / "none.txt")
    with pytest.raises(UserError, match="is a folder"):
        load_prompts(tmp_path)
    with pytest.raises(UserError, match="cannot read"):
        load_prompts("nul\0l")


def test_nothing_is_executed(tmp_path: Path) -> None:
    file = tmp_path / "prompt.txt"
    file.write_text(f"prompts = [__import__('pathlib').Path({str(tmp_path / 'hacked')!r}).touch()]")
    with pytest.raises(UserError, match="contains code"):
        load_prompts(file)
    assert not (tmp_path / "hacked").exists()
