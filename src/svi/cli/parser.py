"""The command line's words: every command, option, default and example. Runs nothing and imports nothing heavy."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from typing import NoReturn

from svi.cli import bench, bench_speed, doctor, drift, lora, models, train, values
from svi.errors import UserError, nearest

FORMATS = ("mp4", "gif", "webp", "frames")
VIDEOS = (
    ".mp4",
    ".mov",
    ".avi",
    ".mkv",
    ".webm",
    ".m4v",
)  # as svi.data reads them, which is too heavy to be imported here

MAIN = """\
Endless videos from one image and a stream of prompts.

  svi generate                                   the bundled example, on any machine, in minutes
  svi generate cat.png --prompt "a cat walks" --clips 10 --out runs/cat
  svi resume runs/cat                            go on after a stop, a crash or a power cut
  svi extend runs/cat --clips 5                  make it longer
  svi retake runs/cat --clip 3                   make clip 3 again ("CUT, AGAIN")
  svi branch runs/cat --at 4 --prompt "it naps"  another story from clip 4 on
  svi show runs/cat --sheet cat.png              what is there, as a table and as a picture
  svi export runs/cat --format gif               mp4, gif, webp or single frames

  svi data check films/                          what of a folder of videos can be learned from, and why not the rest
  svi train pocket-shot --out runs/shot          error-recycling fine-tuning: a LoRA that corrects its own errors
  svi lora info svi-shot.safetensors             what a LoRA is; convert, merge and extract them
  svi drift quick                                how much videos decay, against exact truth
  svi bench score runs/b --videos mine=films/    measure any videos; compare methods, with a report
  svi models check wan2.1-i2v-480p               what a model needs, what of it is here and whole
  svi doctor                                     what this machine can run, and what is broken

Clips are counted from 0, as the folders in a run are: clip 0 is the first.
"""

GENERATE = """\
Make a video clip by clip; each clip continues the last. One prompt drives one clip; the last prompt repeats when
there are more clips than prompts. Without any argument the bundled example runs on the embedded pocket model.

examples:
  svi generate
  svi generate cat.png --prompt "a cat walks" --prompt "the cat sits down" --clips 6
  svi generate film.mp4 --prompt "the cat jumps" --preset pro      go on from the end of a video of your own
  svi generate cat.jpg --prompts story.txt --preset film --lora svi-film.safetensors:0.9 --model Wan-AI/Wan2.1-...
  svi generate --storyboard story.yaml --out runs/story --seed 7

