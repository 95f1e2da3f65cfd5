"""Text that a user hands in: read whole, small, UTF-8, or refused in one line.

Knows nothing about what the text means.
"""

from __future__ import annotations

from pathlib import Path

from svi.errors import UserError

MAX_BYTES = 4 * 1024 * 1024  # the longest published prompt file (177 prompts) has 60 kB


def read_text(path: Path, what: str) -> str:
    """The text of ``path``; ``what`` names its role in messages (``prompt file``). A UTF-8 BOM is dropped.

    Raises:
        UserError: missing, a folder, unreadable, empty, too large, binary, or not UTF-8.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder, not a {what}")
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise UserError(f"{what} {path} does not exist") from None
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {what} {path}: {getattr(error, 'strerror', None) or error}") from error
    if len(data) > MAX_BYTES:
        raise UserError(f"{what} {path} is larger than {MAX_BYTES // 2**20} MiB: is it the right file?")
    if not data.strip():
        raise UserError(f"{what} {path} is empty")
    return _decode(data, path, what)


def _decode(data: bytes, path: Path, what: str) -> str:
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UserError(f"{what} {path} is UTF-16 text: save it as UTF-8")
    if b"\x00" in data:
        raise UserError(f"{what} {path} is binary, not text")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UserError(f"{what} {path}, line {line}: not UTF-8 text; save it as UTF-8") from None
    if not text.strip():
        raise UserError(f"{what} {path} is empty")
    return text.replace("\r\n", "\n").replace("\r", "\n")
