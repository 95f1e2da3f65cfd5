"""``svi lora info | convert | merge | extract``: words in, tables or JSON out. Heavy imports wait until a verb runs."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from svi.cli import DONE, values
from svi.cli.verbs import verbs_of
from svi.errors import UserError

if TYPE_CHECKING:
    from svi.backends.lora_tools import LoraInfo

SUMMARY = "look at LoRA files, convert, merge and extract them"
TEXT = """\
Everything about LoRA files. No verb ever drops a tensor unseen: what does not fit is named.

  svi lora info svi-film.safetensors --model FOLDER        what it is, and whether it fits a model
  svi lora convert svi-film.safetensors film-comfy.safetensors --to comfyui
  svi lora convert checkpoints/100.ckpt film.safetensors --to diffusers     a DeepSpeed folder of the published trainer
  svi lora merge FOLDER svi-film.safetensors:0.8 --out merged               a model with the LoRA in its weights
  svi lora extract FOLDER merged --rank 32 --out film-32.safetensors        the difference of two models as a LoRA
"""
INFO = """\
Format, ranks, alpha and scale, what it changes, types, size, hash, metadata; what in it is no LoRA; with --model whether
every tensor finds its place there (exit code 2 if not).
"""
CONVERT = """\
Write a LoRA under other names. A and B stay as they are, to the byte, and there is a way back.

IN is safetensors, a checkpoint of tensors (.ckpt .pt .pth .bin), one part of a sharded set, or a folder: DeepSpeed's, the
output of zero_to_fp32.py, or peft's. Of a checkpoint that holds the whole model the LoRA is taken, by name.

  diffusers   transformer.blocks.0.attn1.to_q.lora_A.weight; alpha in the metadata
  official    pipe.dit.blocks.0.self_attn.q.lora_A.default.weight, as the published SVI files; alpha is multiplied into B
  comfyui     diffusion_model.blocks.0.self_attn.q.lora_down.weight, and .alpha
