"""``svi models list | check | download | convert``: words in, tables or JSON out. Heavy imports wait until a verb runs."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from svi.cli import BAD_INPUT, DONE, values
from svi.cli.verbs import verbs_of

if TYPE_CHECKING:
    from svi.backends.models_check import Report

SUMMARY = "what each preset needs, and whether it is here and whole; download and convert models"
TEXT = """\
Models and LoRAs: which there are, what is here, whether it is whole.

  svi models list                                   presets with their models and LoRAs, sizes, and what is here already
  svi models list --preset pro                      one preset, with file names
  svi models check FOLDER                           reads headers only: seconds, whatever the size
  svi models download svi2-wan22 --to weights       the model and the LoRAs of a preset; resumes, verifies every hash
  svi models convert weights/Wan2.1-I2V-14B-480P wan21 --dtype bf16         a diffusers folder, written once
"""
CHECK = """\
Names every missing, truncated or foreign file, and the command that mends it; exit code 2 if there is one. MODEL is a folder (in
the diffusers or the official Wan layout, or of single files as ComfyUI has them), a hub id in the cache, or one weight file:
then it says what that is.
"""
DOWNLOAD = """\
WHAT is a model (svi models list), a preset (its model and its LoRAs), a LoRA, or a hub id. A download that was stopped goes on
where it was; every file is compared with the hash that the hub states. Without --to files go to the hub client's cache.
"""
CONVERT = """\
Writes any model that can be loaded (single files, fp8, GGUF, the official layout) as a diffusers folder, tensor by tensor. VAE
and CLIP stay in fp32, as do the parts of the transformer that the reference keeps so.
"""
DTYPES = ("float32", "bfloat16", "float16")
LAYOUTS = ("diffusers", "official")


# -- words -------------------------------------------------------------------------------------------------------------


def add_words(parser: argparse.ArgumentParser) -> None:
    """Give the parser of ``svi models`` its verbs."""
    sub = verbs_of(parser)
    listed = _verb(sub, "list", "presets, models and LoRAs", "What each preset needs.")
    listed.add_argument("--preset", metavar="P", help="this one only, with file names")
    check = _verb(sub, "check", "is a model whole?", CHECK)
    check.add_argument("model", metavar="MODEL", help="folder, hub id, or weight file")
    fetch = _verb(sub, "download", "fetch a model, a preset's files, or a LoRA", DOWNLOAD)
    fetch.add_argument("what", metavar="WHAT", help="model, preset, LoRA or hub id")
    fetch.add_argument(
        "--to", type=Path, metavar="FOLDER", help="folder for the files (default: the hub client's cache)"
    )
    fetch.add_argument(
        "--layout", type=_one_of("layout", LAYOUTS), default="diffusers", metavar="L", help=", ".join(LAYOUTS)
    )
    convert = _verb(sub, "convert", "write a model as a diffusers folder", CONVERT)
    convert.add_argument("model", metavar="MODEL", help="folder or hub id")
    convert.add_argument("out", type=Path, metavar="OUT", help="new folder")
    convert.add_argument(
        "--dtype", type=_one_of("dtype", DTYPES), default="bfloat16", metavar="D", help=", ".join(DTYPES)
    )


def _verb(sub: Any, name: str, summary: str, text: str) -> argparse.ArgumentParser:
    shape = argparse.RawDescriptionHelpFormatter
    verb: argparse.ArgumentParser = sub.add_parser(
        name, help=summary, description=text, formatter_class=shape, allow_abbrev=False
    )
    verb.set_defaults(command="models")
    verb.add_argument("--json", action="store_true", help="as JSON")
    return verb


def _one_of(what: str, names: tuple[str, ...]) -> Any:
    return values.one_of(what, lambda: list(names))


# -- actions -----------------------------------------------------------------------------------------------------------


def run(args: argparse.Namespace) -> int:
    """``svi models VERB``."""
    return {"list": _list, "check": _check, "download": _download, "convert": _convert}[args.verb](args)


def _list(args: argparse.Namespace) -> int:
    rows = catalogue(args.preset)
    if args.json:
        print(json.dumps(rows, ensure_ascii=False))
        return DONE
    for row in rows:
        loras = ", ".join(lora["name"] for lora in row["loras"]) or "none"
        here = "here" if row["here"] else f"svi models download {row['preset']}"
        print(f"{row['preset']:17} {row['model']:16} {_size(row['size_bytes']):>9}  {here}")
        print(f"{'':17} LoRA: {loras}")
        if args.preset:
            print(f"{'':17} {row['hub_id']} (diffusers), {row['official_id']} (official); licence {row['licence']}")
            for part in row["parts"]:
                print(f"{'':17}   {part['name']}: {part['parameters']:,} parameters, {_size(part['size_bytes'])}")
            for lora in row["loras"]:
                print(f"{'':17}   {lora['hub_id']} {lora['file']}, {_size(lora['size_bytes'])}")
    return DONE


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def catalogue(preset: str | None = None) -> list[dict[str, Any]]:
    """What each preset needs, as plain data; ``preset``: that one only.

    Raises:
        UserError: for a name that is no preset.
    """
    from svi.backends.catalogue import LORAS, model_of
    from svi.backends.models_download import downloaded
    from svi.conditioning.policy import PRESETS, get_policy

    rows: list[dict[str, Any]] = []
    for policy in [get_policy(preset)] if preset else PRESETS.values():
        model = model_of(policy.base)
        if model is None:
            continue
        loras = [
            {
                "name": lora.name,
                "hub_id": lora.hub_id,
                "file": lora.file,
                "size_bytes": lora.size_bytes,
                "side": lora.side,
            }
            for lora in LORAS.get(policy.name, ())
        ]
        rows.append(
            {
                "preset": policy.name,
                "model": model.name,
                "hub_id": model.hub_id,
                "official_id": model.official_id,
                "licence": model.licence,
                "size_bytes": model.size_bytes() + sum(int(lora["size_bytes"] or 0) for lora in loras),
                "here": downloaded(model.name),
                "parts": [
                    {"name": part.name, "parameters": part.parameters, "size_bytes": part.diffusers_bytes}
                    for part in model.parts
                ],
                "loras": loras,
            }
        )
    return rows


def _check(args: argparse.Namespace) -> int:
    from svi.backends.models_check import check
    from svi.backends.weights import quiet_libraries

    with quiet_libraries():
        report = check(args.model)
    print(json.dumps(report.to_dict(), ensure_ascii=False) if args.json else "\n".join(lines(report)))
    return BAD_INPUT if report.problems else DONE


def lines(report: Report) -> list[str]:
    """A report for people to read."""
    table = [
        f"  {row.part:22} {row.state:8} {_size(row.bytes):>9} in {row.files:2} file(s)  {row.title}"
        for row in report.rows
    ]
    verdict = ["  whole: every tensor has its place"] if not report.problems else []
    return [f"{report.folder} ({report.layout})", *table, *(f"  ! {problem}" for problem in report.problems), *verdict]


def _download(args: argparse.Namespace) -> int:
    from svi.backends.models_download import download

    paths = download(args.what, to=args.to, layout=args.layout, say=_progress(args))
    print(json.dumps([str(path) for path in paths]) if args.json else "\n".join(map(str, paths)))
    return DONE


def _convert(args: argparse.Namespace) -> int:
    from svi.backends.models_convert import convert

    done = convert(args.model, args.out, dtype=args.dtype, say=_progress(args))
    if args.json:
        print(json.dumps({"folder": str(done.folder), "bytes": done.bytes}))
    else:
        print(done.folder, *(f"  {name}: {_size(size)}" for name, size in done.bytes.items()), sep="\n")
    return DONE


def _progress(args: argparse.Namespace) -> Any:
    """Lines on the error output; nothing for scripts."""
    if args.json:
        return lambda line: None
    return lambda line: print(f"svi: {line}", file=sys.stderr)
