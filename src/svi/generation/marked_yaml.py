"""YAML (and so JSON) that remembers which line each key stands on.

Knows nothing about storyboards. Only plain data: no tags that build objects, no anchors (a few of them can expand to
gigabytes), no key twice in one mapping.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import yaml
from yaml.constructor import SafeConstructor

from svi.errors import UserError

Place = tuple[str | int, ...]

MAX_DEPTH = 40
OPENING = (
    yaml.FlowSequenceStartToken,
    yaml.FlowMappingStartToken,
    yaml.BlockSequenceStartToken,
    yaml.BlockMappingStartToken,
)
CLOSING = (yaml.FlowSequenceEndToken, yaml.FlowMappingEndToken, yaml.BlockEndToken)


@dataclass(frozen=True)
class Marked:
    """Parsed data with the line (from 1) of every place in it; a place is a path of keys and positions."""

    data: Any
    lines: dict[Place, int]

    def line(self, place: Place) -> int:
        """The line of ``place``, or of the nearest place around it."""
        while place and place not in self.lines:
            place = place[:-1]
        return self.lines.get(place, 1)


def parse(text: str, name: str) -> Marked:
    """Parse one YAML or JSON document; ``name`` begins every message.

    Raises:
        UserError: with the line, for bad syntax, duplicate keys, anchors, tags and nesting that is too deep.
    """
    try:
        _check_tokens(text, name)
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        lines: dict[Place, int] = {}
        data = None if node is None else _build(node, (), lines, name)
    except yaml.MarkedYAMLError as error:
        ended = "end of stream" in (error.problem or "")  # the problem stands where the open quote or bracket began
        mark = (error.context_mark if ended else error.problem_mark) or error.problem_mark
        where = f", line {_line(mark)}" if mark else ""
        raise UserError(f"{name}{where}: {', '.join(filter(None, (error.context, error.problem)))}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{name}: {' '.join(str(error).split())}") from None
    return Marked(data, lines)


def _check_tokens(text: str, name: str) -> None:
    """Refuse what would take a parser for ever, before anything is built."""
    depth = 0
    for token in yaml.scan(text, Loader=yaml.SafeLoader):
        depth += isinstance(token, OPENING) - isinstance(token, CLOSING)
        if depth > MAX_DEPTH:
            raise UserError(f"{name}, line {_line(token.start_mark)}: nested too deeply")
        if isinstance(token, yaml.AnchorToken | yaml.AliasToken):
            raise UserError(f"{name}, line {_line(token.start_mark)}: anchors and aliases (&, *) are not supported")


def _line(mark: Any) -> int:
    return int(mark.line) + 1


def _build(node: yaml.Node, place: Place, lines: dict[Place, int], name: str) -> Any:
    lines.setdefault(place, _line(node.start_mark))
    if isinstance(node, yaml.SequenceNode):
        return [_build(child, (*place, i), lines, name) for i, child in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode):
        return _build_mapping(node, place, lines, name)
    try:
        return SafeConstructor().construct_object(node)
    except (ValueError, yaml.constructor.ConstructorError):
        raise UserError(f"{name}, line {_line(node.start_mark)}: cannot read {node.value!r} as plain data") from None


def _build_mapping(node: yaml.MappingNode, place: Place, lines: dict[Place, int], name: str) -> dict[str, Any]:
    data: dict[str, Any] = {}
    for key_node, value_node in node.value:
        line = _line(key_node.start_mark)
        if not isinstance(key_node, yaml.ScalarNode):
            raise UserError(f"{name}, line {line}: a key must be a word")
        key = str(key_node.value)
        if key in data:
            raise UserError(f"{name}, line {line}: {key!r} stands here twice (first on line {lines[(*place, key)]})")
        lines[(*place, key)] = line
        data[key] = _build(value_node, (*place, key), lines, name)
    return data
