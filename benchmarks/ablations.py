"""The paper's ablations in miniature: one training per variant, then one drift experiment over all of them.

Every variant sees the same clips in the same order with the same noise, and differs from `full` in what is listed here and in
nothing else. It calls `svi train` and `svi drift`, prints each command, and goes on where it was stopped. Results:
OUT/drift/results.md.

    python benchmarks/ablations.py --list
    python benchmarks/ablations.py --recipe pocket-film --jobs 2        everything: a day of two cores
    python benchmarks/ablations.py --table 4 --steps 500 --worlds 4     a look at one table
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from svi.errors import UserError, nearest
from svi.files import write_atomic
from svi.finetune import find_config
from svi.pocket.drift.experiment import CONTROLS, PANNING, STANDING, Arm, Experiment, Gain

SVI = (sys.executable, "-m", "svi.cli")


@dataclass(frozen=True)
class Variant:
    """A training: what of the recipe differs, and the question it answers (a table of the paper, or an open one)."""

    question: str
    changes: tuple[str, ...] = ()


FULL = "full"
VARIANTS: dict[str, Variant] = {
    FULL: Variant("the recipe as it is"),
    "control": Variant("without recycling", ("recycling.clean_prob=1",)),
    "no-image": Variant("4", ("recycling.image_error_prob=0",)),
    "no-video": Variant("4", ("recycling.video_error_prob=0",)),
    "no-noise": Variant("4", ("recycling.noise_error_prob=0",)),
    "handcrafted": Variant("6", ("recycling.clean_prob=1", "data.degraded_prob=0.5")),
    "self-and-handcrafted": Variant("6", ("data.degraded_prob=0.5",)),
    "bank-1": Variant("8", ("bank.capacity=1",)),
    "bank-10": Variant("8", ("bank.capacity=10",)),
    "bank-100": Variant("8", ("bank.capacity=100",)),
    "bank-2000": Variant("8", ("bank.capacity=2000",)),
    "accumulated": Variant("harvest", ("recycling.harvest=accumulated",)),
    "all-clean-errors": Variant("clean errors in the bank", ("recycling.clean_buffer_update_prob=1",)),
    "clean-0.2": Variant("clean share", ("recycling.clean_prob=0.2",)),
    "clean-0.5": Variant("clean share", ("recycling.clean_prob=0.5",)),
    "uniform-sigma": Variant("noise levels", ("loss.density=uniform",)),
}
STRENGTHS = (0.2, 0.4, 0.6, 0.8)  # table 7, of the full LoRA; 1.0 is `full`


def chosen(only: Sequence[str], table: str | None) -> dict[str, Variant]:
    """The variants asked for, `full` always among them.

    Raises:
        UserError: for an unknown name or question.
    """
    for name in only:
        if name not in VARIANTS:
            raise UserError(f"there is no variant {name!r}: {nearest(name, VARIANTS)}")
    questions = {variant.question for variant in VARIANTS.values()} | {"7", "seed"}
    if table is not None and table not in questions:
        raise UserError(f"no variant answers {table!r}: {nearest(table, questions)}")
    wanted = {
        name for name, v in VARIANTS.items() if (not only and table is None) or name in only or v.question == table
    }
    return {name: variant for name, variant in VARIANTS.items() if name in wanted | {FULL}}


def cache(variant: Variant, args: argparse.Namespace) -> Path:
    """Folder of its encoded clips; variants whose clips are encoded alike share one."""
    degraded = any(change.startswith("data.degraded_prob") for change in variant.changes)
    return Path(args.out) / ("cache-degraded" if degraded else "cache")


def training(name: str, variant: Variant, args: argparse.Namespace) -> list[str]:
    """The command that trains a variant."""
    changes = [
        *variant.changes,
        f"data.cache={cache(variant, args)}",
        f"data.clips={args.clips_trained}",
        "loop.validate_every=0",
    ]
    changes += [f"loop.steps={args.steps}"] if args.steps else []
    threads = ["--threads", str(args.threads)] if args.threads else []
    return [*SVI, "train", args.recipe, "--out", str(Path(args.out) / name), *threads, *changes]


def experiment(names: Sequence[str], args: argparse.Namespace) -> Experiment:
    """All variants as arms, `full` at several strengths and with the same noise in every clip, and what they are compared with."""
    preset, out = find_config(args.recipe, []).data.preset, Path(args.out).absolute()
    files = {name: str(out / name / "lora.safetensors") for name in names}
    arms = {name: Arm(preset=preset, loras={file: 1.0}) for name, file in files.items()}
    if args.table in (None, "7"):
        arms |= {f"{FULL}-{s:g}": Arm(preset=preset, loras={files[FULL]: s}) for s in STRENGTHS}
    if args.table in (None, "seed"):
        arms["same-seed"] = Arm(preset=preset, loras={files[FULL]: 1.0}, seed_stride=0)
    arms |= {"base": Arm(), "untrained": Arm(preset=preset)}
    return Experiment(
        name="ablations",
        about=f"What of {args.recipe} does what?",
        scenes={"standing": STANDING, "panning": PANNING},
        arms={**arms, **CONTROLS},
        pairs=tuple((FULL, name) for name in arms if name != FULL),
        worlds=args.worlds,
        clips=args.clips,
        gain=Gain(worlds=args.worlds),
    )


def call(command: Sequence[str]) -> None:
    """Run a command, told beforehand.

    Raises:
        CalledProcessError: when it fails.
    """
    print("$ svi", *command[len(SVI) :], flush=True)
    subprocess.run(command, check=True)


def main() -> None:
    """Train what is missing, then measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="pocket-film", help="recipe of `svi train` (default pocket-film)")
    parser.add_argument("--out", default="runs/ablations", help="folder for all of it (default runs/ablations)")
    parser.add_argument("--only", nargs="+", default=(), metavar="VARIANT", help="only these, and `full`")
    parser.add_argument("--table", help="only the variants of a question: 4, 6, 7, 8, seed, harvest ...")
    parser.add_argument("--steps", type=int, help="steps of each training (default: the recipe's)")
    parser.add_argument("--clips-trained", type=int, default=2048, help="clips to encode (default 2048)")
    parser.add_argument("--worlds", type=int, default=16, help="held-out worlds per scene (default 16)")
    parser.add_argument("--clips", type=int, default=50, help="clips of each video (default 50)")
    parser.add_argument("--jobs", type=int, default=1, help="trainings, then rollouts, side by side (default 1)")
    parser.add_argument("--threads", type=int, help="CPU threads of each training (default: all)")
    parser.add_argument("--list", action="store_true", help="show the variants and stop")
    args = parser.parse_args()
    if args.list:
        for name, variant in VARIANTS.items():
            print(f"{name:22} {variant.question:26} {' '.join(variant.changes)}")
        return
    try:
        variants = chosen(args.only, args.table)
        found = experiment(list(variants), args)
    except UserError as error:
        parser.error(str(error))
    encoders = {
        cache(variant, args): name for name, variant in reversed(variants.items())
    }  # the first to use each cache
    for name in encoders.values():
        call(training(name, variants[name], args))
    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(call, (training(*item, args) for item in variants.items() if item[0] not in encoders.values())))
    file = Path(args.out) / "experiment.yaml"
    write_atomic(file, found.to_yaml().encode())
    call([*SVI, "drift", str(file), "--out", str(Path(args.out) / "drift"), "--jobs", str(args.jobs)])


if __name__ == "__main__":
    main()
