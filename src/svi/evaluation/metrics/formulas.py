"""The arithmetic of the metrics that need networks: from rows of features, flows and distances to scores.

Pure numpy; knows nothing about networks, files or videos. VBench's arithmetic is kept to the last constant in mode
``"vbench"``; where it has quirks, mode ``"clean"`` has what was meant, and the docstring says what differs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

Mode = Literal["vbench", "clean"]
Profile = Literal["paper", "long"]
Window = tuple[int, int]

CLIP_S = 2  # VBench-Long's clips
DYNAMIC_FPS = 8  # dynamic degree looks at this many frames per second
IMAGING_SIDE = 512
TOP_SHARE = 0.05


def clips(num_frames: int, fps: float, mode: Mode) -> list[Window]:
    """VBench-Long's clips of 2 s as ``(start, stop)``, without cutting or encoding anything again.

    ``"vbench"``: ``int(fps) * 2`` frames each; a short tail is completed with the frames before it, so those count
    twice; a video shorter than a clip is one clip. ``"clean"``: ``round(fps * 2)`` frames each, and the tail stays
    short. VBench-Long also encodes every clip again, with loss; that is not repeated here.

    Source: ``split_video_into_clips`` of vbench2_beta_long/utils.py.
    """
    length = int(fps) * CLIP_S if mode == "vbench" else round(fps * CLIP_S)
    length = max(length, 1)
    if num_frames < length:
        return [(0, num_frames)] if num_frames else []
    whole = [(start, start + length) for start in range(0, num_frames - length + 1, length)]
    covered = whole[-1][1]
    if covered < num_frames:
        whole.append((num_frames - length if mode == "vbench" else covered, num_frames))
    return whole


def windows(num_frames: int, fps: float, mode: Mode, profile: Profile) -> list[Window]:
    """What is scored on its own: the whole video (``"paper"``), or VBench-Long's clips (``"long"``)."""
    if profile == "long":
        return clips(num_frames, fps, mode)
    return [(0, num_frames)] if num_frames else []


def mean_over_windows(values: Sequence[float], counts: Sequence[int], mode: Mode) -> float:
    """VBench-Long takes the plain mean over clips; ``"clean"`` weighs each by what was measured in it (``counts``)."""
    if mode == "vbench":
        return float(np.mean(values))
    return float(np.average(values, weights=counts))


def normalised(features: np.ndarray) -> np.ndarray:
    """Rows of unit length, ``(n, d)`` float64; a row of zeros stays zero."""
    rows = np.asarray(features, dtype=np.float64)
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12))


