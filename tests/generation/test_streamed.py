"""Clips decoded as one stream: what the VAE makes of all latents in a row, whole or in part, and only where that makes sense."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import svi
from svi.backends.decoder import load_decoder
from svi.cli import main
from svi.generation.export import export
from svi.generation.streamed import streamed_frames
from svi.generation.writer import read_frames

PICTURE = np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8)


@pytest.fixture(scope="module")
def backend(model_folder: Path) -> svi.Backend:
    return svi.load(model_folder, device="cpu")


@pytest.fixture(scope="module")
def run(backend: svi.Backend, tmp_path_factory: pytest.TempPathFactory) -> svi.Run:
    out = tmp_path_factory.mktemp("runs") / "pro"
    return svi.generate(PICTURE, ["a", "b"], model=backend, preset="pro", clips=3, steps=1, out=out)


def test_it_is_the_decoding_of_all_latents_in_a_row(run: svi.Run, backend: svi.Backend, model_folder: Path):
    found = torch.stack(list(streamed_frames(run, load_decoder(str(model_folder), device="cpu"))))
    latents = [run.store.latents(clip) for clip in range(3)]
    row = torch.cat([latents[0], latents[1][:, :, 2:], latents[2][:, :, 2:]], dim=2)
    assert torch.equal(found, torch.cat(list(backend.decode(row))))
    assert len(found) == run.status().frames == 9 + 4 + 4
    cold = torch.cat(list(backend.decode(latents[1])))[5:]
    assert torch.equal(found[:9], torch.cat(list(backend.decode(latents[0]))))
    assert not torch.equal(found[9:13], cold)


def test_a_part_is_a_part(run: svi.Run, model_folder: Path, tmp_path: Path):
    decoder = load_decoder(str(model_folder), device="cpu", files=run.manifest.model.files)
    whole = torch.stack(list(streamed_frames(run, decoder)))
    folder = export(run, tmp_path / "part", format="frames", range="1-1", decoder=decoder)
    from PIL import Image

    shown = [np.asarray(Image.open(path)) for path in sorted(folder.iterdir())]
    np.testing.assert_array_equal(np.stack(shown), whole[9:13].numpy())
    video = export(run, tmp_path / "all.mp4", decoder=decoder)
    assert len(list(read_frames(video))) == 17


def test_from_the_command_line(run: svi.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "all.mp4"
    assert main(["export", str(run.path), "--stream", "--device", "cpu", "--out", str(out)]) == 0
    assert out.is_file()
    assert capsys.readouterr().out.strip() == str(out)


def test_where_there_is_no_stream_it_is_refused(
    backend: svi.Backend, model_folder: Path, tmp_path: Path, run: svi.Run, capsys: pytest.CaptureFixture[str]
):
    plain = svi.generate(PICTURE, "a", model=backend, preset="wan", clips=1, steps=1, out=tmp_path / "wan")
    assert main(["export", str(plain.path), "--stream", "--device", "cpu", "--out", str(tmp_path / "a.mp4")]) == 2
    assert "preset wan decodes every clip into the next" in capsys.readouterr().err
    twig = svi.branch(plain, 1, model=backend, preset="pro", clips=2, out=tmp_path / "twig")
    with pytest.raises(svi.UserError, match="clip 0 was made with preset wan"):
        list(streamed_frames(twig, load_decoder(str(model_folder), device="cpu")))
    other = {**json.loads((run.path / "run.json").read_text())["model"]["files"], "vae/config.json": "0" * 64}
    with pytest.raises(svi.UserError, match=r"config\.json is not the file that this run was made with"):
        load_decoder(str(model_folder), device="cpu", files=other)
