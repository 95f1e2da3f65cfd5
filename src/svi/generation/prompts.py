"""Prompt files of every kind become a :class:`~svi.generation.storyboard.Storyboard`. Nothing in them is executed.

Knows nothing about runs or models. Kinds: a storyboard or a list of strings in YAML or JSON; the published format
``prompts = ["...", ...]``, read as data (the published loader hands it to the interpreter); plain text, one prompt per
line, with ``#`` comments and blank lines skipped.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

from svi.errors import UserError
from svi.generation.storyboard import Storyboard, parse_storyboard, storyboard_from_prompts
from svi.generation.textfile import read_text

STORYBOARD_SUFFIXES = frozenset({".yaml", ".yml", ".json"})
_ASSIGNMENT = re.compile(r"^\s*prompts\s*(:[^=\n]*)?=", re.MULTILINE)


def load_prompts(path: Path | str) -> Storyboard:
    """Read a prompt file or a storyboard.

    Raises:
        UserError: for a file that cannot be read or understood; with the line where there is one.
    """
    path = Path(path)
    return parse_prompts(read_text(path, "prompt file"), str(path), path.suffix.lower())


def parse_prompts(text: str, name: str, suffix: str = ".txt") -> Storyboard:
    """A storyboard from the text of a prompt file called ``name``; ``suffix`` decides between the formats."""
    if suffix in STORYBOARD_SUFFIXES or text.lstrip().startswith(("[", "{")):
        return parse_storyboard(text, name)
    if suffix == ".py" or _ASSIGNMENT.search(text):
        return storyboard_from_prompts(_published(text, name))
    lines = [line.strip() for line in text.splitlines()]
    prompts = [line for line in lines if line and not line.startswith("#")]
    if not prompts:
        raise UserError(f"{name} holds no prompts, only comments and blank lines")
    return storyboard_from_prompts(prompts)


def _published(text: str, name: str) -> list[str]:
    """The strings of ``prompts = ["...", ...]``, taken from the syntax tree."""
    try:
        statements = ast.parse(text).body
    except SyntaxError as error:
        raise UserError(f'{name}, line {error.lineno}: not of the form prompts = ["...", ...] ({error.msg})') from None
    except (RecursionError, MemoryError, ValueError):
        raise UserError(f'{name}: not of the form prompts = ["...", ...]') from None
    prompts: list[str] | None = None
    for statement in statements:
        values = _assigned(statement)
        if values is None or prompts is not None:
            raise _code(name, statement)
        prompts = []
        for element in values:
            if not (isinstance(element, ast.Constant) and isinstance(element.value, str)):
                raise _code(name, element)
            prompts.append(element.value.strip())
    if not prompts or not all(prompts):
        raise UserError(f"{name} holds {'an empty prompt' if prompts else 'no prompts'}")
    return prompts


def _assigned(statement: ast.stmt) -> list[ast.expr] | None:
    """Elements of the list or tuple in ``prompts = [...]``; None for any other statement."""
    targets = statement.targets if isinstance(statement, ast.Assign) else []
    if len(targets) != 1 or not isinstance(targets[0], ast.Name) or targets[0].id != "prompts":
        return None
    assert isinstance(statement, ast.Assign)
    return statement.value.elts if isinstance(statement.value, ast.List | ast.Tuple) else None


def _code(name: str, node: ast.AST) -> UserError:
    return UserError(
        f"{name} contains code, line {getattr(node, 'lineno', 1)}: a prompt file may only hold "
        'prompts = ["...", ...] with plain strings'
    )