files that --prompts takes: text (one line, one prompt; # starts a comment), a YAML or JSON storyboard, or the
published `prompts = ["...", ...]`, which is read as data and never executed. `svi schema` prints the JSON schema of storyboards.

A run is a folder: the video (video.m3u8 while it grows, then video.mp4), every clip with all that the next one needs, and a journal.
Stop it at any time (Ctrl-C once: after the current step; twice: now; kill -9 is survived too) and go on with
`svi resume RUN`: the frames come out the same as if it had never stopped.

exit codes: 0 done, 2 bad input (one line says what and how to mend it), 130 interrupted.
"""

RESUME = """\
Go on with a run that was stopped, killed or lost its power. Finished clips are kept; the frames are bit-identical to
those of an undisturbed run. Refused when the weights, LoRAs or settings changed since: branch instead.

example:
  svi resume runs/cat
"""

EXTEND = """\
Make a finished run longer. New prompts drive the new clips; without any the last prompt goes on.

examples:
  svi extend runs/cat --clips 5
  svi extend runs/cat --prompt "the cat wakes up" --prompt "it walks away"
  svi extend runs/cat --seconds 30
"""

BRANCH = """\
Start a new run that shares the first K clips of another and goes its own way from clip K on. Prompts, seed and
settings may differ; the old run stays as it is.

examples:
  svi branch runs/cat --at 4 --prompt "the cat jumps on the table" --clips 8
  svi branch runs/cat --at 4 --seed 99 --out runs/cat-b
"""

RETAKE = """\
Make one clip again, with a new seed unless one is given. The old take is kept on disk. What follows continued the old
take, so it is made again as well, unless --keep-rest.

examples:
  svi retake runs/cat --clip 3
  svi retake runs/cat --clip 3 --prompt "a cat turns left" --seed 7
"""

EXPORT = """\
Write the video of a run in another form. mp4 is a copy without encoding again, unless --scale or --range asks for
other pictures.

examples:
  svi export runs/cat                                  runs/cat.mp4
  svi export runs/cat --format gif --scale 4           pocket videos are small: four times as large
  svi export runs/cat --format frames --range 2-3      frames of clips 2 and 3 as PNG
  svi export runs/cat --format webp --range 1.5-4s     from second 1.5 to second 4
"""

SHOW = """\
What a run holds: clips, prompts, seeds, takes, disk use, and what is damaged or missing.

examples:
  svi show runs/cat
  svi show runs/cat --sheet cat.png      contact sheet: a row per clip, frames from left to right
  svi show runs/cat --sheet both.png --columns 3 --beside runs/cat-plain      two runs side by side
"""

PARITY = """\
Compare this installation with the published code on a parity kit (weights, inputs and expected conditions, latents
and frames). Prints the largest difference of every variant and fails when one is above its bound.
"""


class Parser(argparse.ArgumentParser):
    """Reports mistakes as UserError (one line, exit code 2) and names the nearest command or option."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self._with_hint(message)} (see: {self.prog} --help)")

    def _with_hint(self, message: str) -> str:
        message = message.removeprefix("argument ")
        if message.startswith("unrecognized arguments:"):
            words = message.partition(": ")[2].split()
            option = next((word for word in words if word.startswith("-")), None)
            if option is not None:
                known = [name for name in self._option_string_actions if name.startswith("--")]
                return f"unknown option {option!r}: {nearest(option, known)}"
            return f"one argument too many: {' '.join(words)!r}"
        verb = re.search(r"invalid choice: '(.*)' \(choose from (.*)\)", message)
        if verb is not None:
            return f"unknown verb {verb[1]!r}: {nearest(verb[1], re.findall(r'[a-z]+', verb[2]))}"
        return " ".join(message.split()).replace(": must ", " must ", 1)


def _add(sub: argparse._SubParsersAction[Parser], name: str, summary: str, text: str = "") -> Parser:
    parser = sub.add_parser(
        name,
        help=summary,
        description=text or summary,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(command=name)
    return parser


def _add_run(parser: Parser, help_: str = "the run's folder") -> None:
    parser.add_argument("run", metavar="RUN", help=help_)


def _add_output(parser: Parser) -> None:
    group = parser.add_argument_group("what is printed")
    how = group.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="one JSON event per line on stdout, for scripts")
    how.add_argument("--quiet", action="store_true", help="nothing but the path of the video")
    how.add_argument("--plain", action="store_true", help="lines instead of bars (default when not on a terminal)")


def _add_machine(parser: Parser) -> None:
    group = bench_speed.add_placement_words(parser)
    group.add_argument("--threads", type=values.whole(), metavar="N", help="CPU threads (default: all)")
    group.add_argument("--download", action="store_true", help="allow fetching a hub model that is not here yet")
    group.add_argument(
        "--merge-loras",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="LoRAs in the weights (balanced: yes)",
    )
    group.add_argument(
        "--text-cache",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="keep embeddings of prompts on disk, load the text encoder for new ones only (default: where it is large)",
    )


def _add_prompts(parser: Parser) -> None:
    group = parser.add_argument_group("story (one of)")
    group.add_argument("--prompt", nargs="+", action="extend", metavar="TEXT", help="a prompt; repeat for more clips")
    group.add_argument("--prompts", metavar="FILE", help="prompt file: text, YAML, JSON or `prompts = [...]`")
    group.add_argument("--storyboard", metavar="FILE", help="storyboard (YAML or JSON, see `svi schema`)")


def _add_length(parser: Parser, *, endless: bool) -> None:
    group = parser.add_argument_group("length (one of; default: as long as the story)")
    group.add_argument("--clips", type=values.whole(), metavar="N", help="number of clips")
    group.add_argument("--seconds", type=values.number(above=True), metavar="S", help="seconds of video")
    if endless:
        group.add_argument("--endless", action="store_true", help="until you stop it")


