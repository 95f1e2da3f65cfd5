"""The speed benchmark: it runs anywhere, its figures follow from one another, and it measures both on the same weights."""

import argparse
import json

import pytest
import torch

from svi.backends.memory import KNOWN_MODELS, ModelSizes, TransformerShape, Window
from svi.backends.placement import choose
from svi.backends.random_weights import random_transformer, random_vae
from svi.backends.timing import matmul_flops, timed
from svi.backends.vae_cost import VaeShape
from svi.benchmark_speed import Report, Subject, known_sizes, measure, quantity, reduced, subject_of
from svi.cli import bench_speed as command
from svi.errors import UserError

CPU = torch.device("cpu")
SIZES = ModelSizes(
    "tiny",
    TransformerShape(2, 32, 36, 16, 24, 64, 96, 2, image_dim=20, added_kv_proj_dim=64),
    VaeShape(base_dim=4, num_res_blocks=1),
)


def tiny():
    generator = torch.Generator().manual_seed(0)
    transformer = random_transformer(SIZES.transformer, CPU, torch.float32, generator)
    return Subject("tiny", SIZES, Window(32, 48, 5), transformer, random_vae(SIZES.vae, CPU, generator))


@pytest.fixture(scope="module")
def report():
    subject, said = tiny(), []
    return measure(
        subject, choose("cpu", sizes=SIZES, window=subject.window), steps=2, repeats=1, say=said.append
    ), said


def test_every_figure_is_there_and_follows(report):
    found, said = report
    assert found.tokens == 2 * 2 * 3
    assert found.forward_flops == SIZES.transformer.forward_flops(12)
    assert min(found.forward_s, found.step_s, found.encode_s, found.decode_s, found.stock_step_s) > 0
    assert found.clip_s == pytest.approx(found.encode_s + 50 * found.step_s + found.decode_s)
    assert found.achieved_flops == pytest.approx(found.forward_flops / found.forward_s)
    assert found.peak_bytes
    assert len(said) == 5


def test_the_page_and_the_data_agree(report):
    found, _ = report
    page, data = "\n".join(found.lines()), found.to_dict()
    assert json.loads(json.dumps(data)) == data
    assert data["share_of_ceiling"] == pytest.approx(found.achieved_flops / found.ceiling_flops)
    assert f"ours is {found.stock_step_s / found.step_s:.2f}x as fast" in page
    assert f"{found.step_s:.3f} s" in page


def test_measuring_takes_no_stock_and_no_vae_if_told():
    found = measure(tiny(), choose("cpu"), steps=1, repeats=1, stock=False, vae=False, ceiling=1e9)
    assert (found.stock_step_s, found.encode_s, found.decode_s, found.ceiling_flops) == (None, 0.0, 0.0, 1e9)


def test_random_models_compute_something_finite():
    subject = tiny()
    with torch.no_grad():
        frames = subject.vae.decode(torch.randn(1, 16, 2, 4, 6, generator=torch.Generator().manual_seed(1))).sample
    assert torch.isfinite(frames).all()
    assert frames.std() > 1e-4


def test_a_reduced_model_has_the_same_architecture():
    sizes, _ = KNOWN_MODELS["wan2.1-i2v-14b"]
    small, window, title = known_sizes("wan2.1-i2v-14b", CPU)
    assert small == reduced(sizes)
    assert "reduced" in title
    assert small.transformer.parameters < 50e6
    assert (small.transformer.attention_head_dim, small.transformer.in_channels) == (128, 36)
    whole, window, title = known_sizes("wan2.1-i2v-14b", torch.device("cuda"))
    assert (whole, window) == (sizes, Window())
    assert "reduced" not in title


@pytest.mark.parametrize(
    ("model", "options", "said"),
    [
        ("wan2.1-i2v", dict(random_weights=True), "did you mean 'wan2.1-i2v-14b'"),
        ("wan2.1-i2v-14b", dict(random_weights=True, num_frames=12), "4n"),
        ("wan2.1-i2v-14b", dict(random_weights=True, size=(50, 64)), "multiples of 16"),
        ("wan2.1-i2v-14b", dict(random_weights=True, speed="draft"), "random weights cannot tell"),
        ("no/such/folder", dict(random_weights=False), "there is no folder"),
    ],
)
def test_what_cannot_be_measured_is_refused(model, options, said):
    with pytest.raises(UserError, match=said):
        subject_of(model, device="cpu", **options)


def test_the_command_prints_one_json_object(capsys, model_folder):
    parser = argparse.ArgumentParser()
    command.add_words(parser)
    words = ["--model", str(model_folder), "--steps", "1", "--repeats", "1", "--no-stock", "--device", "cpu", "--json"]
    assert command.run(parser.parse_args(words)) == 0
    out = capsys.readouterr()
    found = json.loads(out.out)
    assert found["title"] == str(model_folder)
    assert found["step_s"] > 0
    assert "measuring steps" in out.err


def test_quantities_are_readable():
    assert [quantity(n) for n in (1.686e15, 790e12, 12.3e9, 5e6, 7)] == ["1.69 P", "790 T", "12.3 G", "5 M", "7 "]


def test_a_ceiling_is_the_best_of_several():
    small = matmul_flops(CPU, torch.float32, [(8, 8, 8)])
    assert small > 1e8
    assert timed(lambda: None, CPU, 3) < 1


def test_reports_name_what_was_not_measured():
    report = Report("m", "d", "t", [], 1, 10**9, 1e9, 1.0, 2.0, 0.0, 0.0)
    assert not any("stock" in line for line in report.lines())
