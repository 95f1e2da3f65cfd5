"""The project computes what the published code computes, on the parity kit."""

from pathlib import Path

import pytest

from svi.errors import UserError
from svi.parity import Check, compare, main, policy_of, table

KIT = Path(__file__).parents[1] / "data" / "parity" / "wan21-i2v-tiny"
VARIANTS = ("shot", "film", "tom", "svi2-wan21", "film-mask-all")


@pytest.fixture(scope="module")
def checks():
    return list(compare(KIT))


def test_everything_is_within_its_bounds(checks):
    assert all(check.passed for check in checks), "\n" + table(checks)


def test_everything_was_compared(checks):
    names = {check.name for check in checks}
    assert len(names) == len(checks)
    for variant in VARIANTS:
        assert f"{variant}.unbroken.frames" in names
        for clip in range(3):
            assert {f"{variant}.{clip}.{what}" for what in ("condition", "clip_image", "latents", "frames")} <= names
    for group, count in (("vae.", 3), ("clip.", 2), ("t5.", 1), ("dit.velocity.t", 3), ("dit.velocity_lora", 2)):
        assert sum(name.startswith(group) for name in names) == count, group


def test_the_first_clip_of_every_variant_and_the_last_differ(checks):
    """A comparison of a thing with itself would find no difference at all anywhere."""
    assert any(0 < check.largest <= check.bound for check in checks if check.name.endswith(".latents"))


@pytest.mark.parametrize(
    ("check", "passed"),
    [
        (Check("exact", 0.0, 1e-5), True),
        (Check("over", 2e-5, 1e-5), False),
        (Check("nan", float("nan"), 1e-5), False),
        (Check("frames", 1.0, 1.0, 0.0005), True),
        (Check("too many", 1.0, 1.0, 0.0011), False),
        (Check("two levels", 2.0, 1.0, 0.0001), False),
    ],
)
def test_verdict(check, passed):
    assert check.passed is passed
    assert ("FAILED" in table([check])) is not passed


def test_preset_that_is_not_the_published_variant_is_named():
    facts = {"motion_frames": 5, "ref_pad_num": 0, "mask_all_motion": False}
    assert policy_of("film", facts).name == "film"
    with pytest.raises(UserError, match="film"):
        policy_of("film", {**facts, "motion_frames": 4})


def test_folder_that_is_no_kit(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert "no parity kit" in capsys.readouterr().err
