"""What can be written on the command line: options that verbs share, and what their words mean."""

import argparse
import json
import re
from collections.abc import Mapping
from typing import Any, NoReturn

from nucleate.config import FAST, SIZES, Config, configure
from nucleate.refusal import Refused, nearest

_SIZES = [size for size in SIZES if size != "micro"]  # micro is for tests: whole, fast, and nothing is learnt
SHORT = {"width": "model.width", "epochs": "training.epochs"}  # options that are short for a setting


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line and exits with 2; misspelt verbs and options get a suggestion."""

    passes_on: Mapping[str, "Parser"] = {}  # verb -> whose options are kept, as `passed`, where `swept` names it

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        known, passed = super().parse_known_args(args, namespace)
        options = self._option_string_actions.keys() - {"-h"}
        if self.passes_on:
            options |= self.passes_on[known.swept]._option_string_actions.keys() - {"-h"}
            known.passed = passed
        for name in (word.partition("=")[0] for word in passed if word.startswith("--")):
            if name not in options:
                raise Refused(f"option {name} is unknown{nearest(name, options)}")
        return known, [] if self.passes_on else passed

    def error(self, message: str) -> NoReturn:
        if found := re.match(r"argument (\S+): invalid choice: '(.*?)' \(choose from (.*)\)", message):
            there = re.findall(r"[\w-]+", found[3])
            raise Refused(f"{found[1]} {found[2]!r} is unknown{nearest(found[2], there)}")
        raise Refused(f"{message}; {self.prog} --help shows what there is")


def add_settings(parser: argparse.ArgumentParser, *, network: bool = True) -> None:
    """Those of a size; without a `network`, those of its data."""
    parser.add_argument("--size", default="tiny", metavar="|".join(_SIZES), help="the one dial (default: tiny)")
    parser.add_argument("--seed", type=int, help="root of every random stream (default: 100)")
    if network:
        parser.add_argument("--width", type=int, help="hidden dimension of the network")
        parser.add_argument("--epochs", type=int, help="epochs to train")
        parser.add_argument(
            "--device", choices=("auto", "cpu", "cuda"), help="where to compute (default: cuda if there is one)"
        )
        parser.add_argument("--dtype", help="float32 or bfloat16 (default: float32)")
        parser.add_argument(
            "--fast", action="store_true", help="the packed law of batches: an epoch costs less and teaches less"
        )
    parser.add_argument(
        "--set", action="append", default=[], metavar="section.key=value", help="any setting; see nucleate settings"
    )


_COLUMNS = "ours: instruction, prompt, text, messages, input, task, output, distribution, mapping, split"


def add_probe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "models", nargs="+", metavar="MODEL", help="folder, GGUF file or hub id; a folder of checkpoints"
    )
    parser.add_argument(
        "data",
        metavar="DATA",
        help="JSONL, CSV, Parquet, a dataset's folder; or natural, natural-shared, natural-sentences",
    )
    parser.add_argument("--base", metavar="M", help="the model before its fine-tuning, to compare with")
    parser.add_argument("--columns", default="", metavar="ours=theirs,…", help=f"as task=label; {_COLUMNS}")
    parser.add_argument("--template", help="how a prompt is put together (default: {instruction} {input})")
    parser.add_argument("--chat", action="store_true", help="as the user's turn of the model's chat template")
    parser.add_argument("--layers", metavar="0,8,…", help="only these layers")
    parser.add_argument("--limit", type=int, metavar="N", help="read so many prompts, spread over the tasks")
    parser.add_argument("--revision", action="append", default=[], metavar="R", help="of a hub id; again for a series")
    parser.add_argument("--dtype", default="float32", help="precision of the weights, or auto (default: float32)")
    parser.add_argument("--device", default="auto", help="where to compute (default: cuda if there is one)")
    parser.add_argument(
        "--loading", action="append", default=[], metavar="name=value", help="of from_pretrained, as device_map=auto"
    )
    parser.add_argument("--thorough", action="store_true", help="every read, space and control at every layer")
    parser.add_argument("--estimate", action="store_true", help="say what it will take, and stop; needs no weights")
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that comes with the model")
    parser.add_argument("--seed", type=int, default=100, help="root of every random stream (default: 100)")
    add_out(parser, "RUN", required=False)


# Options that only a model has which is redirected; all are None unless given.
REDIRECT = (
    *("data", "source", "target", "outputs", "columns", "template", "chat", "limit", "examples", "switch", "copy"),
    *("estimate", "trust_remote_code"),
)


def add_redirect(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", metavar="M", help="redirect this one: folder, GGUF file or hub id")
    parser.add_argument("--data", metavar="D", help="with --model: labelled prompts, as for nucleate probe")
    parser.add_argument("--source", metavar="A", help="the distribution, or task, to be answered otherwise")
    parser.add_argument("--target", metavar="B", help="another with the same inputs, whose outputs it shall give")
    parser.add_argument("--outputs", metavar="FILE", help="or a table with the columns input and output")
    parser.add_argument("--columns", metavar="ours=theirs,…", help="names of columns, as task=label")
    parser.add_argument("--template", help="how a prompt is put together (default: {instruction} {input})")
    parser.add_argument("--limit", type=int, metavar="N", help="prompts of each distribution or task (default: 200)")
    parser.add_argument("--examples", type=int, metavar="N", help="of each other that the switch sees (default: 1)")
    parser.add_argument("--switch", metavar="linear|mlp", help="which one is saved (default: mlp)")
    for option, help in {
        "chat": "as the user's turn of the model's chat template",
        "copy": "save the original weights with the switch, not where they lie",
        "estimate": "say what it will take, and stop",
        "trust-remote-code": "run code that comes with the model",
    }.items():
        parser.add_argument(f"--{option}", action="store_true", default=None, help=help)


def numbers(text: str) -> tuple[int, ...]:
    """Of --layers."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise Refused(f"--layers {text!r}: give whole numbers between commas, as 0,8,16") from None


def loading(text: str) -> tuple[str, Any]:
    """One --loading: the value is JSON, or text."""
    name, value = _sides(text, "--loading", "name=value")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def columns(text: str) -> dict[str, str]:
    """Of --columns: ours to theirs."""
    return dict(_sides(part, "--columns", "ours=theirs") for part in text.split(",") if part)


def _sides(text: str, option: str, form: str) -> tuple[str, str]:
    ours, equals, theirs = (part.strip() for part in text.partition("="))
    if not (ours and equals and theirs):
        raise Refused(f"{option} {text!r} is not of the form {form}")
    return ours, theirs


def add_out(parser: argparse.ArgumentParser, name: str, *, required: bool = True) -> None:
    parser.add_argument("--out", required=required, metavar=name, help="folder to write to")
    parser.add_argument("--resume", action="store_true", help="go on with a killed run, or begin one")
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")


def config_of(asked: argparse.Namespace) -> Config:
    """The settings that `add_settings` asked for."""
    changes = dict(map(key_and_value, asked.set))
    given = vars(asked)
    changes |= {key: str(given[option]) for option, key in SHORT.items() if given.get(option) is not None}
    if given.get("fast"):
        key, law = FAST
        if changes.setdefault(key, law) != law:
            raise Refused(f"--fast asks for {key}={law}, --set for {key}={changes[key]}: leave one of them out")
    top = {name: given.get(name) for name in ("seed", "device", "dtype")}
    return configure(asked.size or "tiny", changes=changes, **top)


def key_and_value(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise Refused(f"--set {text!r} is not of the form section.key=value")
    return key.strip(), value.strip()
