"""Manifests of every kind: what is read, what is left out and why, and one clear line for what cannot be understood."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from svi.data.manifest import load_manifest, manifest_line
from svi.errors import UserError


def touch(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def lines(path: Path, *entries: object) -> Path:
    return touch(path, "\n".join(entry if isinstance(entry, str) else json.dumps(entry) for entry in entries) + "\n")


def test_json_lines(tmp_path: Path) -> None:
    for name in ("a.mp4", "more/b.mp4"):
        touch(tmp_path / name)
    path = lines(
        tmp_path / "m.jsonl",
        {"video": "a.mp4", "caption": " a cat "},
        "",
        {"video": "more/b.mp4", "caption": "b", "start_s": 2.5, "end_s": 9, "fps": 16},
        {"video": "a.mp4", "caption": "a cat", "id": "again"},
        {"video": "gone.mp4", "caption": "c"},
        {"video": "more/b.mp4", "caption": "  "},
        {"video": "more/b.mp4", "caption": "b", "start_s": 3, "end_s": 2, "id": "backwards"},
    )
    found = load_manifest(path)
    assert [item.id for item in found.items] == ["a.mp4", "more/b.mp4@2.5", "again"]
    first, second, _ = found.items
    assert (first.caption, first.path, first.end_s) == ("a cat", tmp_path / "a.mp4", None)
    assert (second.start_s, second.end_s, second.fps) == (2.5, 9, 16)
    assert [(entry.name, entry.reason) for entry in found.skipped] == [
        ("gone.mp4", "there is no such file"),
        ("more/b.mp4", "no caption"),
        ("backwards", "ends at 2 s, before it starts"),
    ]
    assert all(entry.remedy for entry in found.skipped)
    assert len(load_manifest(path, caption="words for all").items) == 4


def test_a_line_written_back_reads_the_same(tmp_path: Path) -> None:
    touch(tmp_path / "videos/a.mp4")
    path = lines(tmp_path / "m.jsonl", {"video": "videos/a.mp4", "caption": "käse", "start_s": 1.25, "fps": 12})
    item = load_manifest(path).items[0]
    other = touch(tmp_path / "elsewhere/n.jsonl", manifest_line(item, tmp_path / "elsewhere"))
    again = load_manifest(other).items[0]
    assert again.path.resolve() == item.path.resolve()
    assert (again.id, again.caption, again.start_s, again.fps) == (item.id, "käse", 1.25, 12)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"video": "a.mp4", "captoin": "x"}', ["line 1", "'captoin'", "did you mean 'caption'?"]),
        ('{"video": "a.mp4", "start": 1}', ["did you mean 'start_s'?"]),
        ('\n{"caption": "x"}', ["line 2", "'video' is missing"]),
        ('{"video": "a.mp4"', ["line 1", "not JSON"]),
        ('["a.mp4"]', ["line 1", "an object is wanted"]),
        ('{"video": "a.mp4", "fps": 0}', ["fps", "greater than 0"]),
        ('{"video": "a.mp4", "start_s": -1}', ["start_s"]),
        ('{"video": 7}', ["video", "string"]),
        ('{"video": "http://host/a.mp4", "caption": "x"}', ["is an address"]),
        ("\n\n", ["is empty"]),
        ('{"video": "a.mp4", "caption": "x"}\n{"video": "a.mp4", "caption": "y"}', ["line 2", "listed already"]),
    ],
)
def test_json_lines_that_make_no_sense(tmp_path: Path, content: str, words: list[str]) -> None:
    touch(tmp_path / "a.mp4")
    with pytest.raises(UserError) as caught:
        load_manifest(touch(tmp_path / "m.jsonl", content))
    for word in ["m.jsonl", *words]:
        assert word in str(caught.value)


def test_published_layout(tmp_path: Path) -> None:
    """Category folders with a csv; the caption is the description, never one made up from the category's name."""
    header = "Video Title,Video Description,Video URL,Download URL,Filename"
    rows = ['Cats 1,"A cat, asleep",u,d,cat1.mp4', "Cats 2,,u,d,cat2.mp4", "Cats 3,gone,u,d,cat3.mp4"]
    touch(tmp_path / "Cats/Cats.csv", "\ufeff" + "\n".join([header, *rows]))
    touch(tmp_path / "sea/sea.csv", "Filename,Video Description\r\nwave.mov,a wave\r\n")
    for name in ("Cats/cat1.mp4", "Cats/cat2.mp4", "Cats/stray.mp4", "sea/wave.mov", "sea/._wave.mov"):
        touch(tmp_path / name)
    found = load_manifest(tmp_path)
    assert {item.id: item.caption for item in found.items} == {
        "Cats/cat1.mp4": "A cat, asleep",
        "sea/wave.mov": "a wave",
    }
    reasons = {entry.name: entry.reason for entry in found.skipped}
    assert reasons == {
        "Cats/cat2.mp4": "no caption",
        "Cats/cat3.mp4": "there is no such file",
        "Cats/stray.mp4": "no caption: there is no stray.txt beside it and Cats.csv does not list it",
    }
    assert [item.id for item in load_manifest(tmp_path / "sea/sea.csv").items] == ["wave.mov"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("file,Video Description\na.mp4,x", ["no column 'Filename'"]),
        ("Filename,Video Descripton\na.mp4,x", ["no column 'Video Description'", "did you mean 'Video Descripton'?"]),
        ("Filename,Video Description\na.mp4,x\na.mp4,y", ["line 3", "listed already"]),
        ("Filename,Video Description\n,x", ["line 2", "Filename is empty"]),
        ('Filename,Video Description\n"a.mp4,x', ["not a csv"]),
    ],
)
def test_a_csv_that_makes_no_sense(tmp_path: Path, content: str, words: list[str]) -> None:
    touch(tmp_path / "Cats/a.mp4")
    touch(tmp_path / "Cats/Cats.csv", content)
    with pytest.raises(UserError) as caught:
        load_manifest(tmp_path)
    for word in ["Cats.csv", *words]:
        assert word in str(caught.value)


