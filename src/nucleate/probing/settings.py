"""How to probe: every option with its meaning, for Python, the command line and the reference alike."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from nucleate.devices import DEVICES, PRECISIONS
from nucleate.refusal import Refused, nearest
from nucleate.settings import check_all, setting


@dataclass(frozen=True)
class ProbeSettings:
    """How to probe; an impossible value is refused when it is made."""

    columns: Mapping[str, str] | None = setting(
        None,
        "names of columns, as task=label; ours are instruction, prompt, text, messages, input, task, output, "
        "distribution, mapping, format, split",
        form="ours=theirs,…",
    )
    limit: int | None = setting(None, "read so many prompts, spread over the tasks", form="N")
    template: str | None = setting(
        None, "how a prompt is put together (default: {instruction} {input})", form="TEMPLATE"
    )
    chat: bool = setting(False, "as the user's turn of the model's chat template")
    layers: Sequence[int] | None = setting(None, "only these layers", form="0,8,…")
    revisions: Sequence[str] = setting((), "of a hub id; several make a series", form="R", option="revision")
    dtype: str = setting("float32", "precision of the weights; auto: as they are stored", choices=PRECISIONS)
    device: str = setting("auto", "where to compute: auto (cuda if there is one), cpu or cuda", choices=DEVICES)
    trust_remote_code: bool = setting(False, "run code that comes with the model")
    loading: Mapping[str, Any] | None = setting(
        None, "of from_pretrained of transformers, as device_map=auto", form="name=value"
    )
    thorough: bool = setting(False, "every read, space and control at every layer")
    seed: int = setting(100, "root of every random stream", least=0)
    perplexity: float = setting(10, "of t-SNE", least=1, option=None)
    iterations: int = setting(1000, "of t-SNE", least=1, option=None)
    initialisations: int = setting(10, "of k-means; the best is kept", least=1, option=None)
    repeats: int = setting(20, "deals of the shuffled and regrouped labels, averaged", least=1, option=None)

    def __post_init__(self) -> None:
        check_all(self)


@dataclass(frozen=True)
class TransferSettings:
    """How to move states from task to task; an impossible value is refused when it is made."""

    columns: Mapping[str, str] | None = setting(
        None, "names of columns, as for nucleate probe; input, task and output are needed", form="ours=theirs,…"
    )
    limit: int | None = setting(None, "read so many prompts, spread over the tasks", form="N")
    template: str | None = setting(
        None, "how a prompt is put together (default: {instruction} {input})", form="TEMPLATE"
    )
    chat: bool = setting(False, "as the user's turn of the model's chat template")
    layers: Sequence[int] | None = setting(None, "only these layers", form="0,8,…")
    pairs: int = setting(2000, "pairs of prompt and task that are moved in each half, at most", least=30, form="N")
    revision: str | None = setting(None, "of a hub id", form="R")
    dtype: str = setting("float32", "precision of the weights; auto: as they are stored", choices=PRECISIONS)
    device: str = setting("auto", "where to compute: auto (cuda if there is one), cpu or cuda", choices=DEVICES)
    trust_remote_code: bool = setting(False, "run code that comes with the model")
    loading: Mapping[str, Any] | None = setting(
        None, "of from_pretrained of transformers, as device_map=auto", form="name=value"
    )
    seed: int = setting(100, "root of every random stream", least=0)

    def __post_init__(self) -> None:
        check_all(self)


BARS = ("readable", "clustered", "readable_tasks", "clustered_tasks", "doubtful")
_FORM = re.compile(r"\s*([a-z_]+)\s*(>=|<=)\s*(\d+(?:\.\d+)?)\s*")


class Bar(NamedTuple):
    """A number that a probe has to reach, or to stay under."""

    name: str  # of BARS
    at_least: bool
    value: float

    def is_met(self, found: float | None) -> bool:
        """What is unknown meets no bar."""
        return found is not None and (found >= self.value if self.at_least else found <= self.value)


def bar(text: str) -> Bar:
    """`readable>=0.9`; refused where it is not of this form."""
    found = _FORM.fullmatch(text)
    if found is None:
        raise Refused(f"--require {text!r} is not of the form readable>=0.9: a name, >= or <=, a number")
    name, sign, value = found.groups()
    if name not in BARS:
        raise Refused(f"--require {text!r}: {name!r} is none of {', '.join(BARS)}{nearest(name, BARS)}")
    if name in ("readable", "clustered") and float(value) > 1:
        raise Refused(f"--require {text!r}: {name} is a share from 0 to 1")
    return Bar(name, sign == ">=", float(value))