def cosines(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cosine of frames 1, 2, ... with the frame before, and with the first one: two arrays ``(n - 1,)``."""
    rows = normalised(features)
    return np.sum(rows[1:] * rows[:-1], axis=-1), rows[1:] @ rows[0]


def consistency(features: np.ndarray, mode: Mode) -> np.ndarray:
    """Subject and background consistency per frame, ``(n - 1,)`` for frames 1, 2, ...

    ``(cos(previous, this) + cos(first, this)) / 2``; ``"vbench"`` counts negative cosines as 0.
    Source: vbench/subject_consistency.py, vbench/background_consistency.py.
    """
    previous, first = cosines(features)
    if mode == "vbench":
        previous, first = np.maximum(previous, 0.0), np.maximum(first, 0.0)
    return np.asarray((previous + first) / 2)


def laion(embeddings: np.ndarray, weight: np.ndarray, bias: float) -> np.ndarray:
    """Aesthetic score per frame in [0, 1] or about: LAION's linear head on unit CLIP embeddings, over 10.

    Args:
        embeddings: ``(n, d)`` CLIP image embeddings of any length.
        weight: ``(d,)`` of the head.
        bias: of the head.

    Source: vbench/aesthetic_quality.py.
    """
    return np.asarray((normalised(embeddings) @ np.asarray(weight, dtype=np.float64) + bias) / 10)


def imaging_size(height: int, width: int, mode: Mode) -> tuple[int, int]:
    """The size at which imaging quality is judged: longer side at most 512; ``"vbench"`` truncates, ``"clean"`` rounds.

    480 x 832 becomes 295 x 512. Source: ``transform`` of vbench/imaging_quality.py.
    """
    longer = max(height, width)
    if longer <= IMAGING_SIDE:
        return height, width
    scale = IMAGING_SIDE / longer
    cut = int if mode == "vbench" else round
    return max(1, cut(scale * height)), max(1, cut(scale * width))


def dynamic_interval(fps: float) -> int:
    """Every how many frames dynamic degree looks: 12, 16, 20, 24, 25, 30 fps give 2, 2, 2, 3, 3, 4."""
    return max(1, round(fps / DYNAMIC_FPS))


def dynamic_frames(window: Window, fps: float) -> list[int]:
    """The frames of a window that dynamic degree looks at; flow is taken between neighbours in this list."""
    return list(range(window[0], window[1], dynamic_interval(fps)))


def dynamic_threshold(height: int, width: int, seconds: float | None = None) -> float:
    """Pixels per pair above which a pair moves: ``6 / 256`` of the shorter side.

    VBench takes that per pair, whatever the time between its frames: 24 fps (3 / 24 s) is easier to pass than 20 fps
    (2 / 20 s). With ``seconds`` between the frames of a pair it is per 1/8 s, as was meant (mode ``"clean"``).
    """
    per_pair = 6.0 * (min(height, width) / 256.0)
    return per_pair if seconds is None else per_pair * seconds * DYNAMIC_FPS


def dynamic_need(sampled: int, mode: Mode) -> int:
    """How many pairs must move: a quarter of the ``sampled`` frames, rounded half to even.

    ``"vbench"``: 0 for two frames, so that they always "move". ``"clean"``: at least 1.
    """
    need = round(4 * (sampled / 16.0))
    return need if mode == "vbench" else max(1, need)


def top_flow(flow: np.ndarray) -> np.ndarray:
    """Mean length of the longest 5 % of the flow vectors of each pair: ``(n, H, W, 2)`` pixels to ``(n,)``.

    NaN below 20 pixels, where 5 % is nobody.
    """
    lengths = np.sqrt(np.sum(np.square(np.asarray(flow, dtype=np.float64)), axis=-1)).reshape(len(flow), -1)
    count = int(lengths.shape[1] * TOP_SHARE)
    if not count:
        return np.full(len(flow), np.nan)
    return np.asarray(np.partition(lengths, lengths.shape[1] - count, axis=1)[:, -count:].mean(axis=1))


def moves(speeds: np.ndarray, sampled: int, threshold: float, mode: Mode) -> bool:
    """Dynamic degree of one window: do enough pairs move?

    Args:
        speeds: ``(sampled - 1,)`` from :func:`top_flow`.
        sampled: frames looked at.
        threshold: from :func:`dynamic_threshold`.
        mode: see :func:`dynamic_need`.

    Source: ``check_move`` of vbench/dynamic_degree.py. Without any pair nothing moves.
    """
    return len(speeds) > 0 and int(np.sum(np.asarray(speeds) > threshold)) >= dynamic_need(sampled, mode)


def smooth_triples(window: Window, mode: Mode) -> list[tuple[int, int, int]]:
    """Frames ``(before, judged, after)`` of motion smoothness.

    ``"vbench"``: odd frames of the window between their even neighbours; an even count loses its last frame.
    ``"clean"``: every frame that has two neighbours.
    """
    step = 2 if mode == "vbench" else 1
    return [(k, k + 1, k + 2) for k in range(window[0], window[1] - 2, step)]


def smoothness(differences: np.ndarray) -> float:
    """``(255 - mean difference) / 255`` of mean absolute grey-level differences per judged frame."""
    return float((255.0 - np.mean(differences)) / 255.0)


def frechet(first: np.ndarray, second: np.ndarray) -> float:
    """Frechet distance of two normal distributions fitted to ``(n, d)`` and ``(m, d)``, n and m at least 2.

    ``|mean_1 - mean_2|^2 + Tr(C_1 + C_2 - 2 (C_1 C_2)^(1/2))`` with unbiased covariances. The trace of the root is the
    sum of the singular values of ``X_1 X_2^T`` (centred rows over ``sqrt(n - 1)``): exact, also for fewer rows than
    dimensions, where a matrix square root is not.
    """
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    shift = a.mean(axis=0) - b.mean(axis=0)
    a, b = _covariance_factor(a), _covariance_factor(b)
    root = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    return float(shift @ shift + np.sum(a * a) + np.sum(b * b) - 2 * root)


def _covariance_factor(rows: np.ndarray) -> np.ndarray:
    """``A`` with ``A^T A`` = unbiased covariance, and no more rows than columns."""
    centred = (rows - rows.mean(axis=0)) / np.sqrt(len(rows) - 1)
    return np.asarray(np.linalg.qr(centred, mode="r")) if len(rows) > rows.shape[1] else centred


def kernel_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Unbiased squared MMD under the kernel ``(x . y / d + 1)^3``: the distance of KID and KVD; below 0 by chance.

    Needs at least 2 rows on either side.
    """
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    n, m, dimensions = len(a), len(b), a.shape[1]

    def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.asarray((x @ y.T / dimensions + 1) ** 3)

    own_a, own_b = kernel(a, a), kernel(b, b)
    within = (own_a.sum() - np.trace(own_a)) / (n * (n - 1)) + (own_b.sum() - np.trace(own_b)) / (m * (m - 1))
    return float(within - 2 * kernel(a, b).mean())


def sync_distances(video: np.ndarray, audio: np.ndarray, reach: int = 15, mode: Mode = "vbench") -> np.ndarray:
    """Distance of each video embedding from the audio embeddings around it, ``(n, 2 * reach + 1)``.

    Column ``reach + s`` compares frame i with sound i + s. Beyond the ends ``"vbench"`` (here: the published SyncNet
    code) compares with zeros; ``"clean"`` leaves NaN. 1e-6 is added to each difference, as in torch.

    Source: ``calc_pdist`` of joonson/syncnet_python.
    """
    video, audio = np.asarray(video, dtype=np.float64), np.asarray(audio, dtype=np.float64)
    fill = 0.0 if mode == "vbench" else np.nan
    padded = np.pad(audio, ((reach, reach), (0, 0)), constant_values=fill)
    shifts = [padded[s : s + len(video)] for s in range(2 * reach + 1)]
    return np.stack([np.linalg.norm(video - shifted + 1e-6, axis=-1) for shifted in shifts], axis=1)


def sync_scores(distances: np.ndarray) -> tuple[float, float, int]:
    """Sync-C, Sync-D and the best offset in frames, from :func:`sync_distances`.

    With the mean distance per shift: ``D = min``, ``C = median - min``; positive offsets mean that sound comes early
    (``reach - argmin``, as published).
    """
    reach = distances.shape[1] // 2
    observed = ~np.isnan(distances)
    totals = np.where(observed, distances, 0.0).sum(axis=0)
    counts = observed.sum(axis=0)
    per_shift = np.where(counts > 0, totals / np.maximum(counts, 1), np.nan)
    best = int(np.nanargmin(per_shift))
    distance = float(per_shift[best])
    return float(np.nanmedian(per_shift)) - distance, distance, reach - best
