"""Videos made side by side, mechanisms among the methods, and the paper's Table 1 in miniature, on the pocket model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from svi import benchmark
from svi.benchmark import miniature
from svi.conditioning.policy import MECHANISMS
from svi.errors import UserError
from svi.evaluation.reader import batches, look
from svi.evaluation.sources import list_videos
from svi.options import Place

Bench = Callable[..., tuple[int, str, str]]
CLIPS = 3  # of 17 frames, 16 of them new
QUICK = "steps=1,guidance=1"


def made(out: Path, *words: str, samples: int = 2, **options) -> bool:
    bench = benchmark.open_bench(out, "pocket", samples=samples, clips=CLIPS)
    return benchmark.generate(bench, [benchmark.parse_method(word) for word in words], **options)


def frames_of(path: Path) -> np.ndarray:
    return np.concatenate(list(batches(look(path)))).astype(float)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two worlds, in one batch by four methods, and by runs as well."""
    out = tmp_path_factory.mktemp("together") / "out"
    words = [f"wan:{QUICK}", f"noisy-history:{QUICK}", f"inverted:{QUICK}", "history-guidance:steps=1"]
    assert made(out, *words, "truth", together=2)
    assert made(out, f"runs:preset=wan,{QUICK}")
    return out


def test_a_batch_makes_what_runs_make(out: Path):
    for name in ("000", "001"):
        together, alone = frames_of(out / f"videos/wan/{name}.mp4"), frames_of(out / f"videos/runs/{name}/video.mp4")
        assert together.shape == alone.shape
        assert np.abs(together - alone).mean() < 4  # other groups of pictures, and the rounding of larger products
    batch, run = (list_videos(out / "videos" / method).entries[0] for method in ("wan", "runs"))
    assert batch.borders == run.borders
    assert not (out / "videos" / "wan" / ".making").exists()


def test_every_mechanism_makes_videos_of_the_suite(out: Path):
    plain = frames_of(out / "videos/wan/000.mp4")
    for method in MECHANISMS:
        entries = list_videos(out / "videos" / method).entries
        assert [entry.name for entry in entries] == ["000", "001"]
        frames = frames_of(entries[0].video)
        assert len(frames) >= 16 * CLIPS + 1
        assert not np.array_equal(frames[: len(plain)], plain)
    assert list_videos(out / "videos" / "inverted").entries[0].borders == (13, 25, 37)


def test_a_batch_goes_on_where_it_stopped(tmp_path: Path, out: Path):
    for method in ("noisy-history", "inverted"):
        asked: list[int] = []
        words = f"{method}:{QUICK}"
        stop = Place(should_stop=lambda asked=asked: len(asked) > 1 or asked.append(1) is not None)
        assert not made(tmp_path, words, together=2, place=stop)
        assert list((tmp_path / "videos" / method / ".making").glob("*/0000.safetensors"))
        assert made(tmp_path, words, together=1 if method == "inverted" else 2)  # a batch stays as it was begun
        for name in ("000", "001"):
            file = f"videos/{method}/{name}.mp4"
            assert (tmp_path / file).read_bytes() == (out / file).read_bytes()


def test_a_damaged_clip_is_named(tmp_path: Path):
    asked: list[int] = []
    stop = Place(should_stop=lambda: len(asked) > 1 or asked.append(1) is not None)
    assert not made(tmp_path, f"wan:{QUICK}", samples=1, together=2, place=stop)
    (file,) = (tmp_path / "videos" / "wan" / ".making").glob("*/0000.safetensors")
    file.write_bytes(b"no tensors")
    with pytest.raises(UserError, match=r"0000.safetensors is damaged .*: remove"):
        made(tmp_path, f"wan:{QUICK}", samples=1, together=2)


def test_one_name_is_one_method(out: Path):
    with pytest.raises(UserError, match="was made with other settings: give the method another name"):
        made(out, "wan:steps=2,guidance=1", together=2)
    with pytest.raises(UserError, match="was made with other preset"):
        made(out, f"wan:preset=shot,{QUICK}")


def test_batches_are_for_pictures_of_one_size(tmp_path: Path):
    case = tmp_path / "data" / "one"
    case.mkdir(parents=True)
    (case / "frame.png").write_bytes(b"")
    (case / "prompt.txt").write_text("a cat\n")
    bench = benchmark.open_bench(tmp_path / "out", "consistent-50s", data=tmp_path / "data")
    for words, together in (("shot", 2), ("inverted", 1)):
        with pytest.raises(UserError, match="pictures of consistent-50s differ in size"):
            benchmark.generate(bench, [benchmark.parse_method(words)], together=together)


# -- the miniature -----------------------------------------------------------------------------------------------------


def test_the_miniature_has_a_row_per_mechanism_and_names_what_it_lacks():
    lines = miniature.lines_of([])
    words = [benchmark.parse_method(line.words) for line in lines]
    assert {method.preset for method in words} >= {"wan", "shot", *MECHANISMS}
    methods, left_out = miniature.methods_of(lines, "pocket", {})
    assert len(methods) + len(left_out) == len(lines)
    assert all("--lora" in line for line in left_out)
    assert [method.name for method in methods if not method.loras][:2] == ["wan", "noisy-history"]


def test_a_lora_can_be_given_by_its_file(tmp_path: Path):
    file = tmp_path / "mine.safetensors"
    file.write_bytes(b"weights")
    (method,), left_out = miniature.methods_of(miniature.lines_of(["svi-shot"]), "pocket", {"shot": f"{file}:0.9"})
    assert method.loras == (f"{file}:0.9",)
    assert not left_out
    with pytest.raises(UserError, match="missing"):
        miniature.methods_of(miniature.lines_of(["svi-shot"]), "pocket", {"shot": str(tmp_path / "gone.safetensors")})
    with pytest.raises(UserError, match="did you mean 'shot'"):
        miniature.methods_of(miniature.lines_of(["svi-shot"]), "pocket", {"shoot": str(file)})
    with pytest.raises(UserError, match="did you mean 'svi-shot'"):
        miniature.lines_of(["svi-shott"])


def test_the_miniature_in_one_go(tmp_path: Path, bench: Bench):
    words = ["miniature", "--out", tmp_path, "--samples", "2", "--clips", "2", "--methods"]
    methods = ["wan", "inverted", "truth", "copy-reference", "svi-shot"]
    code, table, err = bench(*words, *methods, "--profile", "drift", "--sheets", "0", "--batch", "2")
    assert code == 0
    assert table.startswith("# Table 1 in miniature\n\n| method | stands for | pocket truth")
    rows = [line.split(" | ")[0].strip("| ").split(" (")[0] for line in table.splitlines() if line.startswith("|")][2:]
    assert rows[:2] == ["wan", "inverted"]
    assert {"truth", "copy-reference"} <= set(rows)
    assert "svi-shot" in rows or "svi: left out: svi-shot: " in err
    assert (tmp_path / "report.html").is_file()
    assert (tmp_path / "miniature.md").read_text() == table
    code, again, err = bench(*words, *methods, "--profile", "drift", "--sheets", "0", "--batch", "2")
    assert (code, again) == (0, table)
    assert "0 videos to make" in err
