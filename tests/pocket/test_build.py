"""Building the pocket model: every stage runs, resumes exactly, and leaves a model that loads and generates."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import nn

from svi.backends.wan import load_backend
from svi.pocket import build
from svi.pocket.components import build_tokenizer
from svi.pocket.encode import drill_of
from svi.pocket.measure import first_clips
from svi.pocket.storyboard import Beat, Event
from svi.pocket.train_dit import activity, draw_sigma
from svi.pocket.train_text import NOTHING, SCENE, questions
from svi.pocket.trainloop import Stage, train
from svi.pocket.world import World


def test_the_whole_build_leaves_a_model_that_generates(tmp_path: Path) -> None:
    options = ["--clips", "8", "--drills", "4", "--steps", "2", "--batch", "4", "--vae-scale", "0.002"]
    options += ["--text-scale", "0.004"]
    assert build.main([str(tmp_path), *options, "--stage", "vae"]) == 0
    assert build.main([str(tmp_path), *options]) == 0
    backend = load_backend(str(tmp_path / "model"))
    (clip,) = first_clips(backend, [World.sample(0)], [0], steps=2)
    assert clip.shape == (17, 64, 96, 3)
    rows = [json.loads(line) for line in (tmp_path / "dit.jsonl").read_text().splitlines()]
    assert all(torch.isfinite(torch.tensor(row["loss"])) for row in rows)
    more = tmp_path / "more"
    assert build.main([str(more), *options, "--start", str(tmp_path / "model"), "--stage", "vae"]) == 0
    assert (more / "vae-polish.pt").exists()
    assert not (more / "vae.pt").exists(), "a model that exists is polished, not begun again"


class _Interrupted(Exception):
    pass


def _stage(stop_at: int | None, optimizer: str) -> tuple[Stage, nn.Module]:
    torch.manual_seed(0)
    model = nn.ModuleDict({"blocks": nn.Linear(4, 4), "kernel": nn.Conv3d(2, 4, 3), "head": nn.Linear(4, 1)})
    model["kernel"].weight.data = model["kernel"].weight.data.contiguous(memory_format=torch.channels_last_3d)

    def loss(step: int, generator: torch.Generator):  # type: ignore[no-untyped-def]
        if step == stop_at:
            raise _Interrupted
        volume = torch.randn(2, 2, 3, 3, 3, generator=generator)
        hidden = model["kernel"](volume).flatten(1)
        return (model["head"](model["blocks"](hidden)) - 1).square().mean(), {}

    return Stage("toy", {"toy": model}, 12, loss, warmup=2, optimizer=optimizer, ema_decay=0.9), model  # type: ignore[arg-type]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_resumed_stage_equals_an_undisturbed_one(tmp_path: Path, optimizer: str) -> None:
    console = Console(quiet=True)
    stage, straight = _stage(None, optimizer)
    train(stage, tmp_path / "straight", seed=3, console=console, save_every_s=0)
    stage, _ = _stage(7, optimizer)
    with pytest.raises(_Interrupted):
        train(stage, tmp_path / "resumed", seed=3, console=console, save_every_s=0)
    stage, resumed = _stage(None, optimizer)
    train(stage, tmp_path / "resumed", seed=3, console=console, save_every_s=0)
    for a, b in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_training_learns_and_a_bad_loss_stops_it(tmp_path: Path) -> None:
    stage, _ = _stage(None, "muon")
    stage.total_steps, stage.lr = 150, 0.02
    train(stage, tmp_path, seed=0, console=Console(quiet=True))
    rows = [json.loads(line) for line in (tmp_path / "toy.jsonl").read_text().splitlines()]
    assert rows[-1]["loss"] < rows[0]["loss"] / 5
    stage, _ = _stage(None, "adamw")
    stage.loss = lambda step, generator: (torch.tensor(float("nan"), requires_grad=True), {})
    with pytest.raises(FloatingPointError, match="step 0"):
        train(stage, tmp_path / "bad", seed=0, console=Console(quiet=True))


def test_any_text_encodes() -> None:
    tokenizer = build_tokenizer(World.sample(seed).caption(0) for seed in range(50))
    known = tokenizer("a red circle moves")["input_ids"]
    assert len(known) <= 8
    for text in ("", "Zürich, ein Käse! 東京 🦊"):
        ids = tokenizer(text)["input_ids"]
        assert ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(tokenizer("東京 🦊")["input_ids"], skip_special_tokens=True).strip() == "東京 🦊"


def test_what_changes_counts_more_than_what_stays() -> None:
    clean = torch.randn(2, 16, 1, 8, 12, generator=torch.Generator().manual_seed(0)).repeat(1, 1, 5, 1, 1)
    clean[0, :, 3:, 2:4, 2:4] += 3  # something happens in a corner of the first clip
    weights = activity(clean)
    assert weights.shape == (2, 1, 5, 8, 12)
    assert weights[0, 0, 4, 2:4, 2:4].min() > 5 * weights[0, 0, 4, 5:, 5:].max()
    assert weights[0, 0, 0].unique().tolist() == [1.0], "the first latent frame is given"
    moving = activity(torch.randn(4, 16, 5, 8, 12, generator=torch.Generator().manual_seed(1)))
    assert abs(moving.mean().item() - 1) < 0.02, "where everything changes, all counts alike"


def test_drills_are_about_what_happens_to_things() -> None:
    captions = [drill_of(index, 0, 5)[1] for index in range(8)]
    assert captions == [drill_of(index, 0, 5)[1] for index in range(8)]
    assert len(set(captions)) == 8
    assert all("camera pans" not in caption and "zoom" not in caption for caption in captions)


def test_questions_about_captions_have_true_answers() -> None:
    beat = Beat((Event("turn", 0, "left"),), "stands")
    world = World.sample(3, family="things", camera="stands", num_objects=1, beats=[beat])
    scene, thing = questions(world, 0)
    assert (scene.subject, scene.answers["camera"], scene.answers["way"]) == (SCENE, "stands", NOTHING)
    assert thing.subject == world.start(0).things[0].colour
    assert (thing.answers["event"], thing.answers["new way"], thing.answers["new colour"]) == ("turn", "left", NOTHING)
    assert thing.caption == world.caption(0)


def test_noise_levels_are_stratified_and_lean_to_noise() -> None:
    sigma = draw_sigma(64, torch.Generator().manual_seed(0))
    assert bool((sigma.diff() > 0).all())
    assert sigma.min() >= 0
    assert sigma.max() <= 1
    assert 0.6 < sigma.median() < 0.9
