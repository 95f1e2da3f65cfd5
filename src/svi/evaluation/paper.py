"""What the paper reports, to stand greyed beside our own rows: Tables 1, 2, 3 and 5 of arXiv:2510.09212.

Data only. Nothing here was reproduced. ``n`` is what the dynamic degrees imply (every value is a whole number of
videos over 142 or over 14), not the 152 that the text states; percent, but for Sync, FVD, PSNR (dB) and SSIM.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass

_TABLE = """\
where,suite,n,method,scenes,subject_consistency,background_consistency,aesthetic_quality,imaging_quality,dynamic_degree,motion_smoothness,sync_c,sync_d,fvd,psnr,ssim
Table 1,consistent-50s,142,Wan 2.1,single,87.03,92.45,56.40,65.70,12.68,98.51,,,,,
Table 1,consistent-50s,142,StreamingT2V,single,84.79,89.27,56.81,66.41,57.04,99.00,,,,,
Table 1,consistent-50s,142,HistoryGuidance,single,83.77,90.90,40.42,55.48,4.93,99.38,,,,,
Table 1,consistent-50s,142,FramePack,single,93.08,94.72,63.57,66.72,7.75,99.57,,,,,
Table 1,consistent-50s,142,SVI-Shot,single,98.13,98.19,63.84,71.88,17.61,98.93,,,,,
Table 1,consistent-250s,14,Wan 2.1,single,80.00,87.27,56.19,65.37,14.29,98.74,,,,,
Table 1,consistent-250s,14,StreamingT2V,single,66.32,77.62,40.49,55.18,85.71,95.60,,,,,
Table 1,consistent-250s,14,HistoryGuidance,single,64.84,80.51,29.84,50.41,7.14,99.42,,,,,
Table 1,consistent-250s,14,FramePack,single,79.37,86.64,55.66,57.61,0.00,99.63,,,,,
Table 1,consistent-250s,14,SVI-Shot,single,97.50,97.89,65.75,71.54,21.43,98.81,,,,,
Table 5,consistent-250s,14,Copy Clips,single,98.48,98.60,67.99,71.93,7.14,98.93,,,,,
Table 5,consistent-250s,14,Ping-Pong Clips,single,98.51,98.59,67.92,71.92,7.14,99.06,,,,,
Table 5,consistent-250s,14,Copy Reference Img,single,100.00,100.00,68.55,73.05,0.00,99.84,,,,,
Table 1,creative-50s,142,Wan 2.1,multiple,81.44,89.81,51.33,53.09,61.97,98.57,,,,,
Table 1,creative-50s,142,SVI-Film,multiple,84.27,90.68,57.02,62.44,57.04,99.12,,,,,
Table 1,creative-50s,142,StreamingT2V,single,81.01,88.47,52.20,58.05,61.97,98.96,,,,,
Table 1,creative-50s,142,HistoryGuidance,single,84.12,91.21,38.40,52.31,7.75,99.39,,,,,
Table 1,creative-50s,142,FramePack,single,85.62,91.22,59.41,59.44,9.15,99.49,,,,,
Table 1,creative-50s,142,SVI-Shot,single,93.52,95.86,58.07,62.81,55.63,98.42,,,,,
Table 1,creative-250s,14,Wan 2.1,multiple,67.85,83.45,46.68,43.36,57.14,98.56,,,,,
Table 1,creative-250s,14,SVI-Film,multiple,70.90,84.30,55.09,57.73,64.29,98.89,,,,,
Table 1,creative-250s,14,StreamingT2V,single,68.65,82.00,44.69,55.20,78.57,96.95,,,,,
Table 1,creative-250s,14,HistoryGuidance,single,62.58,81.97,28.66,47.68,7.14,99.36,,,,,
Table 1,creative-250s,14,FramePack,single,70.95,83.46,52.39,53.72,0.00,99.48,,,,,
Table 1,creative-250s,14,SVI-Shot,single,91.96,95.04,63.31,65.25,64.29,97.97,,,,,
Table 2,talk-300s,10,Wan 2.1,,,,,,,,0.21,12.86,934,,
Table 2,talk-300s,10,MultiTalk,,,,,,,,1.26,9.57,520,,
Table 2,talk-300s,10,SVI-Talk,,,,,,,,6.12,8.74,390,,
Table 3,dance-50s,10,Wan 2.1,,,,,,,,,,4099,12.12,0.33
Table 3,dance-50s,10,UniAnimate-DiT,,,,,,,,,,337,18.97,0.69
Table 3,dance-50s,10,SVI-Dance,,,,,,,,,,299,20.01,0.71
"""


@dataclass(frozen=True)
class Reported:
    """A row of the paper: ``values`` by metric, in the units of the paper's table."""

    where: str
    suite: str
    method: str
    scenes: str
    n: int
    values: Mapping[str, float]


def reported(suite: str) -> tuple[Reported, ...]:
    """The paper's rows for a suite, in its order; none for what it does not have."""
    return tuple(row for row in _rows() if row.suite == suite)


def _rows() -> list[Reported]:
    fixed = ("where", "suite", "n", "method", "scenes")
    rows = []
    for line in csv.DictReader(io.StringIO(_TABLE)):
        values = {name: float(text) for name, text in line.items() if name not in fixed and text}
        rows.append(Reported(line["where"], line["suite"], line["method"], line["scenes"], int(line["n"]), values))
    return rows
