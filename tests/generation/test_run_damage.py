"""Damage and full disks: what is said, and what can be saved."""

from __future__ import annotations

import errno
import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
from runs import Listener, left_over, outputs
from tiny import TinyBackend, new_run

from svi import files
from svi.errors import UserError
from svi.generation import clip_store
from svi.generation.journal import Journal
from svi.generation.run import Run
from svi.generation.verify import salvage
from svi.generation.writer import read_frames


def test_a_torn_journal_line_is_skipped_then_removed(made: Run, backend: TinyBackend) -> None:
    events = list(made.journal())
    with made.log.path.open("ab") as stream:
        stream.write(b'{"time": "2026-01-01", "eve')
    assert list(made.journal()) == events
    assert made.verify().ok
    told = Listener()
    made.generate(backend, clips=5, on_event=told)
    assert "torn line" in told.notices[0]
    lines = made.log.path.read_bytes().splitlines()
    assert [json.loads(line)["event"] for line in lines][: len(events)] == [event["event"] for event in events]


def test_mending_reads_only_the_end(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    assert journal.mend() == 0
    journal.append("a", text="x" * 10_000)
    journal.append("b")
    size = journal.path.stat().st_size
    journal.path.write_bytes(journal.path.read_bytes() + b"{" * 9_000)
    assert journal.mend() == 9_000
    assert journal.path.stat().st_size == size
    journal.path.write_bytes(b"no line at all")
    assert journal.mend() == 14


def test_a_damaged_journal_costs_only_history(made: Run, backend: TinyBackend) -> None:
    lines = made.log.path.read_bytes().splitlines(keepends=True)
    lines[1] = b"\x00\xff rubbish\n"
    made.log.path.write_bytes(b"".join(lines))
    report = made.verify()
    assert [problem.path.name for problem in report.problems] == ["journal.jsonl"]
    assert "damaged lines (2)" in report.problems[0].what
    assert report.intact == 4
    assert made.generate(backend, clips=5).finished
    made.log.path.unlink()
    assert list(made.journal()) == []
    assert made.generate(backend, clips=6).finished


@pytest.mark.parametrize("name", ["memory.safetensors", "latents.safetensors", "segment.mp4", "clip.json"])
def test_a_damaged_clip_is_named_and_comes_back_the_same(made: Run, backend: TinyBackend, name: str) -> None:
    before = outputs(made)
    file = made.path / "clips/0002/take-0" / name
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])
    report = made.verify()
    assert not report.ok
    assert [(problem.path, problem.clip) for problem in report.problems] == [(file, 2)]
    assert (report.intact, report.total) == (2, 4)
    assert report.advice == (f"`svi retake {made.path} --clip 2 --keep-rest` makes it again",)
    if name in ("segment.mp4", "clip.json"):
        with pytest.raises(UserError, match=f"{name} is damaged .*`svi retake .* --clip 2"):
            made.finish()
    made.retake(2, keep_rest=True)
    made.generate(backend)
    after = outputs(made)
    assert after[:4] == before[:4]
    assert after[4]["video"] == before[4]["video"]
    assert made.verify().ok


def test_resuming_checks_what_it_starts_from(made: Run, backend: TinyBackend) -> None:
    file = made.path / "clips/0003/take-0/memory.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    with pytest.raises(UserError, match=r"memory.safetensors is damaged .*; `svi retake .* --clip 3"):
        made.generate(backend, clips=6)
    file.unlink()
    with pytest.raises(UserError, match="memory.safetensors is missing"):
        made.generate(backend)
    made.retake(3)
    assert made.generate(backend).count == 6


def test_a_missing_clip(made: Run, tmp_path: Path, backend: TinyBackend) -> None:
    (made.path / "clips/0001").rename(tmp_path / "lost")
    with pytest.raises(UserError, match="clip 1 is missing, though 2 later ones exist; `svi branch .* --at 1`"):
        made.generate(backend, clips=6)
    report = made.verify()
    assert (report.intact, report.total) == (1, 3)
    assert "--at 1" in report.advice[-1]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"schema_version": 1}', b"\xff\xfe\x00"])
def test_a_damaged_manifest(made: Run, tmp_path: Path, content: bytes) -> None:
    (made.path / "run.json").write_bytes(content)
    with pytest.raises(UserError, match=r"run.json is damaged .* can be saved with `svi export"):
        Run.open(made.path)
    assert salvage(made.path, tmp_path / "saved.mp4", fps=8) == 33
    assert len(list(read_frames(tmp_path / "saved.mp4"))) == 33


