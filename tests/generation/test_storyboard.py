"""Storyboards: parsing with line numbers, the plan of clip k, editing, the published schema."""

import json
from pathlib import Path

import pytest
from tiny import settings

from svi.errors import UserError
from svi.generation.plans import RETAKE_STRIDE, clip_plan, clip_plans
from svi.generation.storyboard import (
    SCHEMA_FILE,
    Storyboard,
    load_storyboard,
    parse_storyboard,
    schema_text,
    storyboard_from_prompts,
)
from svi.generation.storyboard_edit import followed_by, with_prompt

STORY = """\
version: 1
title: The cat
prefix: watercolour
negative_prompt: blurred
seed: 5
scenes:
  - name: morning
    beats:
      - prompt: a cat sleeps
        repeat: 2
      - prompt: the cat wakes up
        guidance: 7.5
        loras: {sketch: 0.5}
  - beats:
      - {prompt: the cat jumps, seed: 900, steps: 9, repeat: 3}
"""


def test_prompts_clip_by_clip() -> None:
    story = parse_storyboard(STORY)
    assert story.planned_clips == 6
    assert [story.prompt(k) for k in range(8)] == (
        ["watercolour, a cat sleeps"] * 2 + ["watercolour, the cat wakes up"] + ["watercolour, the cat jumps"] * 5
    )


def test_plan_of_a_clip() -> None:
    story, run = parse_storyboard(STORY), settings(seed=5)
    plans = [clip_plan(story, run, k) for k in range(8)]
    assert [plan.seed for plan in plans] == [5, 5 + 42, 5 + 84, 900, 942, 984, 1026, 1068]
    assert [plan.steps for plan in plans] == [3, 3, 3, 9, 9, 9, 9, 9]
    assert [plan.guidance for plan in plans[:4]] == [2.0, 2.0, 7.5, 2.0]
    assert [plan.loras for plan in plans[1:4]] == [{"sketch": 1.0}, {"sketch": 0.5}, {"sketch": 1.0}]
    assert [(plan.scene, plan.beat) for plan in plans[1:5]] == [(0, 0), (0, 1), (1, 2), (1, 2)]
    assert {plan.negative_prompt for plan in plans} == {"blurred"}
    assert clip_plan(story, run, 2, seed=3).seed == 3


def test_plans_are_endless_and_start_anywhere() -> None:
    story, run = parse_storyboard(STORY), settings()
    endless = clip_plans(story, run, start=4)
    assert [next(endless).index for _ in range(50)] == list(range(4, 54))
    assert next(endless) == clip_plan(story, run, 54)
    assert len(list(clip_plans(story, run, stop=3))) == 3


def test_retakes_never_share_noise_with_other_clips() -> None:
    assert RETAKE_STRIDE % 42
    assert RETAKE_STRIDE > 42 * 20_000


def test_yaml_survives_a_round_trip() -> None:
    story = parse_storyboard(STORY)
    assert parse_storyboard(story.to_yaml()) == story
    odd = storyboard_from_prompts(["yes", "12", "a: b # c", "- x", "  Zürich \u732b ", "'\""], title="no")
    assert parse_storyboard(odd.to_yaml()) == odd


