"""Configurations: recipes are complete, files and the command line change them, and mistakes are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from svi.conditioning.policy import PRESETS
from svi.errors import UserError
from svi.finetune import ALL_RECIPES, find_config
from svi.training.config import differences
from svi.training.distributed import step_generator
from svi.training.methods import density, sigma_range

EXAMPLES = Path(__file__).parents[2] / "examples/training"


@pytest.mark.parametrize("name", sorted(ALL_RECIPES))
def test_every_recipe_is_complete_and_says_where_its_values_come_from(name: str, tmp_path: Path) -> None:
    config = find_config(name, [])
    assert config.recipe == name
    assert config.sources
    assert config.data.preset in PRESETS
    file = tmp_path / "config.yaml"
    file.write_text(config.to_yaml(), encoding="utf-8")
    assert find_config(str(file), []) == config


def test_published_values() -> None:
    shot, film, opt = (find_config(name, []) for name in ("shot", "film", "film-opt"))
    assert (shot.lora.rank, shot.optimizer.lr, shot.bank.capacity, shot.bank.buckets) == (128, 1e-4, 500, 50)
    assert (shot.recycling.clean_prob, film.recycling.clean_prob) == (0.2, 0.5)
    assert (film.recycling.clean_buffer_update_prob, opt.recycling.clean_buffer_update_prob) == (1.0, 0.1)


def test_a_file_and_the_command_line_change_a_recipe(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("recipe: pocket-shot\noptimizer: {lr: 1.0e-3}\nloop:\n  steps: 7\n", encoding="utf-8")
    config = find_config(
        str(file), ["loop.steps=9", "lora.targets=[to_q]", "optimizer.ema_decay=0.99", "data.prefetch=0"]
    )
    assert (config.optimizer.lr, config.loop.steps, config.lora.targets) == (1e-3, 9, ("to_q",))
    assert config.optimizer.ema_decay == 0.99
    assert find_config("pocket-shot", ["optimizer.lr=2e-5"]).optimizer.lr == 2e-5


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("pocket-shott", [], "did you mean 'pocket-shot'"),
        ("pocket-shot", ["optimiser.lr=1"], "did you mean 'optimizer'"),
        ("pocket-shot", ["recycling.clean_probb=1"], "did you mean 'clean_prob'"),
        ("pocket-shot", ["loop.steps=0"], "loop.steps"),
        ("pocket-shot", ["recycling.clean_prob=2"], "clean_prob"),
        ("pocket-shot", ["loop=3"], "is a section"),
        ("pocket-shot", ["loop.steps"], "a.b=value"),
        ("nowhere.yaml", [], "there is no configuration"),
        ("pocket-shot", ["parallel.strategy=fsdp2", "model.quantisation=fp8"], "exclude each other"),
        ("pocket-shot", ["parallel.strategy=zero2", "optimizer.ema_decay=0.9"], "take parallel.strategy=ddp"),
    ],
)
def test_mistakes_are_named(name: str, changes: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        find_config(name, changes)


def test_a_file_that_is_no_configuration(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    for text in ("[1, 2]", "lr: 3", "a: [", "recipe: 5"):
        file.write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match=r"x\.yaml"):
            find_config(str(file), [])


def test_experts_see_their_side_of_the_boundary() -> None:
    for expert in ("high", "low"):
        config = find_config("svi2-wan22", [f"model.expert={expert}"])
        low, high = sigma_range(config)
        sigma = density(config)(64, step_generator(0, 0, 0))
        assert sigma.shape == (64,)
        assert low <= sigma.min() <= sigma.max() <= high


def test_what_may_change_when_a_training_goes_on_and_what_may_not() -> None:
    before = find_config("pocket-shot", []).pinned()
    for change in ("loop.steps=9", "loop.keep=1", "bank.memory_gb=3", "data.cache=x", "model.offload_activations=true"):
        assert find_config("pocket-shot", [change]).pinned() == before, change
    for change, phrase in (
        ("loop.seed=9", "loop.seed 0, now 9"),
        ("optimizer.lr=9", "optimizer.lr 0.0005, now 9.0"),
        ("recycling.clean_prob=1", "recycling.clean_prob 0.2, now 1.0"),
    ):
        assert differences(before, find_config("pocket-shot", [change]).pinned()) == [phrase]


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("shot-*.yaml")), ids=lambda file: file.name)
def test_examples_are_configurations(file: Path) -> None:
    assert find_config(str(file), []).recipe == "shot"
