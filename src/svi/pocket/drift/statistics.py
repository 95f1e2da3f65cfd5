"""Moved: statistics are `svi.evaluation.statistics`. This name passes on what was here until nobody uses it."""

from svi.evaluation.statistics import Curve, Estimate, curve, estimate, late, row_mean, slope, slopes

__all__ = ["Curve", "Estimate", "curve", "estimate", "late", "row_mean", "slope", "slopes"]