def test_json_and_plain_lists_are_storyboards(tmp_path: Path) -> None:
    file = tmp_path / "story.json"
    file.write_text(json.dumps({"scenes": [{"beats": [{"prompt": "a"}, {"prompt": "b", "repeat": 2}]}], "clips": 9}))
    story = load_storyboard(file)
    assert (story.planned_clips, story.clips) == (3, 9)
    assert [beat.prompt for beat in parse_storyboard("- a\n- b b\n").scenes[0].beats] == ["a", "b b"]
    assert parse_storyboard("clips: endless\n" + STORY).clips == "endless"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("repeat: 2", "repeats: 2"), r"line 10: unknown key 'repeats'; did you mean 'repeat'"),
        (("title:", "titel:"), r"line 2: unknown key 'titel'; did you mean 'title'"),
        (("- name: morning", "- nane: morning"), r"line 7: unknown key 'nane'; did you mean 'name'"),
        (("repeat: 2", "repeat: 0"), r"line 10: .*repeat: should be greater than or equal to 1, not 0"),
        (("repeat: 2", "repeat: two"), r"line 10: .*repeat: should be a valid integer"),
        (("repeat: 2", "repeat: true"), r"line 10"),
        (("a cat sleeps", "12"), r"line 9: .*prompt: must be text, not 12: put it in quotes"),
        (("a cat sleeps", "yes"), r"line 9: .*prompt: must be text, not True: put it in quotes"),
        (("a cat sleeps", "'  '"), r"line 9: .*prompt: must not be empty"),
        (("seed: 5", "seed: -5"), r"line 5: seed"),
        (("guidance: 7.5", "guidance: .nan"), r"line 12: .*guidance"),
        (("version: 1", "version: 2"), r"line 1: version: should be 1, not 2"),
        (("seed: 5", "seed: 5\nseed: 6"), r"line 6: 'seed' stands here twice \(first on line 5\)"),
        (("seed: 5", "clips: none"), r"line 5: clips: must be a number of clips"),
        (("prefix: watercolour", "prefix: &x watercolour"), r"line 3: anchors and aliases"),
        (("prefix: watercolour", "prefix: !!python/name:os.system x"), r"line 3: cannot read"),
        (("prefix: watercolour", "prefix: 'a"), r"line 3"),
        (("scenes:", "clips: 3\nscene:"), r"unknown key 'scene'; did you mean 'scenes'"),
    ],
)
def test_mistakes_are_named_with_their_line(change: tuple[str, str], message: str) -> None:
    assert change[0] in STORY
    with pytest.raises(UserError, match=message) as caught:
        parse_storyboard(STORY.replace(*change, 1), "story.yaml")
    assert str(caught.value).startswith("story.yaml")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["just words", "3", "[1, 2]", "{}", "scenes: []", "scenes: [{beats: []}]", "[]", "null"]
)
def test_what_is_no_storyboard(text: str) -> None:
    with pytest.raises(UserError):
        parse_storyboard(text)


def test_deep_nesting_is_refused() -> None:
    with pytest.raises(UserError, match="nested too deeply"):
        parse_storyboard("[" * 5000 + "]" * 5000)


def test_overrides() -> None:
    story = parse_storyboard(STORY).with_overrides(prefix="oil", seed=None, clips=8)
    assert (story.prompt(0), story.seed, story.clips) == ("oil, a cat sleeps", 5, 8)


def test_other_prompts_from_a_clip_on() -> None:
    story = followed_by(parse_storyboard(STORY), 4, storyboard_from_prompts(["x", "y"]))
    old = parse_storyboard(STORY)
    assert [story.prompt(k) for k in range(4)] == [old.prompt(k) for k in range(4)]
    assert [story.prompt(k) for k in range(4, 7)] == ["watercolour, x", "watercolour, y", "watercolour, y"]
    longer = followed_by(old, 8, storyboard_from_prompts(["x"]))
    assert [longer.prompt(k) for k in (6, 7, 8)] == [old.prompt(6), old.prompt(7), "watercolour, x"]
    assert followed_by(old, 0, storyboard_from_prompts(["x"])).planned_clips == 1


@pytest.mark.parametrize("clip", range(6))
@pytest.mark.parametrize("clips", [6, None])
def test_another_prompt_at_one_clip(clip: int, clips: int | None) -> None:
    old = storyboard_from_prompts(["a", "b"]).model_dump()
    old["scenes"][0]["beats"][1]["repeat"] = 3
    story = Storyboard.model_validate(old)
    new = with_prompt(story, clip, "X", clips=clips)
    length = clips or 9
    expected = [story.prompt(k) for k in range(length)]
    expected[clip] = "X"
    assert [new.prompt(k) for k in range(length)] == expected


def test_the_published_schema_is_this_one() -> None:
    assert SCHEMA_FILE.read_text() == schema_text()
