"""Suites as data, the published layout as cases, and folders, manifests and runs as videos to score."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from data_videos import counted_frames, write_video
from PIL import Image

from svi.errors import UserError
from svi.evaluation.paper import reported
from svi.evaluation.registry import METRICS, PROFILES
from svi.evaluation.sources import Entry, list_videos, open_sample, write_manifest
from svi.evaluation.suites import SUITES, get_suite, read_cases


@pytest.fixture
def video(tmp_path: Path) -> Path:
    return write_video(tmp_path / "made" / "a.mp4", counted_frames(20))


def sample(folder: Path, *, image: str = "frame.jpg", prompts: str = 'prompts = ["a cat", "it sits"]') -> None:
    folder.mkdir(parents=True)
    Image.new("RGB", (32, 32)).save(folder / image)
    if prompts:
        (folder / "prompt.txt").write_text(prompts)


def test_every_suite_says_how_contradictions_are_settled():
    for suite in SUITES.values():
        assert suite.profile in PROFILES
        assert all(settled.says and settled.choice for settled in suite.settled)
        assert set(suite.opening) <= {*METRICS, "pocket_truth"}
    assert get_suite("consistent-50s").seconds == pytest.approx(50, abs=0.1)
    assert get_suite("creative-250s").seconds == pytest.approx(250, abs=0.1)
    assert get_suite("talk-300s").seconds == 300
    with pytest.raises(UserError, match="consistent-50s"):
        get_suite("consistent-50")


def test_every_row_of_the_paper_belongs_to_a_suite():
    """The dynamic degrees are whole numbers of videos, which is where n comes from."""
    rows = {name: reported(name) for name in SUITES}
    assert [len(rows[name]) for name in rows] == [5, 8, 6, 6, 3, 3, 0]
    for row in (row for found in rows.values() for row in found if "dynamic_degree" in row.values):
        videos = row.values["dynamic_degree"] / 100 * row.n
        assert abs(videos - round(videos)) < row.n * 0.5e-4 + 1e-9


def test_cases_are_read_from_the_published_layout(tmp_path: Path):
    root = tmp_path / "svi-benchmark"
    for name in ("10_lake", "2_dog", "1_cat"):
        sample(root / "consisent_video_gen" / name)
    (root / "consisent_video_gen" / "3_two").mkdir()
    Image.new("RGB", (32, 32)).save(root / "consisent_video_gen" / "3_two" / "a.png")
    Image.new("RGB", (32, 32)).save(root / "consisent_video_gen" / "3_two" / "frame.png")
    (root / "consisent_video_gen" / "3_two" / "prompt.txt").write_text("a dog")
    suite = get_suite("consistent-50s")
    cases = read_cases(root, suite)
    assert [case.name for case in cases] == ["1_cat", "2_dog", "3_two", "10_lake"]
    assert cases[2].image.name == "frame.png"
    assert read_cases(root / "consisent_video_gen", suite, limit=1) == cases[:1]
    assert [case.name for case in read_cases(root, suite, names=["10_lake"])] == ["10_lake"]
    with pytest.raises(UserError, match="no sample '1_dog'.*2_dog"):
        read_cases(root, suite, names=["1_dog"])


def test_a_sample_that_lacks_something_is_named(tmp_path: Path):
    sample(tmp_path / "cat", prompts="")
    with pytest.raises(UserError, match=r"cat has no prompt\.txt"):
        read_cases(tmp_path, get_suite("creative-50s"))
    (tmp_path / "cat" / "prompt.txt").write_text("a cat")
    with pytest.raises(UserError, match="no audio"):
        read_cases(tmp_path, get_suite("talk-300s"))
    with pytest.raises(UserError, match="holds no samples"):
        read_cases(tmp_path / "cat", get_suite("creative-50s"))


def test_a_folder_of_videos_pictures_and_sub_folders(tmp_path: Path, video: Path):
    root = video.parent
    shutil.copy(video, root / "a.webm")
    pictures = root / "more" / "frames"
    pictures.mkdir(parents=True)
    Image.fromarray(counted_frames(1)[0]).save(pictures / "0.png")
    (root / ".hidden.mp4").touch()
    names = {entry.name: entry.video for entry in list_videos(root).entries}
    assert set(names) == {"a.mp4", "a.webm", "more/frames"}  # the same stem twice: the whole names
    assert [entry.name for entry in list_videos(pictures).entries] == ["frames"]
    assert [entry.name for entry in list_videos(video).entries] == ["a"]


def test_nothing_to_score_says_what_to_put_there(tmp_path: Path):
    with pytest.raises(UserError, match="holds nothing to score"):
        list_videos(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        list_videos(tmp_path / "gone")


def test_a_manifest_comes_back_as_it_was_written(tmp_path: Path, video: Path):
    Image.new("RGB", (192, 64), "red").save(tmp_path / "ref.png")
    entry = Entry(
        "any name / at all_1",
        video,
        fps=12.0,
        frames=15,
        reference=tmp_path / "ref.png",
        truth=video,
        prompts=((0, "a cat"), (8, "it sits")),
        borders=(8, 99),
        about={"seed": 3},
    )
    write_manifest(tmp_path / "manifest.jsonl", [entry])
    (found,) = list_videos(tmp_path).entries
    assert {k: v for k, v in vars(found).items() if k not in ("video", "truth", "reference")} == {
        k: v for k, v in vars(entry).items() if k not in ("video", "truth", "reference")
    }
    assert found.video.resolve() == video.resolve()
    opened, _ = open_sample(found)
    assert (opened.fps, opened.num_frames, list(opened.borders)) == (12.0, 15, [8])  # a border after the end is none
    assert opened.reference is not None
    assert opened.reference.shape == (64, 96, 3)  # cropped to the video's shape
    assert np.unique(opened.reference.reshape(-1, 3), axis=0).tolist() == [[255, 0, 0]]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"name": "a"}', "line 2: video: Field required"),
        ('{"name": "a", "video": "a.mp4", "promts": []}', "unknown key 'promts': did you mean 'prompts'"),
        ('{"name": "a", "video": "a.mp4", "fps": 0}', "line 2: fps"),
        ("not json", "line 2 is not JSON"),
        ('{"name": "first", "video": "b.mp4"}', "'first' stands in line 1 already"),
    ],
)
def test_a_bad_line_of_a_manifest_is_named(tmp_path: Path, line: str, message: str):
    path = tmp_path / "m.jsonl"
    path.write_text(json.dumps({"name": "first", "video": "a.mp4"}) + "\n" + line + "\n")
    with pytest.raises(UserError, match=message):
        list_videos(path)


def test_a_run_gives_its_borders_prompts_and_reference(finished_run: Path):
    (entry,) = list_videos(finished_run).entries
    opened, video = open_sample(entry)
    assert list(opened.borders) == [9, 17]
    assert [text for _, text in opened.prompts] == ["a cat walks", "the cat sits"]
    assert opened.reference is not None
    assert video.num_frames == 25
    named = [entry.name for entry in list_videos(finished_run.parent).entries]
    assert named == ["run"]


def test_a_run_without_video_is_left_out_with_a_remedy(finished_run: Path, tmp_path: Path):
    shutil.copytree(finished_run, tmp_path / "run")
    (tmp_path / "run" / "video.mp4").unlink()
    listing = list_videos(tmp_path)
    assert listing.entries == ()
    assert "svi export" in listing.left_out[0][1]