"""
MERGE = """\
Write a model folder (in the layout of BASE) whose weights have the LoRAs in them, in the base's type, summed in fp32. What was
merged is recorded in svi.json there; merging or attaching the same LoRA again is refused.
"""
EXTRACT = """\
The low-rank difference of two models, as a LoRA: for each linear layer the nearest matrix of rank R, and how much of the
difference that keeps. What is no linear layer is named and left out.
"""
FORMATS = ("diffusers", "official", "comfyui")
DTYPES = ("float32", "bfloat16", "float16")
EXPERTS = ("high", "low")


# -- words -------------------------------------------------------------------------------------------------------------


def add_words(parser: argparse.ArgumentParser) -> None:
    """Give the parser of ``svi lora`` its verbs."""
    sub = verbs_of(parser)
    _info_words(_verb(sub, "info", "what a LoRA file is", INFO))
    _convert_words(_verb(sub, "convert", "write it under other names", CONVERT))
    _merge_words(_verb(sub, "merge", "put LoRAs into a model's weights", MERGE))
    _extract_words(_verb(sub, "extract", "make a LoRA of two models", EXTRACT))


def _verb(sub: Any, name: str, summary: str, text: str) -> argparse.ArgumentParser:
    verb: argparse.ArgumentParser = sub.add_parser(
        name,
        help=summary,
        description=text,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    verb.set_defaults(command="lora")
    verb.add_argument("--json", action="store_true", help="as JSON")
    return verb


def _choice(verb: argparse.ArgumentParser, option: str, what: str, names: tuple[str, ...], text: str) -> None:
    verb.add_argument(
        option, type=values.one_of(what, lambda: list(names)), metavar=what.upper(), help=f"{', '.join(names)}: {text}"
    )


def _model_words(verb: argparse.ArgumentParser) -> None:
    _choice(verb, "--expert", "expert", EXPERTS, "which one, for models of two (default: what the LoRA says)")
    verb.add_argument("--download", action="store_true", help="allow fetching a hub model that is not here yet")


def _info_words(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "files", nargs="+", metavar="FILE", help="LoRA file, trainer's folder, or a name in --model's folder"
    )
    verb.add_argument(
        "--model", metavar="MODEL", help="a model to hold it against: its headers are read, not its weights"
    )
    _model_words(verb)


def _convert_words(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("source", metavar="IN", help="file or folder")
    verb.add_argument("out", metavar="OUT", help="new .safetensors file")
    formats = values.one_of("format", lambda: list(FORMATS))
    verb.add_argument("--to", type=formats, required=True, metavar="FORMAT", help=", ".join(FORMATS))
    _choice(verb, "--dtype", "dtype", DTYPES, "storage type (default: as it is)")
    verb.add_argument("--lora-only", action="store_true", help="leave out what is no LoRA, instead of refusing it")
    leave = "leave out layers of such names, with * and ?; repeat for more"
    verb.add_argument("--drop", nargs="+", action="extend", default=[], metavar="PATTERN", help=leave)
    verb.add_argument("--preset", metavar="P", help="write into the metadata: the member of the SVI family it is for")
    _choice(verb, "--expert", "expert", EXPERTS, "write into the metadata")


def _merge_words(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("base", metavar="BASE", help="model: pocket, a folder or a hub id")
    verb.add_argument("loras", nargs="+", metavar="LORA[:STRENGTH]", help="name or file, with its strength (default 1)")
    verb.add_argument("--out", required=True, metavar="FOLDER", help="new model folder")
    verb.add_argument("--any-base", action="store_true", help="accept a LoRA that was trained on other weights")
    _model_words(verb)


def _extract_words(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("base", metavar="BASE", help="model: pocket, a folder or a hub id")
    verb.add_argument("tuned", metavar="TUNED", help="the same model with other weights")
    verb.add_argument("--rank", type=values.whole(), required=True, metavar="R", help="rank of the LoRA")
    verb.add_argument("--out", required=True, metavar="FILE", help="new .safetensors file")
    pattern = "only layers of such names, with * and ?; repeat for more (default: every linear layer)"
    verb.add_argument("--target", nargs="+", action="extend", default=[], metavar="PATTERN", help=pattern)
    formats = values.one_of("format", lambda: list(FORMATS))
    verb.add_argument("--to", type=formats, default="diffusers", metavar="FORMAT", help=", ".join(FORMATS))
    _choice(verb, "--dtype", "dtype", DTYPES, "storage type (default: float32)")
    verb.add_argument(
        "--device", default="cpu", metavar="DEVICE", help="where to compute: cpu, cuda ... (default: cpu)"
    )
    _model_words(verb)


# -- actions -----------------------------------------------------------------------------------------------------------


def run(args: argparse.Namespace) -> int:
    """``svi lora VERB``."""
    return {"info": _info, "convert": _convert, "merge": _merge, "extract": _extract}[args.verb](args)


def _info(args: argparse.Namespace) -> int:
    from svi.backends.lora_tools import info

    found = [info(file, model=args.model, expert=args.expert, allow_download=args.download) for file in args.files]
    if args.json:
        print(json.dumps([one.to_dict() for one in found], ensure_ascii=False))
    else:
        print("\n\n".join("\n".join(lines(one)) for one in found))
    unfit = [one for one in found if one.misfits]
    if unfit:
        raise UserError(f"{unfit[0].path} does not fit {args.model}: {(unfit[0].misfits or [''])[0]}")
    return DONE


def lines(found: LoraInfo) -> list[str]:
    """A LoRA for people to read."""
    kinds = ", ".join(f"{name} x{count}" for name, count in found.targets.items())
    rows = {
        "format": found.format,
        "size": f"{found.size_bytes / 2**20:.1f} MiB, {found.parameters:,} parameters, {_counts(found.dtypes)}",
        "sha256": found.sha256,
        "rank": _counts(found.ranks),
        "alpha": f"{_counts(found.alphas)}; effective scale {_counts(found.scales)}",
        "changes": f"{sum(found.targets.values())} layers in {found.blocks} blocks: {kinds}" if kinds else "no layer",
        "whole tensors": _some(found.differences),
        "other networks": _some([f"{name} ({owner})" for name, owner in found.networks.items()]),
        "no LoRA": _some([f"{name} ({what})" for name, what in found.foreign.items()]),
        "passed over": f"{found.skipped} tensors of the base model" if found.skipped else None,
    }
    stated = {**found.metadata, **found.other_metadata, "advised strength": found.advice}
    rows |= {name: _shown(value) for name, value in stated.items() if value and name not in rows}
    if found.misfits is not None:
        fits = "yes, every tensor" if not found.misfits else f"no: {_some(found.misfits)}"
        rows |= {f"fits {found.model}": fits, "its base": found.base}
    return [found.path, *(f"  {name}: {value}" for name, value in rows.items() if value)]


def _counts(counts: Mapping[str, int]) -> str:
    if len(counts) == 1:
        return next(iter(counts))
    return ", ".join(f"{name} (x{count})" for name, count in counts.items())


def _some(names: list[str], limit: int = 5) -> str | None:
    if not names:
        return None
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return f"{len(names)}: {', '.join(names[:limit])}{more}"


def _shown(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 160 else f"{text[:157]}..."


def _convert(args: argparse.Namespace) -> int:
    import torch

    from svi.backends.lora_read import LoraMetadata
    from svi.backends.lora_tools import convert
    from svi.conditioning.policy import get_policy

    preset = None if args.preset is None else get_policy(args.preset).name
    known = LoraMetadata(preset=preset, expert=args.expert)
    dtype = None if args.dtype is None else getattr(torch, args.dtype)
    out = Path(args.out)
    done = convert(args.source, out, args.to, dtype=dtype, lora_only=args.lora_only, drop=args.drop, known=known)
    record = {"out": str(done.out), "format": done.format, "layers": done.modules, "metadata": dict(done.metadata)}
    return _told(args, {**record, "notes": list(done.notes)}, str(done.out), done.notes)


def _merge(args: argparse.Namespace) -> int:
    from svi.backends.lora_merge import merge

    say = _progress(args)
    done = merge(
        args.base,
        args.loras,
        Path(args.out),
        expert=args.expert,
        any_base=args.any_base,
        allow_download=args.download,
        say=say,
    )
    remarks = [
        f"{done.changed} tensors changed, {done.unchanged} as they were, {done.size_bytes / 2**20:.1f} MiB of {done.dtype}",
        f"storing the sum in {done.dtype} cost {done.rounding:.2%} of what the LoRA changes",
    ]
    record = {"out": str(done.out), "loras": [dict(one) for one in done.loras], "rounding": done.rounding}
    record |= {"changed": done.changed, "unchanged": done.unchanged, "dtype": done.dtype}
    return _told(args, record, str(done.out), remarks)


def _extract(args: argparse.Namespace) -> int:
    import torch

    from svi.backends.lora_extract import extract

    done = extract(
        args.base,
        args.tuned,
        Path(args.out),
        rank=args.rank,
        targets=args.target,
        to=args.to,
        dtype=getattr(torch, args.dtype or "float32"),
        device=args.device,
        expert=args.expert,
        allow_download=args.download,
        say=_progress(args),
    )
    remarks = [f"rank {done.rank} keeps {done.energy:.2%} of the squared difference of {len(done.modules)} layers"]
    if done.left_out:
        share = f"{done.left_out_energy:.2%} of the whole difference"
        remarks.append(f"left out, for they are no chosen linear layers ({share}): {_some(list(done.left_out))}")
    record = {"out": str(done.out), "rank": done.rank, "energy": done.energy, "layers": dict(done.modules)}
    record |= {"equal": done.equal, "left_out": list(done.left_out), "left_out_energy": done.left_out_energy}
    return _told(args, record, str(done.out), remarks)


def _told(args: argparse.Namespace, record: dict[str, Any], path: str, remarks: Any) -> int:
    print(
        json.dumps(record, ensure_ascii=False) if args.json else "\n".join([path, *(f"  {line}" for line in remarks)])
    )
    return DONE


def _progress(args: argparse.Namespace) -> Any:
    """Lines on a terminal's error output; nothing for scripts."""
    if args.json or not sys.stderr.isatty():
        return lambda line: None
    return lambda line: print(f"svi: {line}", file=sys.stderr)
