"""The table of weight files: complete, found where they may be, refused when they are others, fetched when asked."""

from __future__ import annotations

import hashlib
import re
import socket
from pathlib import Path

import pytest

from svi.errors import UserError
from svi.evaluation.metrics import aesthetic, consistency, dynamic, fvd, imaging, lpips, smoothness, sync, weights
from svi.evaluation.metrics.extract import NetworkMetric
from svi.evaluation.metrics.weights import TABLE, Places, WeightFile

CLASSES: list[type[NetworkMetric]] = [
    consistency.SubjectConsistency,
    consistency.BackgroundConsistency,
    aesthetic.AestheticQuality,
    imaging.ImagingQuality,
    dynamic.DynamicDegree,
    smoothness.MotionSmoothness,
    smoothness.MotionSmoothnessFlow,
    lpips.LpipsReference,
    lpips.LpipsTruth,
    fvd.Fvd,
    sync.SyncC,
    sync.SyncD,
]


@pytest.fixture(autouse=True)
def empty_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No weights anywhere, and no way out."""
    home = tmp_path / "home"
    for variable in ("HOME", "XDG_CACHE_HOME", "TORCH_HOME", "VBENCH_CACHE_DIR"):
        monkeypatch.setenv(variable, str(home / variable))
    monkeypatch.setenv("HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.delenv("SVI_METRIC_WEIGHTS", raising=False)

    def refuse(*_: object) -> None:
        raise AssertionError("nothing is fetched unless asked for")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    return home


@pytest.fixture
def row(monkeypatch: pytest.MonkeyPatch) -> WeightFile:
    """A file that can be fetched without a network: its published self lies on disk."""
    found = WeightFile(
        "tiny", ("none",), "MIT", 10, file="tiny-2cf24dba.pth", sha256=hashlib.sha256(b"hello").hexdigest()[:8]
    )
    monkeypatch.setattr(weights, "TABLE", {**TABLE, "tiny": found})
    return found


@pytest.mark.parametrize("row", TABLE.values(), ids=lambda row: row.name)
def test_rows_say_everything(row: WeightFile):
    assert row.licence
    assert 0 < row.size_bytes < 3e9
    assert row.hub or row.url
    assert row.file or row.hub, "a folder comes from the hub"
    if row.url is not None:
        assert row.url.startswith("https://")
        assert row.file is not None
        assert row.file in row.url
    if row.sha256 is not None:
        assert re.fullmatch("[0-9a-f]{8}([0-9a-f]{56})?", row.sha256)
        assert row.file is not None
        assert row.sha256[:8] in row.file
    assert row.research_only == ("NC" in row.licence)


def test_metrics_and_table_know_each_other():
    needed = {(name, metric.base) for metric in CLASSES for name in metric.files}
    assert needed == {(row.name, metric) for row in TABLE.values() for metric in row.metrics}


@pytest.mark.parametrize("made", CLASSES, ids=lambda made: made.base)
def test_without_weights_every_metric_says_why_and_what_to_do(made: type[NetworkMetric]):
    metric = made()
    reason = metric.missing()
    if not made.files:
        assert reason is None
        return
    assert reason is not None
    assert metric.name in reason
    assert "\n" not in reason
    assert any(word in reason for word in ("put ", "pip install", "name a plug-in"))
    assert metric.key()  # can be asked for all the same


@pytest.mark.parametrize("name", TABLE)
def test_files_are_found_in_a_folder(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    row = TABLE[name]
    folder = tmp_path / "weights"
    assert weights.find(name, Places(folder=folder)) is None
    target = folder / (row.file or row.name)
    if row.file:
        folder.mkdir()
        target.write_bytes(b"x")
    else:
        target.mkdir(parents=True)
        (target / "config.json").write_text("{}")
        assert weights.find(name, Places(folder=folder)) is None  # no weights yet
        (target / "pytorch_model.bin").write_bytes(b"x")
    assert weights.find(name, Places(folder=folder)) == target
    assert weights.why_missing(name, Places(folder=folder)) is None
    assert weights.fingerprint(name, Places(folder=folder)) == hashlib.sha256(b"x").hexdigest()
    monkeypatch.setenv("SVI_METRIC_WEIGHTS", str(folder))
    assert weights.find(name, Places()) == target


def test_files_are_found_where_other_programs_keep_them(empty_home: Path):
    places = {
        "raft-large-things": empty_home / "TORCH_HOME/hub/checkpoints/raft_large_C_T_V1-22a6c225.pth",
        "musiq-spaq": empty_home / "VBENCH_CACHE_DIR/pyiqa_model/musiq_spaq_ckpt-358bb6af.pth",
        "dino-vitb16": empty_home / "hub/models--facebook--dino-vitb16/snapshots/abc",
    }
    for name, path in places.items():
        assert weights.find(name, Places()) is None
        if TABLE[name].file:
            path.parent.mkdir(parents=True)
            path.write_bytes(b"x")
        else:
            path.mkdir(parents=True)
            (path / "config.json").write_text("{}")
            (path / "model.safetensors").write_bytes(b"x")
            reference = path.parent.parent / "refs/main"
            reference.parent.mkdir()
            reference.write_text("abc")
        assert weights.find(name, Places()) == path
        assert weights.find(name, Places(caches=False)) is None


def test_a_path_by_name_is_the_only_one_looked_at(tmp_path: Path):
    (tmp_path / "sa_0_4_vit_l_14_linear.pth").write_bytes(b"x")
    places = Places(paths={"laion-aesthetic-v1": tmp_path / "gone.pth"}, folder=tmp_path)
    assert weights.find("laion-aesthetic-v1", places) is None
    assert "gone.pth is no file" in str(weights.why_missing("laion-aesthetic-v1", places))


def test_other_files_are_refused(tmp_path: Path, row: WeightFile):
    assert row.file is not None
    path = tmp_path / row.file
    path.write_bytes(b"hello")
    places = Places(folder=tmp_path)
    assert weights.verified("tiny", places) == path
    path.write_bytes(b"damaged")
    with pytest.raises(UserError, match="is not the published tiny"):
        weights.verified("tiny", places)
    with pytest.raises(UserError, match="tiny not found"):
        weights.verified("tiny", Places(folder=tmp_path / "elsewhere", caches=False))


def test_unknown_names_name_their_neighbour():
    with pytest.raises(UserError, match="did you mean 'dino-vitb16'"):
        Places(paths={"dino-vit16": Path("x")})


def test_fetching_is_asked_for_checked_and_leaves_no_half(
    tmp_path: Path, row: WeightFile, monkeypatch: pytest.MonkeyPatch
):
    source, folder = tmp_path / "published", tmp_path / "weights"
    source.write_bytes(b"hello")
    remote = WeightFile(**{**row.__dict__, "url": source.as_uri()})
    monkeypatch.setattr(weights, "TABLE", {**TABLE, "tiny": remote})
    assert weights.download("tiny", folder).read_bytes() == b"hello"
    (folder / "tiny-2cf24dba.pth").unlink()
    source.write_bytes(b"something else")
    with pytest.raises(UserError, match="try again"):
        weights.download("tiny", folder)
    source.unlink()
    with pytest.raises(UserError, match="cannot fetch tiny"):
        weights.download("tiny", folder)
    assert list(folder.iterdir()) == []


def test_an_unreachable_hub_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="cannot fetch dino-vitb16 .*: fetch the files of facebook/dino-vitb16"):
        weights.download("dino-vitb16", tmp_path)