def test_caption_files(tmp_path: Path) -> None:
    for name in ("a.mp4", "b.MP4", "c.webm", "d.mkv", "deep/e.mov"):
        touch(tmp_path / name)
    touch(tmp_path / "a.txt", "a cat\n")
    touch(tmp_path / "b.txt", "  \n")
    (tmp_path / "c.txt").write_bytes(b"caf\xe9")
    touch(tmp_path / "deep/e.txt", "a deep cat")
    (tmp_path / "loop").symlink_to(tmp_path, target_is_directory=True)
    found = load_manifest(tmp_path)
    assert [item.id for item in found.items] == ["a.mp4", "deep/e.mov"]
    assert {entry.name: entry.reason for entry in found.skipped} == {
        "b.MP4": "its caption b.txt is empty",
        "c.webm": "its caption c.txt is not UTF-8 text",
        "d.mkv": "no caption: there is no d.txt beside it",
    }
    assert load_manifest(tmp_path / "d.mkv", caption="a dog").items[0].caption == "a dog"
    assert not load_manifest(tmp_path / "d.mkv").items


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("empty", ["no videos in", "looked for .mp4"]),
        ("listed", ["no videos in", "give the manifest itself", "m.jsonl"]),
        ("nowhere", ["does not exist"]),
        ("notes.txt", ["is no manifest", ".jsonl"]),
    ],
)
def test_nothing_to_read(tmp_path: Path, name: str, words: list[str]) -> None:
    (tmp_path / "empty").mkdir()
    touch(tmp_path / "listed/m.jsonl")
    touch(tmp_path / "notes.txt", "hello")
    with pytest.raises(UserError) as caught:
        load_manifest(tmp_path / name)
    for word in words:
        assert word in str(caught.value)
