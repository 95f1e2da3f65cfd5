"""The paper's Table 1 in miniature: the mechanisms of its methods on the pocket model, everything equal but the method.

Data: which rows, and what each stands for. A row is the mechanism alone on this backbone, not the published
method, whose network was trained for it. Makes nothing and scores nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from svi.benchmark.methods import Method, parse_method
from svi.errors import UserError, nearest
from svi.evaluation.export import ARROWS, NONE, interval, name_of, number
from svi.evaluation.suites import get_suite
from svi.evaluation.table import Board, MethodRow

TITLE = "Table 1 in miniature"
AGAINST = "wan"


@dataclass(frozen=True)
class Line:
    """A row: the words of its method (as of ``svi bench generate``), and what it stands for."""

    words: str
    stands_for: str

    @property
    def name(self) -> str:
        """Of the method."""
        return self.words.partition(":")[0]


LINES = (
    Line("wan", "Wan 2.1: chained by its last frame, nothing against drift"),
    Line("noisy-history", "noise-augmented history (SkyReels-V2 and others), untrained"),
    Line("history-guidance", "HistoryGuidance: vanilla history guidance, untrained"),
    Line("inverted", "FramePack: inverted order between the image and the next section, untrained"),
    Line("anchor:preset=shot", "padding with an anchor: SVI-Shot without training"),
    Line("five-frames:preset=film", "more history: SVI-Film without training"),
    Line("shot-control:preset=shot,lora=shot-control", "SVI-Shot trained as long, without error recycling"),
    Line("svi-shot:preset=shot,lora=shot", "SVI-Shot"),
    Line("svi-film:preset=film,lora=film", "SVI-Film"),
    Line("svi-2.0:preset=svi2-wan21,lora=svi2", "SVI 2.0"),
    Line("svi-pro:preset=pro,lora=pro", "SVI 2.0 Pro"),
    Line("vae", "the truth through the VAE: what no method can better"),
    Line("truth", "the truth"),
    Line("copy-clips", "copies its first clip (Table 5)"),
    Line("ping-pong", "plays its first clip to and fro (Table 5)"),
    Line("copy-reference", "copies the image (Table 5)"),
)


def lines_of(names: Sequence[str]) -> list[Line]:
    """Rows by name, in the order of the table; none named = all.

    Raises:
        UserError: for an unknown one; the nearest is named.
    """
    known = {line.name: line for line in LINES}
    for name in names:
        if name not in known:
            raise UserError(f"the miniature has no row {name!r}: {nearest(name, known)}")
    return [line for line in LINES if not names or line.name in names]


def methods_of(
    lines: Sequence[Line], model: str, loras: Mapping[str, str], *, download: bool = False
) -> tuple[list[Method], list[str]]:
    """The methods of rows that can be made, and of the others why not.

    Args:
        model: whose LoRAs are looked for by name.
        loras: ``FILE[:STRENGTH]`` by the name of a LoRA.

    Raises:
        UserError: for a LoRA that no row has.
    """
    methods = [replace(parse_method(line.words), stands_for=line.stands_for) for line in lines]
    wanted = {lora for method in methods for lora in method.loras}
    for name in loras:
        if name not in wanted:
            raise UserError(f"no row of the miniature has a LoRA {name!r}: {nearest(name, wanted)}")
    found, left_out = [], []
    for method in methods:
        given = replace(method, loras=tuple(loras.get(name, name) for name in method.loras))
        try:
            given.made_with(model, download=download)
        except UserError as error:
            missing = next((name for name in method.loras if name not in loras), None)
            if missing is None:
                raise
            left_out.append(f"{method.name}: {error}; give it with --lora {missing}=FILE")
            continue
        found.append(given)
    return found, left_out


def table(board: Board) -> str:
    """The miniature as Markdown: mean, 95 % interval and n of each column that was scored; degenerate rows are told."""
    columns = [column for name in get_suite("pocket").opening for column in board.columns if column.id == name]
    stands_for = {line.name: line.stands_for for line in LINES}
    head = [f"{c.title} {ARROWS[c.better]}{f' ({c.unit})' if c.unit else ''}".strip() for c in columns]
    rows = [["method", "stands for", *head], ["---"] * (len(head) + 2)]
    for row in board.rows:
        cells = [_cell(row, column.id) for column in columns]
        rows.append([name_of(row), stands_for.get(row.method, row.about), *cells])
    told = f"# {board.title}\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"
    return told + (
        "\nMeans over the videos that all methods share, with 95 % intervals. Bold: the best, where no other interval reaches it. "
        "Each row is one mechanism on the same model, not the published method.\n"
    )


def _cell(row: MethodRow, column: str) -> str:
    cell = row.cells.get(column)
    if cell is None or cell.estimate is None:
        return NONE
    mean = f"**{number(cell.estimate.mean)}**" if cell.best else number(cell.estimate.mean)
    spread = interval(cell.estimate)
    return f"{mean} [{spread}], n={cell.estimate.n}" if spread else f"{mean}, n={cell.estimate.n}"
