"""The words of ``svi data``: every option, default and example. Runs nothing and imports nothing heavy."""

from __future__ import annotations

import argparse
from typing import Any

from svi.cli import values
from svi.cli.parser import Parser

DATA = """\
Training data: look at it, cut it into scenes, encode it once.

  svi data check clips/                        what is usable, what is not and why
  svi data split films.jsonl --out scenes.jsonl      one line per scene (needs the extra [data])
  svi data encode clips/ --model MODEL --preset shot --out latents/shot
"""

KINDS = """\
DATA is one of
  manifest.jsonl      one object per line: {"video": "a.mp4", "caption": "a cat walks"}; also id, start_s, end_s (seconds)
                      and fps (to take the frames at another rate than their timestamps say). Paths are relative to the file.
  a folder            of videos, each with a caption file beside it (a.mp4, a.txt), or of folders that hold a csv with the
                      columns `Filename` and `Video Description` (the published layout); sub-folders are searched
  a video             with --caption, or a caption file beside it
"""

CHECK = f"""\
Open every video once, and tell how many training windows there are, of what shape, and what is left out and why. Nothing is
written.

{KINDS}
A window is as long as the model's clip (81 frames for Wan), at the model's frames per second by the timestamps of the video.
No frame is repeated to fill one: what is too short, has gaps, or runs slower than the model is left out and listed.

examples:
  svi data check clips/
  svi data check clips/ --model wan2.1-i2v-480p --preset svi2-wan21 --bucket 81x480x832 --bucket 81x832x480

exit codes: 0 something is usable, 2 nothing is.
"""

SPLIT = f"""\
Find the cuts in long videos with PySceneDetect and write a manifest with one line per scene. Look at it, correct it, and give
it to `svi data encode`.

{KINDS}
examples:
  svi data split film.mp4 --caption "a cartoon" --out scenes.jsonl
"""

ENCODE = f"""\
Encode all windows once, so that training reads latents instead of videos: clean latents, condition (made by the same code
as in generation), text of each caption, CLIP features, anchors. Which frames and which crop a window shows is drawn from
the seed; --variants encodes that many epochs of draws.

{KINDS}
Stop it at any time; the same command goes on, finished shards are kept. Videos may be added later: only what is new is encoded.
A cache says what it was made with (model files, sizes, preset, draws, videos); training refuses one that does not fit.

examples:
  svi data encode clips/ --preset shot --out latents/shot --dry-run
  svi data encode clips/ --model wan2.1-i2v-480p --preset film --out latents/film --variants 2
"""


class Verb(Parser):
    """Reports unknown options itself, so that the hint knows its own."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return found, unknown


def add_parsers(sub: argparse._SubParsersAction[Parser]) -> None:
    """Add ``data`` to the commands of ``svi``."""
    parser = _add(sub, "data", "look at training data, cut it into scenes, encode it", DATA)
    parser.set_defaults(command="data", usage=parser.format_help)
    verbs = parser.add_subparsers(dest="verb", metavar="check|split|encode", parser_class=Verb)

    check = _add(verbs, "check", "what is usable, what is not and why", CHECK)
    _add_windows(check)
    check.add_argument("--json", action="store_true", help="as one JSON object")

    split = _add(verbs, "split", "cut long videos into scenes", SPLIT)
    _add_data(split)
    split.add_argument("--out", required=True, metavar="FILE", help="manifest to write (.jsonl)")
    split.add_argument(
        "--detector", default="adaptive", metavar="D", help="adaptive, content or threshold (default: adaptive)"
    )
    split.add_argument(
        "--shortest", type=values.number(), default=1.0, metavar="S", help="leave out shorter scenes (default: 1 s)"
    )

    encode = _add(verbs, "encode", "write latents, conditions and texts", ENCODE)
    _add_windows(encode)
    encode.add_argument("--out", required=True, metavar="DIR", help="folder of the cache")
    _add_encoding(encode)


def _add(sub: Any, name: str, summary: str, text: str) -> Parser:
    parser: Parser = sub.add_parser(
        name,
        help=summary,
        description=text,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    return parser


def _add_data(parser: Parser) -> None:
    parser.add_argument("data", metavar="DATA", help="manifest, folder or video")
    parser.add_argument("--caption", metavar="TEXT", help="caption of every video that has none")


def _add_windows(parser: Parser) -> None:
    _add_data(parser)
    group = parser.add_argument_group("windows")
    group.add_argument(
        "--model", default="pocket", metavar="MODEL", help="pocket, a folder or a hub id (default: pocket)"
    )
    group.add_argument(
        "--preset", default="shot", metavar="P", help="member of the SVI family, see `svi presets` (default: shot)"
    )
    group.add_argument(
        "--bucket",
        action="append",
        metavar="FxHxW",
        help="shape of windows, FRAMESxHEIGHTxWIDTH; repeat for more (default: the model's)",
    )
    group.add_argument(
        "--hop", type=values.whole(), metavar="N", help="frames from one window to the next (default: its length)"
    )
    group.add_argument(
        "--per-video",
        type=values.whole(),
        metavar="N",
        help="windows per video and epoch at most; 1 as published (default: all that fit)",
    )
    group.add_argument(
        "--reference",
        choices=("inside", "outside"),
        help="where the reference frame lies: inside the window or outside (default: the preset's)",
    )
    group.add_argument(
        "--first-clips",
        type=values.number(),
        metavar="P",
        help="share of windows conditioned as a first clip (default: the preset's)",
    )
    group.add_argument(
        "--crop-min",
        type=values.number(above=True),
        metavar="C",
        help="smallest share of a side kept by the crop (default: 13/14)",
    )
    group.add_argument(
        "--degraded",
        type=values.number(),
        metavar="P",
        help="share of windows whose past gets a handcrafted error: colour, blur, sharpening (default: 0)",
    )
    group.add_argument("--seed", type=values.whole(0), default=0, metavar="N", help="of all draws (default: 0)")
    group.add_argument("--download", action="store_true", help="allow fetching a hub model that is not here yet")


def _add_encoding(parser: Parser) -> None:
    group = parser.add_argument_group("encoding")
    group.add_argument(
        "--variants", type=values.whole(), default=1, metavar="N", help="epochs of draws to encode (default: 1)"
    )
    stored = values.one_of("dtype", lambda: ["bfloat16", "float32"])
    group.add_argument(
        "--store", type=stored, default="bfloat16", metavar="DTYPE", help="bfloat16 or float32 (default: bfloat16)"
    )
    group.add_argument(
        "--batch", type=values.whole(), default=1, metavar="N", help="windows encoded at once (default: 1)"
    )
    group.add_argument("--dry-run", action="store_true", help="only tell how many windows and bytes it would be")
    group.add_argument(
        "--replace", action="store_true", help="throw away a cache in DIR that was made with other settings"
    )
    machine = parser.add_argument_group("machine")
    machine.add_argument("--device", metavar="DEVICE", help="cpu, cuda, cuda:1, mps (default: the best there is)")
    machine.add_argument(
        "--dtype", metavar="DTYPE", help="of the text encoder: float32, bfloat16, float16 (default: by device)"
    )
    machine.add_argument("--threads", type=values.whole(), metavar="N", help="CPU threads (default: all)")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="one JSON object per line on stdout")
    how.add_argument("--quiet", action="store_true", help="nothing but the folder of the cache")