def test_what_is_no_run(tmp_path: Path, made: Run) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "file").write_text("x")
    (made.path / "run.json").unlink()
    for path, message in (
        (tmp_path / "none", "does not exist"),
        (tmp_path / "photos", "is not a run: it holds no run.json"),
        (tmp_path / "file", "is not a folder"),
        (made.path, "its finished clips can be saved"),
    ):
        with pytest.raises(UserError, match=message):
            Run.open(path)


def test_a_damaged_state_can_be_written_anew(made: Run, backend: TinyBackend) -> None:
    for content in (b"{", None):
        file = made.path / "state.json"
        file.unlink() if content is None else file.write_bytes(content)
        with pytest.raises(UserError, match=r"state.json is (damaged|missing).*svi extend"):
            made.generate(backend)
        assert made.verify().problems[0].path == file
        made.extend(1)
        made.generate(backend)
    assert made.count == 6


def test_a_damaged_reference_or_storyboard(made: Run, backend: TinyBackend) -> None:
    (made.path / "reference.png").write_bytes(b"?")
    made.storyboard_path.write_text("scenes: [")
    problems = made.verify().problems
    assert [problem.path.name for problem in problems] == ["reference.png", "storyboard.yaml"]
    with pytest.raises(UserError, match=r"storyboard.yaml, line 1"):
        made.generate(backend, clips=5)
    made.storyboard_path.write_text("[a, b]")
    made.generate(backend, clips=5)  # only clip 0 needs the image itself
    made.retake(0)
    with pytest.raises(UserError, match=r"reference.png is damaged .* holds a copy"):
        made.generate(backend)


@pytest.mark.parametrize("fails_at", range(0, 14, 2))
def test_a_full_disk_keeps_finished_clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_at: int) -> None:
    whole = new_run(tmp_path / "whole", clips=3)
    whole.generate(TinyBackend())
    run, left = new_run(tmp_path / "run", clips=3), [fails_at]

    def write(path: Path, data: bytes) -> None:
        left[0] -= 1
        if left[0] < 0:
            path.write_bytes(data[:10])
            with files.explained(path):
                raise OSError(errno.ENOSPC, "No space left on device")
        files.write_synced(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(clip_store, "write_synced", write)
        with pytest.raises(files.DiskFullError, match=r"the disk is full.*what is finished is intact.*svi resume"):
            run.generate(TinyBackend())
    assert run.count == fails_at // 5
    assert run.verify().ok
    assert not left_over(run.path)
    assert [event for event in run.journal() if event["event"] == "failed"]
    run.generate(TinyBackend())
    assert outputs(run) == outputs(whole)


def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    """A limit on file size stops every larger write in the middle, video.mp4 and the encoder's segments included."""
    whole = new_run(tmp_path / "whole", clips=3)
    whole.generate(TinyBackend())
    run = new_run(tmp_path / "run", clips=3)
    segment_bytes = (whole.path / "clips/0000/take-0/segment.mp4").stat().st_size
    video_bytes = (whole.path / "video.mp4").stat().st_size
    memory_bytes = (whole.path / "clips/0000/take-0/memory.safetensors").stat().st_size
    assert segment_bytes < video_bytes < memory_bytes
    for limit, count in ((memory_bytes - 100, 0), (memory_bytes + 100, 3)):
        done = subprocess.run(
            [sys.executable, tiny.__file__, "make", str(run.path)],
            preexec_fn=lambda limit=limit: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode != 0) == (count == 0), done.stderr
        assert count or "DiskFullError: the disk is full" in done.stderr
        assert run.count == count
        assert not left_over(run.path)
    assert outputs(run) == outputs(whole)


def test_a_video_that_does_not_fit_leaves_the_old_one(made: Run, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot write"):
        made.finish(tmp_path / "no" / "such" / "folder.mp4")
    assert made.finish(tmp_path / "copy.mp4").read_bytes() == (made.path / "video.mp4").read_bytes()
