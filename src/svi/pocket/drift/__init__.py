"""Drift against exact truth: measures, and the resumable experiment behind ``svi drift``.

``measures``, ``things`` and ``valid`` say what a clip lost, ``gauge`` puts them together clip by clip, ``gain`` asks how
a known error grows; ``experiment`` is what to compare, ``runner`` does it, ``results`` and ``plots`` tell it.
"""
