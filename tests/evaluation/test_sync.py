"""Sync-C and Sync-D: sound as coefficients, windows of faces, and shifts that are found."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import pytest
import torch
from feeding import Fake, feed, number, sample, scored, series

from svi.errors import UserError
from svi.evaluation.metric import Better, Need, Sample, Skipped
from svi.evaluation.metrics import speech, sync, syncnet
from svi.evaluation.metrics.extract import Setup
from svi.evaluation.metrics.sync import SyncC, SyncD
from svi.evaluation.metrics.weights import Places

FACE = (224, 224)
TONE = [
    17.0992,
    18.8039,
    1.7036,
    -14.1839,
    -27.1911,
    -33.5213,
    -29.6952,
    -18.5442,
    -3.2699,
    9.9922,
    18.0655,
    17.9996,
    11.8897,
]


def write_sound(path: Path, seconds: float, rate: int = 16_000, channels: int = 1) -> Path:
    samples = (np.random.default_rng(0).standard_normal((int(seconds * rate), channels)) * 3000).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setparams((channels, 2, rate, 0, "NONE", ""))
        file.writeframes(samples.tobytes())
    return path


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sound(tmp_path_factory.mktemp("sound") / "speech.wav", 8)


def face_track(num_frames: int, audio: Path | None, **known: float) -> Sample:
    return sample(num_frames, **{"fps": 25, "size": FACE, "audio": audio, **known})


def faces(num_frames: int) -> np.ndarray:
    """Frame k is grey level k; a view, so that a long track costs no memory."""
    levels = (np.arange(num_frames) % 256).astype(np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (num_frames, *FACE, 3))


def late_by(frames: int, columns: np.ndarray) -> tuple[Fake, Fake]:
    """Embeddings of sound are its coefficients; those of faces are the coefficients that sounded ``frames`` before."""
    started = {columns[:, 4 * k : 4 * k + 20].tobytes(): k for k in range(columns.shape[1] // 4)}
    code = np.random.default_rng(1).standard_normal((400, 8))

    def embed_faces(windows: np.ndarray) -> np.ndarray:
        assert windows.shape[1:] == (5, *FACE, 3)
        assert (np.diff(number(windows), axis=1) == 1).all()  # five consecutive frames
        return code[number(windows)[:, 0] - frames + 100]

    def embed_sounds(windows: np.ndarray) -> np.ndarray:
        assert windows.shape[1:] == (13, 20)
        return code[np.array([started[np.ascontiguousarray(window).tobytes()] for window in windows]) + 100]

    return Fake(embed_faces), Fake(embed_sounds)


@pytest.mark.parametrize("offset", [0, 3, -5])
@pytest.mark.parametrize("batch", [7, 60])
def test_the_offset_is_found(offset: int, batch: int, sound: Path):
    columns = speech.mfcc(speech.read_speech(sound)).T
    made = {
        metric.base: scored(
            metric(Setup(mode="clean"), *late_by(offset, columns)), faces(150), face_track(150, sound), batch
        )
        for metric in (SyncC, SyncD)
    }
    result = made["sync_c"]
    assert result.extra["offset"] == offset
    assert made["sync_d"].value == pytest.approx(0, abs=1e-4)
    assert result.value == pytest.approx(result.extra["sync_c"])
    assert result.value is not None
    assert result.value > 3
    assert [at for at, _ in series(result, "sync_d")] == [
        0
    ]  # the 21 windows after the first 5 s are less than a second
    assert result.extra == made["sync_d"].extra


def test_late_loss_of_sync_shows_in_the_curve():
    rng = np.random.default_rng(0)
    sounds = rng.standard_normal((375, 8))
    video = sounds.copy()
    video[250:] = rng.standard_normal((125, 8))
    curve = sync.sync_over_time(sync.sync_distances(video, sounds, mode="clean"))
    assert curve["sync_c"][0] == [0, 125, 250]
    first, second, last = curve["sync_c"][1]
    assert min(first, second) > 3
    assert last < 1


def test_the_published_code_leaves_the_last_window_out(sound: Path):
    seen = {}
    for mode in ("vbench", "clean"):
        counted = Fake(lambda windows: np.ones((len(windows), 2)))
        scored(SyncC(Setup(mode=mode), Fake(lambda w: np.ones((len(w), 2))), counted), faces(60), face_track(60, sound))
        seen[mode] = sum(counted.sizes)
    assert seen == {"vbench": 55, "clean": 56}


def test_what_is_no_face_track_is_skipped(sound: Path):
    fake = Fake(lambda windows: np.ones((len(windows), 2)))
    metric = SyncC(None, fake, fake)
    assert metric.needs == {Need.AUDIO}
    assert (metric.name, SyncD(Setup(mode="clean")).name) == ("sync_c", "sync_d_clean")
    assert SyncD().better is Better.LOWER
    for about, reason in [
        (face_track(60, None), "no audio"),
        (face_track(60, sound, fps=16), "25 fps"),
        (sample(60, 25, (480, 832), audio=sound), "crops of one face"),
        (face_track(20, sound), "too short"),
    ]:
        result = feed(metric, faces(about.num_frames), about)
        assert isinstance(result, Skipped)
        assert reason in result.reason


# --- sound ----------------------------------------------------------------------------------------------------------


def test_sound_of_any_rate_becomes_16_khz_mono(tmp_path: Path):
    stereo = write_sound(tmp_path / "stereo.wav", 1.0, 44_100, 2)
    samples = speech.read_speech(stereo)
    assert samples.dtype == np.int16
    assert samples.ndim == 1
    assert len(samples) == pytest.approx(16_000, abs=40)
    same = speech.read_speech(write_sound(tmp_path / "mono.wav", 0.5))
    assert np.array_equal(same[:100], (np.random.default_rng(0).standard_normal(8000) * 3000).astype("<i2")[:100])


def test_files_without_sound_are_named(tmp_path: Path):
    (tmp_path / "text.wav").write_text("no sound")
    for name in ("text.wav", "none.wav"):
        with pytest.raises(UserError, match=name):
            speech.read_speech(tmp_path / name)


def test_coefficients_of_a_tone():
    """Numbers of python_speech_features 0.6 for a 440 Hz tone, first frame."""
    tone = (3000 * np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)).astype(np.int16)
    coefficients = speech.mfcc(tone)
    assert coefficients.shape == (99, 13)
    assert coefficients[0] == pytest.approx(TONE, abs=1e-3)


@pytest.mark.parametrize(("samples", "frames"), [(0, 1), (400, 1), (401, 2), (560, 2), (561, 3), (16_000, 99)])
def test_one_frame_every_ten_milliseconds(samples: int, frames: int):
    coefficients = speech.mfcc(np.zeros(samples, np.int16))
    assert coefficients.shape == (frames, 13)
    assert np.isfinite(coefficients).all()


def test_mel_filters_overlap_and_sum_to_one():
    filters = speech.mel_filters()
    assert filters.shape == (26, 257)
    assert (filters >= 0).all()
    assert filters.max() == 1
    inside = filters.sum(axis=0)[10:200]
    assert inside == pytest.approx(np.ones(190))


# --- SyncNet --------------------------------------------------------------------------------------------------------


def test_syncnet_has_the_published_weights():
    with torch.device("meta"):
        state = syncnet.SyncNet().state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items() if tensor.ndim > 1}
    audio = {0: (64, 1, 3, 3), 4: (192, 64, 3, 3), 8: (384, 192, 3, 3), 11: (256, 384, 3, 3), 14: (256, 256, 3, 3)}
    lips = {0: (96, 3, 5, 7, 7), 4: (256, 96, 1, 5, 5), 8: (256, 256, 1, 3, 3), 11: (256, 256, 1, 3, 3)}
    assert shapes == {
        **{f"netcnnaud.{k}.weight": shape for k, shape in {**audio, 18: (512, 256, 5, 4)}.items()},
        **{f"netcnnlip.{k}.weight": s for k, s in {**lips, 14: (256, 256, 1, 3, 3), 18: (512, 256, 1, 6, 6)}.items()},
        **{f"netfc{side}.0.weight": (512, 512) for side in ("aud", "lip")},
        **{f"netfc{side}.3.weight": (1024, 512) for side in ("aud", "lip")},
    }
    assert {k for k in state if k.startswith("netfcaud.1.")} >= {"netfcaud.1.running_mean", "netfcaud.1.running_var"}


def test_syncnet_is_loaded_and_sees_bgr(tmp_path: Path):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = syncnet.SyncNet()
    path, other = tmp_path / "syncnet_v2.model", tmp_path / "other.model"
    torch.save({k: v for k, v in made.state_dict().items() if "num_batches" not in k}, path)
    torch.save({"weight": torch.zeros(3)}, other)
    with pytest.raises(UserError, match="is not syncnet_v2"):
        syncnet.load(other, torch.device("cpu"))
    network = syncnet.load(path, torch.device("cpu"))
    window = np.random.default_rng(0).integers(0, 256, (1, 5, *FACE, 3), dtype=np.uint8)
    with torch.inference_mode():
        bgr = torch.from_numpy(window[..., ::-1].copy()).permute(0, 4, 1, 2, 3).float()
        expected = network.faces(bgr).numpy()
    assert sync.FaceEmbedding(network)(window) == pytest.approx(expected, abs=1e-4)
    assert sync.SoundEmbedding(network)(np.zeros((2, 13, 20), np.float32)).shape == (2, 1024)


def test_missing_syncnet_is_a_reason():
    reason = SyncC(Setup(places=Places(folder=Path("nowhere"), caches=False))).missing()
    assert reason is not None
    assert "syncnet_v2.model" in reason
