"""Embeddings on disk: what comes back is what was put in, and what cannot be read is made again."""

import os

import pytest
import torch

from svi.backends.text_cache import TextCache, cached, default_folder, identity, late
from svi.errors import UserError


class Encoder:
    """Counts what it is asked; a prompt of n words has n tokens and zeros after them."""

    def __init__(self):
        self.asked = []

    def __call__(self, prompts):
        self.asked += prompts
        rows = torch.zeros(len(prompts), 512, 8)
        for row, prompt in zip(rows, prompts, strict=True):
            for number, word in enumerate(prompt.split()):
                row[number] = torch.linspace(-1, len(word), 8) / 3
        return rows


def files_in(folder):
    return sorted(folder.glob("*.safetensors"))


def test_a_prompt_is_encoded_once(tmp_path):
    encoder = Encoder()
    made = cached(encoder, TextCache(tmp_path / "text", "T5"))(["a cat walks", "", "a cat walks"])
    again = cached(encoder, TextCache(tmp_path / "text", "T5"))(["a cat walks", ""])
    assert encoder.asked == ["a cat walks", ""]
    assert torch.equal(made[:2], again)
    assert torch.equal(again, Encoder()(["a cat walks", ""]))
    assert all(path.stat().st_size < 1000 for path in files_in(tmp_path / "text"))  # padding takes no room


def test_an_encoder_is_loaded_when_it_is_needed_and_once(tmp_path):
    loads = []

    def load():
        loads.append(1)
        return Encoder()

    for prompts, wanted in ((["a cat", "a dog"], 1), (["a dog"], 1), (["a cow", "a pig"], 2)):
        cached(late(load), TextCache(tmp_path, "T5"))(prompts)
        assert len(loads) == wanted


def test_another_encoder_finds_nothing(tmp_path):
    encoder = Encoder()
    for files, dtype in (({"t5": "a"}, torch.float32), ({"t5": "b"}, torch.float32), ({"t5": "a"}, torch.bfloat16)):
        cache = TextCache(tmp_path, identity(files, dtype, torch.device("cpu")))
        cached(encoder, cache)(["a dog"])
    assert encoder.asked == ["a dog"] * 3


@pytest.mark.parametrize("damage", [b"", b"garbage", None])
def test_damaged_entries_are_made_again(tmp_path, damage):
    encoder, cache = Encoder(), TextCache(tmp_path, "T5")
    encode = cached(encoder, cache)
    made = encode(["a cat"])
    (path,) = files_in(tmp_path)
    path.write_bytes(path.read_bytes()[:-3] if damage is None else damage)
    assert torch.equal(encode(["a cat"]), made)
    assert torch.equal(encode(["a cat"]), made)
    assert encoder.asked == ["a cat"] * 2


def test_entries_that_are_not_finite_are_made_again(tmp_path):
    encoder, cache = Encoder(), TextCache(tmp_path, "T5")
    cache.put("a cat", torch.full((1, 512, 8), float("nan")))
    assert torch.isfinite(cached(encoder, cache)(["a cat"])).all()


def test_the_folder_stays_within_its_budget(tmp_path):
    encoder = Encoder()
    cache = TextCache(tmp_path, "T5", budget_bytes=2000)
    encode = cached(encoder, cache)
    encode(["the first"])
    for number in range(20):
        os.utime(files_in(tmp_path)[0], ns=(number, number))
        encode([f"prompt number {number}"])
    assert sum(path.stat().st_size for path in files_in(tmp_path)) <= 2000
    assert cache.get("prompt number 19") is not None
    assert cache.get("the first") is None


def test_a_folder_that_cannot_be_written_costs_time_only(tmp_path):
    (tmp_path / "file").write_text("in the way")
    encoder, cache = Encoder(), TextCache(tmp_path / "file" / "text", "T5")
    assert torch.equal(cached(encoder, cache)(["a cat"]), Encoder()(["a cat"]))
    with pytest.raises(UserError):
        cache.put("a cat", torch.ones(1, 2, 3))


def test_the_default_folder_is_the_users(monkeypatch, tmp_path):
    monkeypatch.setenv("SVI_CACHE", str(tmp_path))
    assert default_folder() == tmp_path / "text"
    monkeypatch.delenv("SVI_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "svi" / "text"