def _add_model(parser: Parser) -> None:
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model",
        metavar="MODEL",
        help="pocket (embedded, any machine), a folder (diffusers or official layout) or a hub id (default: pocket)",
    )
    group.add_argument(
        "--lora",
        nargs="+",
        action="extend",
        metavar="NAME|FILE[:STRENGTH]",
        help="LoRA with its strength (default 1); refused when its keys do not match the model",
    )
    group.add_argument("--preset", metavar="P", help="member of the SVI family: see `svi presets` (default: wan)")


def _add_sampling(parser: Parser, *, shape: bool) -> None:
    group = parser.add_argument_group("picture (defaults: the storyboard's, else the model's, else the preset's)")
    group.add_argument("--seed", type=values.whole(0), metavar="N", help="same seed, same video")
    group.add_argument("--steps", type=values.whole(), metavar="N", help="denoising steps per clip")
    group.add_argument("--guidance", type=values.number(), metavar="G", help="how strictly prompts are followed")
    group.add_argument("--negative-prompt", metavar="TEXT", help="what should not be seen")
    group.add_argument("--solver", metavar="NAME", help="euler, unipc, ... (default: the published one)")
    if shape:
        group.add_argument("--size", type=values.size, metavar="WxH", help="picture size (default: from the image)")
        group.add_argument("--frames", type=values.whole(), metavar="N", help="frames per clip, 4n+1")


def _generate(sub: argparse._SubParsersAction[Parser]) -> None:
    parser = _add(sub, "generate", "make a video from an image and prompts", GENERATE)
    parser.add_argument(
        "image",
        nargs="?",
        metavar="IMAGE|VIDEO",
        help="png, jpeg or webp: the first frame; or a video to go on from (mp4 ...)",
    )
    parser.add_argument(
        "--anchor", metavar="IMAGE", help="with a video: what presets hold on to (default: its first frame)"
    )
    parser.add_argument("--new-only", action="store_true", help="with a video: leave it out of the new one")
    _add_prompts(parser)
    _add_length(parser, endless=True)
    _add_model(parser)
    _add_sampling(parser, shape=True)
    parser.add_argument("--out", metavar="RUN", help="folder of the run (default: a new one in ./runs)")
    _add_machine(parser)
    _add_output(parser)


def _continue(sub: argparse._SubParsersAction[Parser]) -> None:
    parser = _add(sub, "resume", "go on with a stopped run", RESUME)
    _add_run(parser)
    _add_machine(parser)
    _add_output(parser)

    parser = _add(sub, "extend", "make a run longer", EXTEND)
    _add_run(parser)
    _add_prompts(parser)
    _add_length(parser, endless=True)
    _add_machine(parser)
    _add_output(parser)

    parser = _add(sub, "branch", "another story from clip K on, as a new run", BRANCH)
    _add_run(parser)
    parser.add_argument("--at", type=values.whole(0), required=True, metavar="K", help="first clip that differs")
    _add_prompts(parser)
    _add_length(parser, endless=True)
    _add_model(parser)
    _add_sampling(parser, shape=False)
    parser.add_argument("--out", metavar="RUN", help="folder of the new run (default: beside the old one)")
    _add_machine(parser)
    _add_output(parser)

    parser = _add(sub, "retake", "make one clip again", RETAKE)
    _add_run(parser)
    parser.add_argument("--clip", type=values.whole(0), required=True, metavar="K", help="clip to make again")
    parser.add_argument(
        "--keep-rest", action="store_true", help="keep the clips that follow (a visible cut may appear)"
    )
    parser.add_argument("--seed", type=values.whole(0), metavar="N", help="seed of this take (default: a new one)")
    parser.add_argument("--prompt", metavar="TEXT", help="prompt of this take (default: the same)")
    _add_machine(parser)
    _add_output(parser)


