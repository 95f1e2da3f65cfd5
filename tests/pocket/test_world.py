"""The pocket world: exact, continuous and deterministic truth, and captions that tell what happens."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest

from svi.errors import UserError
from svi.pocket.control import CONTROLS, controlled, counterfactual, judge_control
from svi.pocket.world import CAMERAS, COLOURS, FAMILIES, Beat, Event, World, captions, colour_of

SIZES = ((64, 96), (128, 192))
JOINTS = {f"{side}_{part}" for side in ("left", "right") for part in ("knee", "foot", "elbow", "hand")}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_seed_gives_the_same_world_in_any_order_of_questions(family):
    first, second = World.sample(11, family=family), World.sample(11, family=family)
    late = second.clip(4.0)
    assert (first.clip(0.0) == second.clip(0.0)).all()
    assert (first.clip(4.0) == late).all()
    assert [first.caption(k) for k in range(6)] == [second.caption(k) for k in reversed(range(6))][::-1]
    assert (World.sample(12, family=family).clip(0.0) != first.clip(0.0)).any()


def test_the_global_generators_are_left_alone():
    np.random.seed(3)  # noqa: NPY002
    expected = np.random.random()  # noqa: NPY002
    np.random.seed(3)  # noqa: NPY002
    World.sample(5).clip(0.0)
    assert np.random.random() == expected  # noqa: NPY002


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("seed", range(9))
def test_a_clip_is_its_stacked_frames(seed, size):
    world = World.sample(seed, family=FAMILIES[seed % 3], size=size)
    clip = world.clip(0.5, 17)
    assert clip.shape == (17, *size, 3)
    assert clip.dtype == np.uint8
    for i in (0, 5, 8, 9, 16):
        assert (clip[i] == world.render(0.5 + i / 16)).all()
    bare = world.clip(0.5, 17, objects=False)
    assert (bare[9] == world.render(0.5 + 9 / 16, objects=False)).all()


@pytest.mark.parametrize("size", SIZES)
def test_objects_stay_inside_are_large_and_never_jump(size):
    scale = size[0] / 64
    times = np.arange(0, 6, 1 / 16)
    for seed in range(12):
        world = World.sample(seed, family="things", size=size)
        before = None
        for t in times:
            state = world.state(float(t))
            for o in state.objects:
                assert o.radius * 2 >= 16 * scale
                assert o.radius <= o.x <= size[1] - o.radius
                assert o.radius <= o.y <= size[0] - o.radius
            if before:
                for a, b in zip(before.objects, state.objects, strict=True):
                    assert np.hypot(a.x - b.x, a.y - b.y) <= 40 * scale / 16 + 1e-6
                    assert np.abs(np.subtract(a.rgb, b.rgb)).max() <= 100
                    assert abs(a.visible - b.visible) <= 0.4
                assert abs(before.light - state.light) < 0.2
                assert np.hypot(*np.subtract(before.camera[:2], state.camera[:2])) <= 24 * scale / 16 + 1e-6
                assert abs(np.log(before.camera[2] / state.camera[2])) < 0.025
            before = state


@pytest.mark.parametrize("family", ["face", "dancer"])
@pytest.mark.parametrize("seed", range(4))
def test_the_end_of_a_beat_is_the_start_of_the_next(family, seed):
    world = World.sample(seed, family=family, camera="stands", lighting="day")
    for k in (1, 2, 3):
        before, after = world.state(k - 1e-5), world.state(k + 1e-5)
        if family == "face":
            assert before.mouth is not None
            assert abs(before.mouth - after.mouth) < 0.01
        else:
            assert before.joints is not None
            assert all(np.hypot(*np.subtract(before.joints[j], after.joints[j])) < 0.1 for j in before.joints)
        change = np.abs(world.render(k - 1e-5).astype(int) - world.render(k + 1e-5).astype(int))
        assert change.max() <= 3


def test_families_have_their_signals():
    things, face, dancer = (World.sample(2, family=f) for f in FAMILIES)
    assert things.state(0.3).objects
    assert things.state(0.3).mouth is None
    assert things.state(0.3).joints is None
    talking = face.with_beats([Beat(action="talks"), Beat(action="is silent")])
    mouth = [talking.state(t / 16).mouth for t in range(33)]
    assert max(mouth[:17]) > 0.7
    assert max(mouth[17:]) < 1e-9
    assert min(mouth) >= 0
    frames = talking.clip(0.0)
    assert (frames[4] != frames[0]).any()
    for action in ("waves", "jumps", "sways", "squats", "kicks"):
        world = dancer.with_beats([Beat(action=action)])
        rest, moved = world.state(0.0).joints, world.state(4 / 16).joints
        assert set(moved) == JOINTS | {"head", "neck", "hip"}
        assert max(np.hypot(*np.subtract(rest[j], moved[j])) for j in rest) > 3


@pytest.mark.parametrize("size", SIZES)
def test_dancers_stay_in_the_picture(size):
    margin = 3 * size[0] / 64
    for seed, action in itertools.product(range(6), ("waves", "jumps", "sways", "squats", "kicks")):
        world = World.sample(seed, family="dancer", size=size).with_beats([Beat(action=action)])
        for t in np.arange(17) / 16:
            x, y = np.array(list(world.state(float(t)).joints.values())).T
            assert x.min() >= margin
            assert x.max() <= size[1] - margin
            assert y.min() >= margin
            assert y.max() <= size[0] - margin


def test_a_mouth_follows_a_given_signal():
    world = World.sample(1, family="face").with_mouth(lambda t: np.minimum(t, 1.0))
    assert [round(world.state(t).mouth, 3) for t in (0.0, 0.25, 1.0, 2.5)] == [0.0, 0.25, 1.0, 1.0]


def test_given_beats_happen_and_then_nothing():
    turns_blue = [Beat(), Beat((Event("colour", 0, "blue"),))]
    stops = [Beat(), Beat((Event("stop", 0),))]
    seed = next(s for s in range(50) if World.sample(s, family="things", num_objects=1).state(0).objects[0].velocity[0])
    blue, still = (World.sample(seed, family="things", num_objects=1, beats=b) for b in (turns_blue, stops))
    assert (blue.clip(0.0) == still.clip(0.0)).all()
    assert blue.state(2.0).objects[0].colour_name == "blue"
    assert blue.state(2.0).objects[0].rgb == pytest.approx(COLOURS["blue"])
    assert still.state(2.0).objects[0].velocity == pytest.approx((0, 0))
    assert still.state(2.0).objects[0].x == still.state(7.0).objects[0].x
    assert "blue" in blue.caption(1)
    assert "blue" in blue.caption(2).split(".")[0]
    assert blue.beat(5) == Beat()
    speed = np.hypot(*blue.state(1.0).objects[0].velocity)
    assert np.hypot(*blue.state(6.0).objects[0].velocity) == pytest.approx(speed)


def test_events_finish_by_frame_ten_and_begin_by_frame_four():
    for control, seed in itertools.product(CONTROLS, range(5)):
        world = controlled(seed, control)
        other = counterfactual(world)
        same = [(world.render(i / 16) == other.render(i / 16)).all() for i in range(17)]
        assert same[:3] == [True] * 3
        assert not same[4]
        late, end = world.state(10 / 16).objects[0], world.state(1.0).objects[0]
        assert late.velocity == pytest.approx(end.velocity)
        assert late.rgb == pytest.approx(end.rgb)


def test_night_falls_and_the_sun_rises():
    world = World.sample(3, lighting="day", camera="stands", beats=[Beat((Event("night"),)), Beat((Event("day"),))])
    assert [round(world.state(t).light, 6) for t in (0.0, 1.0, 2.0)] == [1.0, 0.0, 1.0]
    noon, night = (world.render(t, objects=False).mean((0, 1)) for t in (0.0, 1.0))
    assert (night < noon).all()
    assert night[2] / noon[2] > night[0] / noon[0]
    assert (world.render(2.0, objects=False) == world.render(0.0, objects=False)).all()


@pytest.mark.parametrize("camera", CAMERAS)
def test_the_camera_does_as_told_for_ever(camera):
    world = World.sample(4, camera=camera, lighting="day")
    a, b = world.state(0.0).camera, world.state(1.0).camera
    moved = {
        "stands": a == b,
        "pans": a[:2] != b[:2],
        "pans left": b[0] < a[0],
        "pans right": b[0] > a[0],
        "pans up": b[1] < a[1],
        "pans down": b[1] > a[1],
        "zooms": b[2] > a[2] > world.state(2.0).camera[2] * 0.99,
    }
    assert moved[camera]
    assert world.render(40.0).std() > 5
    zooms = [world.state(float(t)).camera[2] for t in range(20)]
    assert 0.9 < min(zooms) <= max(zooms) < 1.6


def test_the_background_shows_where_no_object_is():
    for seed in range(9):
        world = World.sample(seed, family=FAMILIES[seed % 3])
        mask = world.background_mask(0.7)
        assert mask.shape == (64, 96)
        assert 0.1 < mask.mean() < 0.99
        assert (world.render(0.7)[mask] == world.render(0.7, objects=False)[mask]).all()
        assert (world.render(0.7) != world.render(0.7, objects=False)).any()


def test_captions_are_short_simple_and_varied():
    texts = list(itertools.islice(captions(0), 1500))
    words = [re.findall(r"[a-z]+", t) for t in texts]
    assert all(t == t.lower() and len(t.split()) <= 60 for t in texts)
    assert len({w for ws in words for w in ws}) <= 300
    assert len(set(texts)) > 0.95 * len(texts)
    assert not [t for t in texts if re.search(r"[{}]|  | ,|None|,\.|\ba [aeiou]", t)]
    assert texts[:20] == list(itertools.islice(captions(0), 20))


def test_captions_name_colours_shapes_and_motion():
    for seed in range(60):
        world = World.sample(seed, family="things")
        for k in range(3):
            text, scene = world.caption(k), world.scene
            assert all(c in text for c in scene.colours[:2])
            for o in world.state(float(k)).objects:
                if not o.visible:
                    continue
                assert f"{o.colour_name} {o.shape}" in text
                x, y = (round(v, 6) for v in o.velocity)
                for moving, word in ((x < 0, "left"), (x > 0, "right"), (y < 0, "up"), (y > 0, "down")):
                    assert not moving or word in text
            for event in world.beat(k).events:
                if event.kind == "colour":
                    assert re.search(rf"(turns|becomes|to) {event.value}", text)


def test_things_differ_from_what_is_behind_them():
    close = 0
    for seed in range(150):
        world = World.sample(seed, family="things")
        behind = [np.array(colour_of(c)) for c in world.scene.colours]
        names = [o.colour_name for o in world.state(0.0).objects]
        assert len(set(names)) == len(names)
        close += sum(np.linalg.norm(np.array(COLOURS[n]) - b) < 80 for n in names for b in behind)
    assert close == 0


@pytest.mark.parametrize("control", CONTROLS)
def test_the_judge_knows_the_truth_from_the_counterfactual(control):
    noise = np.random.Generator(np.random.PCG64(0)).integers(-12, 13, (17, 64, 96, 3))
    for seed in range(100):
        world = controlled(seed, control)
        truth, other = world.clip(0.0), counterfactual(world).clip(0.0)
        assert judge_control(world, truth), seed
        assert not judge_control(world, other), seed
        if seed < 20:
            assert judge_control(world, np.clip(truth + noise, 0, 255).astype(np.uint8)), seed
            assert not judge_control(world, np.clip(other + noise, 0, 255).astype(np.uint8)), seed
            assert not judge_control(world, world.clip(0.0, objects=False)), seed


def test_the_judge_works_at_twice_the_size():
    for control in CONTROLS:
        world = controlled(7, control, size=(128, 192))
        assert judge_control(world, world.clip(0.0))
        assert not judge_control(world, counterfactual(world).clip(0.0))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: World.sample(0, family="dancers"), "'dancer'"),
        (lambda: World.sample(0, family="thing"), "'things'"),
        (lambda: World.sample(0, camera="pan left"), "'pans left'"),
        (lambda: World.sample(0, lighting="nite"), "'night'"),
        (lambda: World.sample(0, num_objects=7), "nearest: 3"),
        (lambda: World.sample(0, size=(60, 96)), "(64, 96)"),
        (lambda: World.sample(0, size=(64, 100)), "(64, 96)"),
        (lambda: World.sample(0, beat_s=0.1), "0.75"),
        (lambda: World.sample(0, family="face", beats=[Beat(action="waves")]), "nearest: 'talks'|nearest: 'sings'"),
        (lambda: World.sample(0, family="things", num_objects=1, beats=[Beat((Event("stop", 2),))]), "object 0"),
        (lambda: World.sample(0, family="things", beats=[Beat(action="waves")]), "event for an object"),
        (lambda: Event("stops"), "'stop'"),
        (lambda: Event("turn", 0, "rigth"), "'right'"),
        (lambda: Event("colour", 0, "bleu"), "'blue'"),
        (lambda: Beat(camera="zoom in"), "'zooms in'"),
        (lambda: World.sample(0).render(-1.0), "nearest: 0"),
        (lambda: World.sample(0).beat(-1), "nearest: 0"),
        (lambda: colour_of("purpel"), "'purple'"),
        (lambda: controlled(0, "color"), "'colour'"),
        (lambda: judge_control(World.sample(0, beats=[]), np.zeros((17, 64, 96, 3), np.uint8)), "controlled"),
        (lambda: judge_control(controlled(0, "stop"), np.zeros((5, 64, 96, 3), np.uint8)), "13 or more"),
    ],
)
def test_bad_input_is_refused_and_the_nearest_valid_value_named(call, words):
    with pytest.raises(UserError) as error:
        call()
    assert any(w in str(error.value) for w in words.split("|")), str(error.value)
