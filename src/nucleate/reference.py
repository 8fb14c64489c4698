"""The reference, `docs/reference.md`, written from the parser, the settings and the doors themselves.

python -m nucleate.reference > docs/reference.md
"""

import argparse
import ast
import inspect
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import is_dataclass
from typing import Any

import nucleate
from nucleate import progress
from nucleate.cli import _parser
from nucleate.config import describe, paper
from nucleate.data import sources
from nucleate.model import subjects
from nucleate.report.markdown import markdown_table

_WIDEST = 100  # characters of a signature in one line
_TYPES = {"Model": subjects, "Source": sources, "Progress": progress}  # names of types -> where they are given
_CLAIMED = {  # of a probe's measure -> what is claimed, whose claim it is, how it is measured here
    "effective_rank": (
        "states that fill more directions serve later tasks better, told without any label; among runs of one method",
        "RankMe: Garrido, Balestriero, Najman, LeCun, ICML 2023 (arXiv 2210.02885)",
        "of states less their mean, where theirs are taken as they are",
    ),
    "intrinsic_dimension": (
        "it peaks in middle layers of trained language models and not of untrained ones; the earlier, the better the "
        "model",
        "TwoNN: Facco, d'Errico, Rodriguez, Laio, Scientific Reports 2017; the peak: Cheng and others, ICLR 2025 "
        "(arXiv 2405.15471)",
        "TwoNN, the nearest scale alone; states that coincide count once",
    ),
    "parent_cosine": (
        "what sets a kind apart from what it is a kind of is at right angles to that: 0",
        "Park, Choe, Jiang, Veitch, ICLR 2025 (arXiv 2406.01506)",
        "distributions in tasks, mean hidden states, plain products; theirs are words of the unembedding in an inner "
        "product of its own, and in the plain one they do not find it",
    ),
    "knn_share_other_format": (
        "a task asked in another way is the same vector; or another one, that overlaps in part",
        "the same: Todd and others, ICLR 2024 (arXiv 2310.15213); another: Davidson, Gureckis, Lake, Williams, NeurIPS "
        "2025 (arXiv 2505.12075)",
        "of the ten nearest states of another `format`, the share with the same task; theirs are vectors of attention "
        "heads",
    ),
}


def reference() -> str:
    """The whole document."""
    parts = [
        "# Reference",
        "Written by `python -m nucleate.reference` from the sources; a test holds that it says what they say.",
        "## Verbs",
        *_verbs(),
        "## Settings",
        "`--set section.key=value` changes one. The values are those of size paper; `nucleate settings --size S` shows "
        "those of another.",
        _table(("setting", "value", "meaning"), [(f"`{key}`", f"`{value}`", told) for key, value, told in _settings()]),
        "## Claims that a probe can be held against",
        "A probe measures these at every layer, with the untrained network beside where that is read; "
        "[tables.md](tables.md) says how.",
        _table(("measure", "claimed", "by", "here"), [(f"`{one}`", *told) for one, told in _CLAIMED.items()]),
        "## From Python",
        "`import nucleate` loads nothing heavy; each name brings what it needs when it is first used.",
        *(f"`{name}` is `{_given(name, module)}`." for name, module in _TYPES.items()),
        *(part for name in nucleate.__all__ for part in _name(name)),
    ]
    return "\n\n".join(parts) + "\n"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    shown = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join(markdown_table(header, shown)).rstrip()


def _settings() -> Iterator[tuple[str, Any, str]]:
    return (row for row in describe(paper()) if "." in row[0])


# --- verbs -----------------------------------------------------------------------------------------------------------


def _verbs() -> Iterator[str]:
    (verbs,) = (one for one in _parser()._actions if isinstance(one, argparse._SubParsersAction))
    for name, parser in verbs.choices.items():
        yield f"### nucleate {name}"
        yield f"{parser.description[0].upper()}{parser.description[1:]}."
        rows = [(f"`{_typed(one)}`", str(one.help)) for one in parser._actions if one.dest != "help"]
        yield _table(("argument", "meaning"), rows)


def _typed(one: argparse.Action) -> str:
    """An argument as it is typed."""
    form = str(one.metavar or "|".join(one.choices or ()) or one.dest.upper())
    if one.option_strings:
        return one.option_strings[0] if one.nargs == 0 else f"{one.option_strings[0]} {form}"
    return f"{form} [{form} …]" if one.nargs == "+" else form


# --- names -----------------------------------------------------------------------------------------------------------


def _name(name: str) -> Iterator[str]:
    """Heading, signature as it is written, and documentation."""
    named = getattr(nucleate, name)
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(named))).body
    yield f"### nucleate.{name}"
    yield f"```python\n{_signature(definition, is_dataclass(named))}\n```"
    yield inspect.getdoc(named) or ""


def _signature(definition: ast.stmt, is_record: bool) -> str:
    result = ""
    if isinstance(definition, ast.FunctionDef):
        arguments = _arguments(definition.args)
        result = f" -> {ast.unparse(definition.returns)}" if definition.returns else ""
    elif isinstance(definition, ast.ClassDef):
        made = [one for one in definition.body if isinstance(one, ast.FunctionDef) and one.name == "__init__"]
        arguments = [part for one in made for part in _arguments(one.args)[1:]]  # without self
        if is_record:
            arguments = [ast.unparse(one) for one in definition.body if isinstance(one, ast.AnnAssign)]
        elif not made:
            return f"class {definition.name}({', '.join(map(ast.unparse, definition.bases))})"
    else:
        raise TypeError(f"{definition} is neither a function nor a class")
    line = f"{definition.name}({', '.join(arguments)}){result}"
    if len(line) <= _WIDEST:
        return line
    return "\n".join([f"{definition.name}(", *(f"    {one}," for one in arguments), f"){result}"])


def _arguments(given: ast.arguments) -> list[str]:
    first = len(given.args) - len(given.defaults)
    plain = [_argument(one, given.defaults[n - first] if n >= first else None) for n, one in enumerate(given.args)]
    named = [_argument(one, default) for one, default in zip(given.kwonlyargs, given.kw_defaults, strict=True)]
    return [*plain, *(["*"] if named else []), *named]


def _argument(one: ast.arg, default: ast.expr | None) -> str:
    return ast.unparse(one) if default is None else f"{ast.unparse(one)} = {ast.unparse(default)}"


def _given(name: str, module: Any) -> str:
    """What a name of a type stands for, as it is written."""
    for one in ast.parse(inspect.getsource(module)).body:
        if isinstance(one, ast.Assign) and ast.unparse(one.targets[0]) == name:
            return ast.unparse(one.value)
    raise LookupError(name)


if __name__ == "__main__":
    print(reference(), end="")
