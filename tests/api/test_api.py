"""The Python interface: load, generate, stream, and going on with runs."""

from __future__ import annotations

import itertools
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import svi
from svi import api
from svi.generation.events import ClipFinished, Finished, Step, Stopped
from svi.generation.show import report
from svi.prepare import ModelChoice


@pytest.fixture(scope="session")
def backend(model_folder: Path) -> svi.Backend:
    return svi.load(model_folder)


@pytest.fixture
def image() -> Image.Image:
    picture = Image.radial_gradient("L").resize((48, 32)).convert("RGB")
    picture.paste((30, 160, 60), (4, 4, 20, 20))
    return picture


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_everything_named_is_there():
    for name in svi.__all__:
        assert getattr(svi, name) is not None
    assert {"load", "generate", "stream", "Run", "UserError"} <= set(dir(svi))
    with pytest.raises(AttributeError, match="genrate"):
        svi.genrate  # noqa: B018 - the access is the test


def test_names_in_pages_and_docstrings_are_there():
    readme = Path(__file__).parents[2].joinpath("README.md").read_text(encoding="utf-8")
    used = set(re.findall(r"\bsvi\.(\w+)\(", f"{readme} {svi.__doc__} {api.__doc__}"))
    assert {"generate", "extend"} <= used <= set(svi.__all__)


def test_the_package_says_that_it_is_typed():
    assert Path(svi.__file__).with_name("py.typed").is_file()


def test_import_and_help_load_no_model_library():
    code = "import sys, svi, svi.cli.parser as p; p.build_parser().format_help(); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_generate_then_open(backend, image, home):
    run = svi.generate(image, ["a ball", "it rolls"], model=backend, out="run")
    assert run.status().finished
    again = svi.Run.open("run")
    assert [clip.prompt for clip in again.clips()] == ["a ball", "it rolls"]
    assert again.status().video == Path("run/video.mp4")
    assert again.status().frames == 9 + 8


def test_prompts_may_be_one_text_a_file_or_a_storyboard(backend, image, home):
    (home / "story.txt").write_text("# two\na ball\nit rolls\n", encoding="utf-8")
    board = svi.Storyboard.model_validate({"scenes": [{"beats": [{"prompt": "a ball", "repeat": 2}]}]})
    made = [
        [clip.plan.prompt for clip in svi.stream(image, prompts, model=backend, clips=2, steps=1)]
        for prompts in ("a ball", home / "story.txt", board)
    ]
    assert made == [["a ball", "a ball"], ["a ball", "it rolls"], ["a ball", "a ball"]]


def test_stream_gives_the_frames_of_generate_and_writes_nothing(backend, image, home):
    streamed = list(svi.stream(image, ["a ball", "it rolls"], model=backend, clips=3))
    assert not list(home.iterdir())
    run = svi.generate(image, ["a ball", "it rolls"], model=backend, clips=3, out="run")
    for clip, info in zip(streamed, run.clips(), strict=True):
        assert clip.plan.seed == info.seed
        assert torch.equal(clip.latents, run.store.latents(clip.plan.index))
    assert [clip.new_frames.shape[0] for clip in streamed] == [9, 8, 8]


def test_stream_has_no_end_and_makes_a_clip_when_asked(backend, image):
    steps: list[Step] = []
    clips = svi.stream(image, "a ball", model=backend, steps=1, on_event=steps.append)
    assert not steps
    assert [clip.plan.index for clip in itertools.islice(clips, 4)] == [0, 1, 2, 3]
    assert len(steps) == 4


def test_stream_takes_live_prompts(backend, image):
    asked: list[str] = []

    def live():
        for number in range(3):
            asked.append(f"ball {number}")
            yield asked[-1]

    clips = svi.stream(image, live(), model=backend, steps=1)
    assert asked == ["ball 0"]
    assert next(clips).plan.prompt == "ball 0"
    assert asked == ["ball 0"]
    assert [clip.plan.prompt for clip in clips] == ["ball 1", "ball 2"]
    with pytest.raises(svi.UserError, match="give a list"):
        svi.stream(image, live(), model=backend, out="run")


def test_stream_into_a_run(backend, image, home):
    clips = svi.stream(image, "a ball", model=backend, steps=1, out="run")
    assert [next(clips).plan.index for _ in range(2)] == [0, 1]
    clips.close()
    run = svi.Run.open("run")
    assert (run.count, run.target) == (2, None)


def test_should_stop_leaves_a_run_that_resumes_to_the_same_frames(backend, image, home):
    events = []
    stop = svi.generate(
        image,
        "a ball",
        model=backend,
        clips=3,
        out="stopped",
        on_event=events.append,
        should_stop=lambda: sum(isinstance(event, Step) for event in events) >= 3,
    )
    assert not stop.status().finished
    assert isinstance(events[-1], Stopped)
    assert stop.count == 1
    done = api.resume("stopped", model=backend, on_event=events.append)
    assert isinstance(events[-1], Finished)
    whole = svi.generate(image, "a ball", model=backend, clips=3, out="whole")
    stopped, undisturbed = ([clip.frames_sha256 for clip in run.clips()] for run in (done, whole))
    assert stopped == undisturbed


