"""Skipped steps: branches and clips never see each other's, and what is taken off leaves no trace."""

import pytest
import torch

from svi.backends.memory import TransformerShape
from svi.backends.random_weights import random_transformer
from svi.backends.step_cache import StepCache, around
from svi.errors import UserError

CPU = torch.device("cpu")
THRESHOLD = 0.3
LEVELS = (1.0, 0.97, 0.93, 0.6, 0.58)


def tiny(layers=4):
    shape = TransformerShape(2, 32, 36, 16, 24, 64, 96, layers, image_dim=20, added_kv_proj_dim=64)
    return random_transformer(shape, CPU, torch.float32, torch.Generator().manual_seed(3))


class Clip:
    """Two conditions of a clip, as a sampler keeps them."""

    def __init__(self, seed):
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape):
            return torch.randn(shape, generator=generator)

        self.noisy, self.image = draw(1, 36, 2, 4, 6), draw(1, 257, 20)
        self.texts = {"full": draw(1, 512, 24), "without_text": draw(1, 512, 24)}

    def run(self, transformer, branches=("full", "without_text"), levels=LEVELS):
        results = {}
        for level in levels:
            for branch in branches:
                text = self.texts[branch]
                with torch.no_grad(), around(transformer, text, level):
                    results[branch, level] = transformer(
                        hidden_states=level * self.noisy,
                        timestep=torch.tensor([1000 * level]),
                        encoder_hidden_states=text,
                        encoder_hidden_states_image=self.image,
                        return_dict=False,
                    )[0]
        return results


def same(first, second, keys=None):
    return all(torch.equal(first[key], second[key]) for key in keys or first)


def calls(transformer):
    counted = []
    for block in transformer.blocks[1:]:
        block.ffn.register_forward_hook(lambda *_: counted.append(1))
    return counted


def test_steps_are_skipped_and_taken_off_again():
    transformer, clip = tiny(), Clip(1)
    plain = clip.run(transformer)
    counted = calls(transformer)
    clip.run(transformer)
    every = len(counted)
    cache = StepCache(transformer, THRESHOLD)
    cached = clip.run(transformer)
    assert len(counted) - every < every
    assert not same(cached, plain)
    assert same(cached, plain, [("full", 1.0), ("without_text", 1.0)])  # there is nothing yet to take from
    cache.close()
    assert same(clip.run(transformer), plain)


def test_branches_do_not_see_each_other():
    transformer, clip = tiny(), Clip(1)
    StepCache(transformer, THRESHOLD)
    both = clip.run(transformer)
    swapped = clip.run(transformer, branches=("without_text", "full"))
    alone = clip.run(transformer, branches=("without_text",))
    assert same(both, swapped)
    assert same(alone, both, list(alone))


@pytest.mark.parametrize("announced", [True, False])
def test_clips_do_not_see_each_other(announced):
    """Also where nobody says that a clip begins: its first noise level is above the last one."""
    transformer, clip = tiny(), Clip(1)
    cache = StepCache(transformer, THRESHOLD)
    first = clip.run(transformer)
    Clip(2).run(transformer, levels=LEVELS[:3])  # stopped in the middle
    if announced:
        cache.begin_clip()
    assert same(clip.run(transformer), first)


def test_a_sampler_gets_the_same_clip_twice():
    """Through the sampler itself, with guidance and a solver that evaluates twice per step."""
    from svi.condition import ClipCondition
    from svi.generation.sampler import denoise
    from svi.schedule import shifted_sigmas

    transformer, clip = tiny(), Clip(3)
    known = torch.zeros(1, 4, 2, 4, 6)
    condition = ClipCondition(clip.noisy[:, :16], known, clip.texts["full"], clip.image)

    def velocity(noisy, sigma, condition):
        with around(transformer, condition, float(sigma)):
            inputs = torch.cat([noisy, condition.known, condition.values], dim=1)
            return transformer(inputs, 1000 * sigma, condition.text, condition.image, return_dict=False)[0]

    def made():
        return denoise(
            velocity,
            condition,
            clip.texts["without_text"],
            noise=clip.noisy[:, 16:32],
            sigmas=shifted_sigmas(5, 5.0),
            guidance=4.0,
            solver="heun",
        )

    exact = made()
    StepCache(transformer, THRESHOLD)
    drafts = [made(), made()]
    assert torch.equal(*drafts)
    assert not torch.equal(drafts[0], exact)


def test_without_a_cache_there_is_nothing_around():
    transformer, clip = tiny(2), Clip(1)
    with around(transformer, object(), 0.5):
        pass
    assert same(clip.run(transformer), clip.run(transformer))


@pytest.mark.parametrize("threshold", [0, 1, -0.1, float("nan")])
def test_thresholds_are_shares(threshold):
    with pytest.raises(UserError, match="between 0 and 1"):
        StepCache(tiny(2), threshold)


def test_one_block_cannot_be_skipped():
    with pytest.raises(UserError, match="nothing to skip"):
        StepCache(tiny(1), 0.1)
