"""The models that are asked for: which ones, how old, with what tokenizer, at what price; what can be refused of them
is refused before their weights are opened."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nucleate.files import file_name
from nucleate.model.batches import layers_of
from nucleate.model.converted import conversion_told
from nucleate.model.estimate import Estimate, estimate
from nucleate.model.networks import as_network, network_shape, tokenizer_of
from nucleate.model.places import base_of, looks_local
from nucleate.model.series import base_here, checksum, find_models, located, refuse_twins
from nucleate.progress import Progress, silent
from nucleate.refusal import Refused

Model = str | Path | PreTrainedModel  # a folder, a file or a hub id; or a network that is loaded


@dataclass(frozen=True)
class Subject:
    """A model, not loaded yet."""

    name: str
    what: Model | None  # None: one that is gone
    tokenizer: PreTrainedTokenizerBase | None  # None: its own
    loading: Mapping[str, Any]
    epoch: int | None = None
    step: int | None = None
    checksum: str | None = None

    @property
    def file(self) -> str:
        """Its name, fit for a file."""
        return file_name(self.name)

    @property
    def age(self) -> dict[str, int | None]:
        return {"epoch": self.epoch, "step": self.step}

    @cached_property
    def shape(self) -> Any:
        """The network without its weights."""
        own = {name: self.loading[name] for name in ("revision", "trust_remote_code") if name in self.loading}
        return network_shape(self.what, **own)

    def layers(self, asked: Sequence[int] | None) -> list[int]:
        """The layers that are asked for, each once, in order; all for None."""
        reader = self.shape.get_encoder() if self.shape.config.is_encoder_decoder else self.shape
        return sorted(set(layers_of(reader, asked)))

    def estimate(self, prompts: int, tokens: int, *, layers: int) -> Estimate:
        """What one reading will take."""
        settings = {name: self.loading[name] for name in ("dtype", "device") if name in self.loading}
        return estimate(self.shape, prompts, tokens, layers=layers, **settings)

    def ready(self) -> Self:
        """The same with its tokenizer, and with its weights on this machine and their checksum known."""
        what, loading, found = self.what, self.loading, self.checksum
        if isinstance(what, str | Path) and not looks_local(what):
            what = located(what, loading.get("revision"))
            loading = {name: value for name, value in loading.items() if name != "revision"}
            found = checksum(what)
            if (base := base_of(Path(what))) and not looks_local(base):
                located(base)  # of an adapter that was asked for by its hub id
                found = checksum(what)
        if isinstance(what, str | Path):
            base_here(Path(what).expanduser())
        tokenizer = tokenizer_of(what, self.tokenizer, **loading)
        return replace(self, what=what, loading=loading, checksum=found, tokenizer=tokenizer)

    def load(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Network and tokenizer."""
        return as_network(self.what, self.tokenizer, **self.loading)


def all_ready(subjects: Sequence[Subject], progress: Progress = silent) -> list[Subject]:
    """All of them `ready`; two with the same weights are refused."""
    found = []
    for one in subjects:  # first of all: one may be the base of another
        if isinstance(one.what, str | Path) and not looks_local(one.what):
            located(one.what, one.loading.get("revision"))
    for one in subjects:
        if told := conversion_told(one.what):
            progress(told, None)
        found.append(one.ready())
    refuse_twins({one.name: one.checksum for one in found})
    return found


def subjects_of(
    model: Model | Sequence[Model],
    base: Model | None,
    tokenizer: PreTrainedTokenizerBase | None,
    loading: Mapping[str, Any],
    revisions: Sequence[str] = (),
) -> tuple[list[Subject], str | None]:
    """All models in order, the base last unless it is among them; and the base's name."""
    asked: list[Any] = list(model) if isinstance(model, list | tuple) else [model]
    place = next((n for n, one in enumerate(asked) if one is base or (isinstance(one, str) and one == base)), None)
    if base is not None and place is None:
        place = len(asked)
        asked.append(base)
    paths = [one for one in asked if isinstance(one, str | Path)]
    listed = find_models(paths, revisions) if paths else []
    series = len(listed) != len(paths)
    if series and base is not None:
        raise Refused("--base: a series stands for several models; compare single models, or name its checkpoints")
    subjects = []
    for one in listed:
        own = {**loading, "revision": one.revision} if one.revision else loading
        subjects.append(Subject(one.name, one.path, tokenizer, own, one.epoch, one.step, one.checksum))
    for number, network in enumerate(asked):
        if not isinstance(network, str | Path):
            name = Path(getattr(network, "name_or_path", "") or type(network).__name__).name
            while any(subject.name == name for subject in subjects):
                name += "'"
            subjects.insert(number if not series else len(subjects), Subject(name, network, tokenizer, loading))
    return subjects, None if base is None or place is None else subjects[place].name
