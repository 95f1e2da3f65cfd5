"""Making the videos of a suite: every method, case by case or side by side, going on where it stopped; and naive foolers.

The layer above ``svi.api`` where evaluation meets generation and the pocket world, neither of which knows it. Knows nothing
about metrics or the command line. ``methods`` says what makes videos, ``folder`` where they are, ``making`` makes them (``together``
in batches), ``miniature`` is the paper's Table 1 on the pocket model.
"""

from svi.benchmark.folder import Bench, open_bench, pocket_metric
from svi.benchmark.making import generate
from svi.benchmark.methods import CONTROLS, VAE, Method, parse_method

__all__ = ["CONTROLS", "VAE", "Bench", "Method", "generate", "open_bench", "parse_method", "pocket_metric"]