def _look(sub: argparse._SubParsersAction[Parser]) -> None:
    parser = _add(sub, "show", "what a run holds; contact sheet", SHOW)
    _add_run(parser)
    sheet = "write a contact sheet (PNG; default: RUN/sheet.png)"
    parser.add_argument("--sheet", nargs="?", const="", metavar="FILE", help=sheet)
    beside = "other runs to show beside it on the sheet, clip by clip"
    parser.add_argument("--beside", nargs="+", default=[], metavar="RUN", help=beside)
    parser.add_argument("--rows", type=values.whole(), default=12, metavar="N", help="rows at most (default: 12)")
    parser.add_argument("--columns", type=values.whole(), default=6, metavar="N", help="frames a row (default: 6)")
    parser.add_argument("--json", action="store_true", help="as one JSON object")

    parser = _add(sub, "export", "write mp4, gif, webp or frames", EXPORT)
    _add_run(parser)
    form = values.one_of("format", lambda: list(FORMATS))
    parser.add_argument(
        "--format", type=form, metavar="F", help=f"{', '.join(FORMATS)} (default: from --out, else mp4)"
    )
    parser.add_argument(
        "--out", metavar="FILE", help="where to (default: beside the run, never over a file that exists)"
    )
    parser.add_argument("--range", metavar="A-B", help="clips A to B, or seconds with an s at the end: 1.5-4s")
    parser.add_argument("--scale", type=values.whole(), default=1, metavar="N", help="enlarge N times (default: 1)")
    stream = "decode all clips again in one stream, for softer joints (presets that hand over latents: pro)"
    parser.add_argument("--stream", action="store_true", help=stream)
    parser.add_argument(
        "--device", metavar="DEVICE", help="with --stream: where the VAE works (default: the best there is)"
    )


def _about(sub: argparse._SubParsersAction[Parser]) -> None:
    parser = _add(sub, "presets", "the members of the SVI family and what they need")
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser = _add(sub, "schema", "the JSON schema of storyboards")
    parser.add_argument("--out", metavar="FILE", help="write it to a file that does not exist yet")
    doctor.add_words(_add(sub, "doctor", doctor.SUMMARY, doctor.TEXT))
    models.add_words(_add(sub, "models", models.SUMMARY, models.TEXT))
    parser = _add(sub, "parity", "compare with the published code on a parity kit", PARITY)
    parser.add_argument("folder", metavar="FOLDER", help="folder of the kit")
    parser = _add(sub, "pocket", "build or measure the pocket model: svi pocket build --help")
    parser.add_argument("rest", nargs=argparse.REMAINDER, metavar="build|measure ...", help="what to do, and how")
    train.add_words(_add(sub, "train", train.SUMMARY, train.TEXT))
    lora.add_words(_add(sub, "lora", lora.SUMMARY, lora.TEXT))
    drift.arguments(_add(sub, "drift", drift.SUMMARY, drift.HELP))
    bench.add_words(_add(sub, "bench", bench.SUMMARY, bench.TEXT))


COMMANDS = (
    "generate",
    "resume",
    "extend",
    "branch",
    "retake",
    "export",
    "show",
    "presets",
    "schema",
    "doctor",
    "models",
    "parity",
    "pocket",
    "train",
    "lora",
    "data",
    "drift",
    "bench",
)


def build_parser() -> Parser:
    """The parser of ``svi``."""
    parser = Parser(
        prog="svi", description=MAIN, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--version", action="store_true", help="print the version")
    sub = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands", parser_class=Parser)
    from svi.cli.data_parser import add_parsers as _data

    for add in (_generate, _continue, _look, _about, _data):
        add(sub)
    return parser


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Arguments of a command. Raises UserError for what makes no sense, before anything heavy is imported."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser = build_parser()
    if words and not words[0].startswith("-") and words[0] not in COMMANDS:
        parser.error(f"unknown command {words[0]!r}: {nearest(words[0], COMMANDS)}")
    if words and words[0] in COMMANDS and words[0] != "pocket":
        # Parsed by the command's own parser, so that hints about unknown options know the command's options.
        actions = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
        return _rescue_image(actions[0].choices[words[0]].parse_args(words[1:]))
    return parser.parse_args(words)


def _rescue_image(args: argparse.Namespace) -> argparse.Namespace:
    """``--prompt "a cat" cat.png`` gives the image to --prompt; take it back where IMAGE is missing."""
    if args.command != "generate" or args.image is not None:
        return args
    for words in (args.prompt, args.lora):
        if words and len(words) > 1 and (values.looks_like_image(words[-1]) or words[-1].lower().endswith(VIDEOS)):
            args.image = words.pop()
            break
    return args
