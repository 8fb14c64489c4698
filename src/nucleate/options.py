"""What can be written on the command line: options that verbs share, and what their words mean."""

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field
from functools import reduce
from operator import or_
from typing import Any, NoReturn

from nucleate.config import FAST, SECTIONS, SIZES, Config, configure
from nucleate.probing.settings import ProbeSettings, TransferSettings
from nucleate.redirecting.settings import RedirectSettings
from nucleate.refusal import Refused, nearest
from nucleate.settings import explained, fields_of, is_repeated, kind_of, option_of, parse

_SIZES = [size for size in SIZES if size != "micro"]  # micro is for tests: whole, fast, and nothing is learnt
ENGINES = ("local", "ray", "slurm")
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
    top = fields_of(Config)
    parser.add_argument("--size", default="tiny", metavar="|".join(_SIZES), help="the one dial (default: tiny)")
    _add(parser, "--seed", top["seed"])
    if network:
        for option, key in SHORT.items():
            section, _, name = key.partition(".")
            one = fields_of(SECTIONS[section])[name]
            parser.add_argument(f"--{option}", metavar=option.upper(), help=f"{one.metadata['meaning']}; sets {key}")
        _add(parser, "--device", top["device"])
        _add(parser, "--dtype", top["dtype"])
        parser.add_argument(
            "--fast", action="store_true", help="the packed law of batches: an epoch costs less and teaches less"
        )
    parser.add_argument(
        "--set", action="append", default=[], metavar="section.key=value", help="any setting; see nucleate settings"
    )


def add_probe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "models", nargs="+", metavar="MODEL", help="folder, GGUF file or hub id; a folder of checkpoints"
    )
    parser.add_argument(
        "data",
        metavar="DATA",
        help="JSONL, CSV, TSV, Parquet, a dataset's folder; or natural, natural-shared, natural-sentences",
    )
    parser.add_argument("--base", metavar="M", help="the model before its fine-tuning, to compare with")
    add_fields(parser, ProbeSettings)
    add_engine(parser, ENGINES[:2], "processes that read the prompts, one thread each (default: this one reads)")
    parser.add_argument("--estimate", action="store_true", help="say what it will take, and stop; needs no weights")
    parser.add_argument(
        "--require",
        action="append",
        default=[],
        metavar="BAR",
        help="exit with 3 unless it holds: readable>=0.9; also clustered, readable_tasks, clustered_tasks, doubtful",
    )
    add_out(parser, "RUN", required=False)


def add_transfer(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a run of ours, a folder, a GGUF file or a hub id")
    parser.add_argument(
        "data",
        metavar="DATA",
        help="prompts as for nucleate probe, with outputs, and with inputs that tasks share: a dataset's folder, a "
        "file, natural-shared",
    )
    add_fields(parser, TransferSettings)
    add_out(parser, "RUN")


_SHARED = ("device", "dtype", "seed")  # with the paper's own networks
_REDIRECT = (name for name, one in fields_of(RedirectSettings).items() if option_of(one) and name not in _SHARED)
REDIRECT = ("data", *_REDIRECT, "estimate")  # options that belong to --model; all are None unless given


def add_redirect(parser: argparse.ArgumentParser) -> None:
    """Beside those of `add_settings`."""
    parser.add_argument("--model", metavar="M", help="redirect this one: folder, GGUF file or hub id")
    parser.add_argument("--data", metavar="D", help="with --model: labelled prompts, as for nucleate probe")
    add_fields(parser, RedirectSettings, without=_SHARED)
    parser.add_argument("--estimate", action="store_true", default=None, help="say what it will take, and stop")


def add_fields(parser: argparse.ArgumentParser, kind: type, *, without: tuple[str, ...] = ()) -> None:
    """An option for each field of a settings class; what is not given is None."""
    for name, one in fields_of(kind).items():
        if name not in without and (option := option_of(one)) is not None:
            _add(parser, option, one)


def _add(parser: argparse.ArgumentParser, option: str, one: Field[Any]) -> None:
    help = explained(one)
    if kind_of(one) is bool:
        parser.add_argument(option, dest=one.name, action="store_true", default=None, help=help)
        return
    form = "|".join(one.metadata["choices"]) or one.metadata["form"] or one.name.upper()
    action = "append" if is_repeated(one) else "store"
    parser.add_argument(option, dest=one.name, action=action, metavar=form, help=help)


def given_of(asked: argparse.Namespace, kind: type) -> dict[str, Any]:
    """The fields of a settings class that `add_fields` asked for and that were given, each as its type."""
    given: dict[str, Any] = {}
    for name, one in fields_of(kind).items():
        typed, option = getattr(asked, name, None), option_of(one)
        if typed is None or option is None:
            if one.default is MISSING:
                raise Refused(f"nucleate {asked.verb} needs {option} {one.metadata['form']}, {one.metadata['meaning']}")
        elif isinstance(typed, list):
            parts = [parse(option, text, one) for text in typed]
            given[name] = reduce(or_, parts) if isinstance(parts[0], dict) else sum(parts, ())
        else:
            given[name] = parse(option, typed, one) if isinstance(typed, str) else typed
    return given


def add_engine(parser: argparse.ArgumentParser, engines: Sequence[str], workers: str) -> None:
    parser.add_argument("--engine", choices=engines, default="local", help="where that is done (default: local)")
    parser.add_argument("--workers", type=int, metavar="N", help=workers)
    parser.add_argument("--address", metavar="HOST:PORT", help="with ray: a cluster that is running (default: none is)")


def add_out(parser: argparse.ArgumentParser, name: str, *, required: bool = True) -> None:
    parser.add_argument("--out", required=required, metavar=name, help="folder to write to")
    parser.add_argument("--resume", action="store_true", help="go on with a killed run, or begin one")
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")


def config_of(asked: argparse.Namespace) -> Config:
    """The settings that `add_settings` asked for."""
    changes = dict(map(key_and_value, asked.set))
    given = vars(asked)
    for option, key in SHORT.items():
        if (text := given.get(option)) is not None:
            section, _, name = key.partition(".")
            changes[key] = str(parse(f"--{option}", text, fields_of(SECTIONS[section])[name]))
    if given.get("fast"):
        key, law = FAST
        if changes.setdefault(key, law) != law:
            raise Refused(f"--fast asks for {key}={law}, --set for {key}={changes[key]}: leave one of them out")
    known = fields_of(Config)
    typed = {name: text for name in ("seed", "device", "dtype") if (text := given.get(name)) is not None}
    top = {name: parse(f"--{name}", text, known[name]) for name, text in typed.items()}
    return configure(asked.size or "tiny", changes=changes, **top)


def key_and_value(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise Refused(f"--set {text!r} is not of the form section.key=value")
    return key.strip(), value.strip()
