"""The words of ``svi bench``: plan, generate, miniature, score, compare, report, selftest, cache, speed. Imports nothing heavy."""

from __future__ import annotations

import argparse
from typing import Any

from svi.cli import bench_speed, values
from svi.cli.verbs import verbs_of

SUMMARY = "measure long videos: suites, scores, comparison, report"
TEXT = """\
Makes the videos of a suite, scores them or anyone's, and compares, paired by sample and with intervals. A video that
copies, stands still or burns out is called degenerate, not ranked; what cannot be scored is named with its reason.

  svi bench plan pocket                           what it needs: weights, disk, time; makes nothing
  svi bench generate pocket --method wan shot truth copy-clips --samples 4 --clips 10 --out runs/bench
  svi bench score runs/bench                      every score that is not there yet; stop and go on as you like
  svi bench score runs/mine --videos ours=clips/ theirs=/data/theirs/ --profile paper
  svi bench compare runs/bench --against wan      tables on stdout
  svi bench report runs/bench                     report.html (one file), Markdown, CSV, LaTeX beside it
  svi bench miniature --out runs/table1 --jobs 2  the paper's Table 1 on the pocket model: made, scored and reported
  svi bench selftest                              do foolers and injected faults come out as they must
  svi bench cache runs/bench --prune              what is stored, and delete what nothing refers to
  svi bench speed --help                          seconds per step, frame and clip

suites: consistent-50s consistent-250s creative-50s creative-250s talk-300s dance-50s pocket
profiles: paper vbench-long drift fast-cpu talk dance
"""
PLAN = """\
What a suite takes before anything is made: cases, frames, what its sources leave open and how it is settled, which weights
are there and which are missing, disk, and how long one frame takes to score on this machine (measured on a few).
"""
GENERATE = """\
Make the videos of a suite, method by method, case by case. Each is a run folder: stop at any time, and the same command
goes on. The pocket suite needs nothing; the others take images and prompts from --data, the published data set.

methods: NAME[:key=value,...] with keys preset, lora (NAME|FILE[:STRENGTH], repeat), model, steps, guidance, solver
  wan                                 a preset by its name
  erft:preset=shot,lora=shot          any name, with its preset
  truth vae copy-clips ping-pong copy-reference blur noise ...   controls, made of the true video
  copy-clips:of=erft                  a control made of another method's video
  noisy-history history-guidance inverted   mechanisms of other methods, on the same model (svi presets)
"""
MINIATURE = """\
The paper's Table 1 in miniature, on the pocket model: what other methods do against drift, each mechanism alone on the same
model with the same images, prompts and noise, beside error recycling, the truth and naive foolers. Makes what is not there
yet, scores it, and writes the report; stop at any time, and the same command goes on. A row whose LoRA is not there is named and
left out. All of it takes hours on a CPU: --samples, --clips and --methods make less of it.
"""
SCORE = """\
Compute the scores that are not stored yet: each video is read once for all of them. Results are kept by content, so a
renamed video keeps its scores and a changed one loses them. Several calls with --shard 0/4 ... 3/4 share the work, on one
machine or many with a common folder.

--videos NAME=PATH takes a folder of videos, of PNG frames, of runs, or a manifest (.jsonl): one object per line with name,
video, and as far as known fps, reference, truth, prompts [[frame, text], ...], borders [frame, ...], audio.
"""
COMPARE = "Tables of what is scored: means with 95 % intervals over the samples that all methods share, and paired differences."
REPORT = """\
One HTML file without outside requests: leaderboard with intervals, curves over time, contact sheets with the worst frames,
self-similarity, consistency against motion, provenance; beside it report.md, leaderboard.csv and .tex, samples.csv,
summary.json.
"""
SELFTEST = (
    "Score true videos of the pocket world, foolers and injected faults, and check that they come out as they must."
)
CACHE = "What is stored in a folder of scores; --prune deletes results that no method refers to any more."
FORMATS = ("md", "csv", "tex", "json")


# -- words -------------------------------------------------------------------------------------------------------------


