"""Times and texts as people read them. Knows nothing else."""

from __future__ import annotations

TEXT_WIDTH = 60


def human_time(seconds: float) -> str:
    """``75`` -> ``1:15``, ``4.2`` -> ``4.2 s``, ``7300`` -> ``2:01:40``."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def shortened(text: str, width: int = TEXT_WIDTH) -> str:
    """``text`` on one line, cut to ``width`` characters."""
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 3] + "..."
