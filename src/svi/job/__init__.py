"""Pieces of work for ``svi.api``: inputs checked, the model loaded, a run made or opened, and set going. Re-exports only."""

from svi.job.running import (
    branch_folder,
    go,
    new_run_folder,
    opened,
    run_name,
    stream_clips,
    target_of,
)
from svi.job.together import Followed, dismissing, led, load_choice, model_choice, run_backend, shared
from svi.job.work import Job

__all__ = [
    "Followed",
    "Job",
    "branch_folder",
    "dismissing",
    "go",
    "led",
    "load_choice",
    "model_choice",
    "new_run_folder",
    "opened",
    "run_backend",
    "run_name",
    "shared",
    "stream_clips",
    "target_of",
]