def add_words(parser: argparse.ArgumentParser) -> None:
    """Give the parser of ``svi bench`` its verbs."""
    sub = verbs_of(parser)
    _plan_words(_verb(sub, "plan", "weights, disk and time, before anything is done", PLAN))
    _generate_words(_verb(sub, "generate", "make the videos of a suite", GENERATE))
    _miniature_words(_verb(sub, "miniature", "the paper's Table 1 on the pocket model, in one go", MINIATURE))
    _score_words(_verb(sub, "score", "compute what is not scored yet", SCORE))
    _compare_words(_verb(sub, "compare", "tables on stdout", COMPARE))
    _report_words(_verb(sub, "report", "one HTML file, and tables in files", REPORT))
    selftest = _verb(sub, "selftest", "is the evaluation itself any good", SELFTEST)
    selftest.add_argument("--worlds", type=values.whole(), default=1, metavar="N", help="true videos (default: 1)")
    cache = _verb(sub, "cache", "what is stored", CACHE)
    cache.add_argument("out", metavar="DIR", help="folder of scores")
    cache.add_argument("--prune", action="store_true", help="delete what nothing refers to")
    bench_speed.add_words(_verb(sub, "speed", bench_speed.SUMMARY, bench_speed.TEXT))


def _verb(sub: Any, name: str, summary: str, text: str) -> argparse.ArgumentParser:
    verb: argparse.ArgumentParser = sub.add_parser(
        name, help=summary, description=text, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    verb.set_defaults(command="bench")
    return verb


def _suite_words(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("suite", metavar="SUITE", help="see above")
    verb.add_argument("--data", metavar="DIR", help="the published data set, with images and prompts")
    verb.add_argument("--samples", type=values.whole(), metavar="N", help="only the first N cases")
    verb.add_argument("--only", nargs="+", action="extend", default=[], metavar="NAME", help="only these cases")
    length = "shorter videos: as long as N clips chained by their last frame"
    verb.add_argument("--clips", type=values.whole(), metavar="N", help=length)
    verb.add_argument("--model", default="pocket", metavar="MODEL", help="of methods that name none (default: pocket)")


def _metric_words(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--profile", metavar="P", help="default: the suite's, else fast-cpu")
    verb.add_argument("--metrics", nargs="+", action="extend", default=[], metavar="M", help="more metrics by name")
    parity = "vbench: with the quirks of VBench's code, clean: without (default: vbench)"
    verb.add_argument(
        "--parity", type=values.one_of("parity", lambda: ["vbench", "clean"]), metavar="MODE", help=parity
    )
    verb.add_argument("--weights", metavar="DIR", help="folder of weight files (default: $SVI_METRIC_WEIGHTS, caches)")
    verb.add_argument(
        "--sha256",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME=HASH",
        help="of a weight file that is a program",
    )
    verb.add_argument(
        "--interpolator", metavar="PACKAGE.MODULE:FUNCTION", help="makes the frame between two, for motion_smoothness"
    )
    verb.add_argument("--device", metavar="DEVICE", help="cpu, cuda, ... (default: the best there is)")


def _plan_words(verb: argparse.ArgumentParser) -> None:
    _suite_words(verb)
    _metric_words(verb)
    verb.add_argument("--methods", type=values.whole(), default=1, metavar="N", help="how many methods (default: 1)")
    verb.add_argument("--json", action="store_true", help="as JSON")


def _generate_words(verb: argparse.ArgumentParser) -> None:
    _suite_words(verb)
    verb.add_argument(
        "--method",
        "--methods",
        dest="method",
        nargs="+",
        action="extend",
        required=True,
        metavar="METHOD",
        help="what makes videos, see above",
    )
    verb.add_argument("--out", required=True, metavar="DIR", help="folder of the benchmark")
    _making_words(verb)
    together = "videos made side by side (pocket suite): faster, plain files instead of run folders (default: 1)"
    verb.add_argument("--batch", type=values.whole(), default=1, metavar="N", help=together)
    verb.add_argument("--device", metavar="DEVICE", help="cpu, cuda, ... (default: the best there is)")


def _making_words(verb: argparse.ArgumentParser) -> None:
    jobs = "processes, each with its share of the cores (default: 1)"
    verb.add_argument("--jobs", type=values.whole(), default=1, metavar="N", help=jobs)
    verb.add_argument("--dtype", metavar="DTYPE", help="float32, bfloat16, float16 (default: the device's)")
    verb.add_argument("--threads", type=values.whole(), metavar="N", help="CPU threads (default: all)")
    verb.add_argument("--download", action="store_true", help="allow fetching a hub model that is not here yet")


def _miniature_words(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--out", required=True, metavar="DIR", help="folder of the benchmark")
    verb.add_argument("--methods", nargs="+", action="extend", default=[], metavar="NAME", help="only these rows")
    verb.add_argument("--samples", type=values.whole(), default=32, metavar="N", help="worlds (default: 32)")
    length = "clips of each video, chained by their last frame (default: 50)"
    verb.add_argument("--clips", type=values.whole(), default=50, metavar="N", help=length)
    together = "videos made side by side (default: 8)"
    verb.add_argument("--batch", type=values.whole(), default=8, metavar="N", help=together)
    lora = "file of a LoRA that rows name: shot, shot-control, film, svi2, pro; repeat"
    verb.add_argument("--lora", nargs="+", action="extend", default=[], metavar="NAME=FILE", help=lora)
    verb.add_argument("--model", default="pocket", metavar="MODEL", help="the model of all rows (default: pocket)")
    verb.add_argument(
        "--sheets", type=values.whole(0), default=2, metavar="N", help="samples of which frames are shown"
    )
    _making_words(verb)
    _metric_words(verb)
    verb.set_defaults(foolers=[], retry_failed=True, dry_run=False, shard=(0, 1))


def _score_words(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("out", metavar="DIR", help="folder of the benchmark; scores go there")
    videos = "videos made elsewhere, by the name of their method; repeat"
    verb.add_argument("--videos", nargs="+", action="extend", default=[], metavar="NAME=PATH", help=videos)
    foolers = "methods that are known to cheat, for the plots"
    verb.add_argument("--foolers", nargs="+", action="extend", default=[], metavar="NAME", help=foolers)
    _metric_words(verb)
    verb.add_argument("--limit", type=values.whole(), metavar="N", help="only the first N videos of each method")
    verb.add_argument("--jobs", type=values.whole(), default=1, metavar="N", help="processes (default: 1)")
    verb.add_argument(
        "--shard", type=_shard, default=(0, 1), metavar="I/N", help="only every N-th video, from the I-th"
    )
    verb.add_argument("--retry-failed", action="store_true", help="try again what failed before")
    verb.add_argument("--dry-run", action="store_true", help="say what would be computed, and stop")


def _table_words(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("out", metavar="DIR", help="folder of the benchmark")
    verb.add_argument("--methods", nargs="+", action="extend", default=[], metavar="NAME", help="only these, in order")
    verb.add_argument("--against", metavar="NAME", help="the method that others are compared with (default: the first)")
    verb.add_argument("--suite", metavar="SUITE", help="whose rows of the paper to show (default: the folder's)")
    verb.add_argument("--force", action="store_true", help="compare although frame rates or sizes differ")


def _compare_words(verb: argparse.ArgumentParser) -> None:
    _table_words(verb)
    formats = values.one_of("format", lambda: list(FORMATS))
    verb.add_argument("--format", type=formats, default="md", metavar="F", help=f"{', '.join(FORMATS)} (default: md)")


def _report_words(verb: argparse.ArgumentParser) -> None:
    _table_words(verb)
    verb.add_argument("--title", metavar="TEXT", help="of the report")
    verb.add_argument("--to", metavar="DIR", help="where the files go (default: the folder itself)")
    sheets = "samples of which frames are shown (default: 2; they are read again)"
    verb.add_argument("--sheets", type=values.whole(0), default=2, metavar="N", help=sheets)


def _shard(text: str) -> tuple[int, int]:
    number, slash, count = text.partition("/")
    if not slash or not number.isdecimal() or not count.isdecimal() or int(number) >= int(count):
        raise argparse.ArgumentTypeError(f"must be I/N with I from 0 to N - 1, for instance 0/4, not {text!r}")
    return int(number), int(count)


def run(args: argparse.Namespace) -> int:
    """``svi bench``."""
    from svi.cli import bench_run

    return bench_speed.run(args) if args.verb == "speed" else bench_run.VERBS[args.verb](args)