def test_a_run_knows_its_model(model_folder, image, home):
    svi.generate(image, "a ball", model=model_folder, clips=1, steps=1, out="run")
    run = api.extend("run", clips=1)
    assert run.count == 2


def test_a_loaded_model_keeps_its_loras_in_the_run(model_folder, image, home):
    layer = svi.load(model_folder).transformer.blocks[0].attn1.to_q
    draw = torch.Generator().manual_seed(0)
    shapes = {"A": (2, layer.in_features), "B": (layer.out_features, 2)}
    weights = {
        f"blocks.0.attn1.to_q.lora_{k}.weight": torch.randn(shape, generator=draw) for k, shape in shapes.items()
    }
    save_file(weights, "style.safetensors")
    loaded = svi.load(model_folder, loras=["style.safetensors:0.5"])
    run = svi.generate(image, "a ball", model=loaded, clips=1, steps=1, out="run")
    assert run.settings.loras == {"style": 0.5}
    longer = svi.extend("run", clips=1)  # finds model and LoRA by itself
    whole = svi.generate(image, "a ball", model=loaded, clips=2, steps=1, out="whole")
    found, wanted = ([clip.frames_sha256 for clip in made.clips()] for made in (longer, whole))
    assert found == wanted


def test_a_lora_by_name_is_found_where_downloads_are_allowed(model_folder, tmp_path):
    folder = Path(shutil.copytree(model_folder, tmp_path / "model"))
    (folder / "loras").mkdir()
    save_file({"x.lora_A.weight": torch.zeros(2, 8)}, folder / "loras" / "style.safetensors")
    choice = ModelChoice(str(folder), ("style:0.5",), download=True)
    choice.check()
    assert choice.peek()[1].lora_strengths == {"style": 0.5}
    with pytest.raises(svi.UserError, match="'stile': did you mean 'style'"):
        ModelChoice(str(folder), ("stile",)).check()


def test_what_a_run_fixes_is_no_option_of_going_on(backend, image, home):
    svi.generate(image, "a ball", model=backend, clips=1, steps=1, out="run")
    with pytest.raises(TypeError, match="'steps' is fixed when a run is made: svi.branch"):
        svi.resume("run", model=backend, steps=30)
    with pytest.raises(TypeError, match="'size' is fixed when a run is made: start a new run"):
        svi.branch("run", 1, model=backend, size=(64, 64))
    with pytest.raises(TypeError, match="'devise': did you mean 'device'"):
        svi.extend("run", clips=1, devise="cpu")


def test_show_names_the_video_that_is_up_to_date(backend, image, home):
    run = svi.generate(image, "a ball", model=backend, clips=1, steps=1, out="run")
    assert report(run).video == "run/video.mp4"
    svi.extend(run, clips=2, model=backend, should_stop=lambda: True)
    assert report(run).video == "run/video.m3u8"


def test_extend_retake_branch(backend, image, home):
    run = svi.generate(image, "a ball", model=backend, clips=2, steps=1, out="run")
    assert api.extend(run, ["it rolls", "it stops"], clips=3, model=backend).count == 5
    assert [clip.prompt for clip in run.clips()] == ["a ball", "a ball", "it rolls", "it stops", "it stops"]
    finished = []
    api.retake(run, 4, model=backend, on_event=lambda e: finished.append(e) if isinstance(e, ClipFinished) else None)
    assert [event.clip for event in finished] == [4]
    twig = api.branch(run, 1, "it flies", clips=3, guidance=1.0, model=backend)
    assert twig.path.name == "run-branch-1"
    assert [clip.prompt for clip in twig.clips()] == ["a ball", "it flies", "it flies"]
    assert (twig.settings.guidance, run.settings.guidance) == (1.0, backend.info.defaults["guidance"])


def test_images_of_every_kind_give_the_same_video(backend, image, home):
    image.save("ball.png")
    kinds = ["ball.png", home / "ball.png", image, np.asarray(image), torch.from_numpy(np.array(image))]
    made = [next(svi.stream(kind, "a ball", model=backend, steps=1)).frames for kind in kinds]
    assert all(torch.equal(frames, made[0]) for frames in made)


def test_mistakes_are_errors_in_python_too(backend, image, home):
    with pytest.raises(svi.UserError, match="only one of clips, seconds"):
        svi.generate(image, "a ball", model=backend, clips=1, seconds=2)
    with pytest.raises(TypeError, match="'stesp'.*did you mean 'steps'"):
        svi.generate(image, "a ball", model=backend, stesp=2)
    with pytest.raises(svi.UserError, match="4n\\+1"):
        svi.generate(image, "a ball", model=backend, num_frames=8)
    with pytest.raises(svi.UserError, match="prompt is empty"):
        svi.generate(image, ["a ball", " "], model=backend)
    with pytest.raises(svi.UserError, match="loras is a list"):
        svi.load("pocket", loras="style.safetensors")
    assert not list(home.iterdir())
