"""Every setting, with its value and meaning: frozen dataclasses, one function per size.

`--size` is the one dial; `--width`, `--epochs` and `--set section.key=value` refine it. The resolved settings are saved
with every run, and a run can be resumed only under the settings that it was begun with.
"""

import json
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from nucleate.refusal import Refused, nearest
from nucleate.settings import fields_of, parse, setting


@dataclass(frozen=True)
class DataSettings:
    """The synthetic task (§2.2, Appendix A); the defaults are Table 4's."""

    tasks: int = setting(50, "ordinary tasks (Table 4)", least=1)
    mappings: int = setting(5, "input-output pairs of a task (Table 4)", least=1)
    min_distributions: int = setting(1, "fewest instruction distributions of a task (Table 4)", least=1)
    max_distributions: int = setting(6, "most instruction distributions of a task (Table 4)", least=1)
    totals: str = setting(
        "kept",
        "numbers of distributions: drawn such that the three totals are met (kept), or each task's by itself, evenly "
        "from the fewest to the most (free)",
        choices=("kept", "free"),
    )
    total_distributions: int = setting(
        144, "distributions of all ordinary tasks together: 144 x 10 x 5 + 90 hard = 7,290 of Table 3's 7,300", least=1
    )
    instructions: int = setting(10, "training instructions of a distribution (Table 4)", least=1)
    subset: str = setting(
        "narrow",
        "training subset: hard examples with their originals (narrow), the same of source tasks that have two "
        "distributions or more each (several), or all instructions of the source tasks (broad)",
        choices=("narrow", "several", "broad"),
    )
    subset_tasks: int = setting(5, "source tasks of the hard examples and of the subset (Table 4)", least=0)
    source_distributions: int = setting(6, "distributions of the source tasks together: 6 x 6 x 5 = 180", least=0)
    hard_instructions: int = setting(3, "hard instructions of a distribution (Table 4)", least=0)
    validation_tasks: int = setting(10, "tasks in validation and test (Table 4)", least=1)
    validation_distributions: int = setting(21, "distributions of those tasks together: 21 x 3 x 5 = 315", least=1)
    validation_instructions: int = setting(3, "unseen instructions of a distribution, in each of the two", least=1)
    task_symbols: int = setting(25, "symbols for inputs and outputs (Table 4)", least=2)
    instruction_symbols: int = setting(35, "symbols for instructions (Table 4)", least=2)
    patterns: str = setting(
        "usual",
        "as the next settings say (usual), or of one metacharacter, with instructions of at most 12 symbols (short)",
        choices=("usual", "short"),
    )
    min_metacharacters: int = setting(1, "fewest metacharacters of a pattern (Table 4)", least=1)
    max_metacharacters: int = setting(3, "most metacharacters of a pattern (Table 4)", least=1)
    min_characters: int = setting(3, "fewest characters of a metacharacter (Table 4)", least=1)
    max_characters: int = setting(10, "most characters of a metacharacter (Table 4)", least=1)
    min_length: int = setting(3, "shortest instruction, in symbols", least=1)
    max_length: int = setting(40, "longest instruction, in symbols", least=1)
    inputs: str = setting(
        "own", "inputs of a task: its own draw (own), or the same for every task (shared)", choices=("own", "shared")
    )
    likeliest: float = setting(
        1.0,
        "probability that a training instance is taught its input's output, else a second one of the task's own; the "
        "likeliest is what counts as right (1: tasks are functions)",
        least=0.5,
    )
    input_place: str = setting(
        "after",
        "where the input stands: after the instruction, or inside it, with a mark at the end that the output follows "
        "(learn alone)",
        choices=("after", "inside"),
    )
    pairs: int = setting(0, "source-target pairs of the alignment data (Table 7: 3)", least=0)


@dataclass(frozen=True)
class ModelSettings:
    """The network (Tables 5 and 8)."""

    architecture: str = setting(
        "gpt2",
        "family of the network: gpt2 (pre-norm, tied head), opt (post-norm), marian (post-norm, fixed sinusoids), "
        "llama (rotary positions, gated), mamba (no attention) or bert (an encoder: learn alone)",
        choices=("gpt2", "opt", "marian", "llama", "mamba", "bert"),
    )
    width: int = setting(768, "hidden dimension (Table 8: 32, 256, 768, 2048)", least=1)
    feed_forward: int = setting(1024, "inner width of the feed-forward part (Table 5; 2 x width elsewhere)", least=1)
    layers: int = setting(6, "transformer blocks (Table 5)", least=1)
    heads: int = setting(8, "attention heads (Table 5)", least=1)
    dropout: float = setting(0.2, "dropout, on all places that the architecture has (Table 5)", least=0.0)
    initial_scale: float = setting(0.02, "deviation of the normal law of fresh weights (GPT-2's)", least=0.0)


FAST = ("training.packing", "tree")  # the packed law of batches, which --fast asks for


@dataclass(frozen=True)
class TrainingSettings:
    """The optimisation (Table 5; batch size and weight decay are not in the paper)."""

    epochs: int = setting(200, "epochs (Table 5; 500 at width 32)", least=1)
    batch: int = setting(65, "instances of an optimiser step", least=1)
    packing: str = setting(
        "rows",
        "instances drawn one by one (rows), or whole instructions with all their inputs, computed once (tree; --fast)",
        choices=("rows", "tree"),
    )
    learning_rate: float = setting(1e-4, "AdamW's learning rate, annealed to zero by a cosine (Table 5)", least=0.0)
    weight_decay: float = setting(0.01, "AdamW's weight decay (torch's default)", least=0.0)
    max_gradient_norm: float = setting(1.0, "gradients are clipped to this norm (Table 5)", least=0.0)

    @property
    def is_packed(self) -> bool:
        """By the packed law, which `--fast` asks for."""
        return self.packing == FAST[1]


@dataclass(frozen=True)
class MeasureSettings:
    """When and how the hidden states are measured (§3.2, §3.3, Table 6)."""

    dense_until: int = setting(20, "measure at every epoch up to this one", least=0)
    every: int = setting(5, "and at every so many epochs after it", least=1)
    components: int = setting(3, "t-SNE: dimensions (Table 6)", least=1)
    perplexity: float = setting(10.0, "t-SNE: perplexity (Table 6)", least=1.0)
    iterations: int = setting(2000, "t-SNE: iterations (Table 6)", least=250)
    display_iterations: int = setting(100, "t-SNE for display, started from the previous epoch's: iterations", least=1)
    initialisations: int = setting(10, "k-means: initialisations, the best is kept", least=1)
    repeats: int = setting(20, "deals of the shuffled and regrouped labels, averaged", least=1)
    last_layer: str = setting(
        "normed",
        "the last layer's state after the final norm, as transformers returns it (normed), or before it (plain)",
        choices=("normed", "plain"),
    )
    state: str = setting(
        "block",
        "what is measured at layers 1 to L: what each block puts out (block), or its attention alone, before the "
        "residual is added (attention)",
        choices=("block", "attention"),
    )
    clusters: str = setting(
        "present",
        "k of k-means: the classes present among the points (present), or all of the training set, at most a point "
        "each (all)",
        choices=("present", "all"),
    )


@dataclass(frozen=True)
class PretrainSettings:
    """The pre-training of §4.1 and the fine-tuning after it, which otherwise follows `training`."""

    epochs: int = setting(200, "epochs of pre-training, over the instructions alone (Table 5's number)", least=1)
    finetuning: float = setting(1.0, "fine-tuning lasts this share of training.epochs", least=0.0)
    unseen: str = setting(
        "yes", "also the arms whose fine-tuning tasks are none of the pre-training's", choices=("yes", "no")
    )


@dataclass(frozen=True)
class AlignSettings:
    """The redirection of §4.2, the same for all four methods; what comes before it follows `training`."""

    epochs: int = setting(20, "epochs over the redirected instances", least=1)
    batch: int = setting(5, "instances of an optimiser step, whole instructions: one with all its inputs", least=1)
    rates: int = setting(5, "learning rates tried, evenly spread in proportion", least=1)
    lowest_rate: float = setting(1e-4, "the lowest of them", least=0.0)
    highest_rate: float = setting(1e-2, "the highest of them", least=0.0)


SECTIONS: dict[str, type] = {
    "data": DataSettings,
    "model": ModelSettings,
    "training": TrainingSettings,
    "measure": MeasureSettings,
    "pretrain": PretrainSettings,
    "align": AlignSettings,
}


VERB_SECTIONS = ("pretrain", "align")  # read by the verb of the same name alone


@dataclass(frozen=True)
class Config:
    """All settings of one run."""

    size: str = setting("paper", "the size that the settings began with")
    seed: int = setting(100, "the root of every random stream (0-9 are kept for the judged runs)", least=0)
    device: str = setting(
        "auto", "where to compute: auto (cuda if there is one), cpu or cuda", choices=("auto", "cpu", "cuda")
    )
    dtype: str = setting("float32", "precision of training: float32 or bfloat16", choices=("float32", "bfloat16"))
    data: DataSettings = field(default_factory=DataSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    measure: MeasureSettings = field(default_factory=MeasureSettings)
    pretrain: PretrainSettings = field(default_factory=PretrainSettings)
    align: AlignSettings = field(default_factory=AlignSettings)


def feed_forward(width: int) -> int:
    """1024 at width 768 (Table 5), else twice the width: the only widths that give Table 8's counts."""
    return 1024 if width == 768 else 2 * width


def _six_layers(size: str, width: int, epochs: int = 200) -> Config:
    return Config(
        size=size,
        model=ModelSettings(width=width, feed_forward=feed_forward(width)),
        training=TrainingSettings(epochs=epochs),
    )


def paper() -> Config:
    """The paper's main experiment: width 768, about 23.7 million parameters."""
    return _six_layers("paper", 768)


def large() -> Config:
    """The paper's large network: width 2048, about 202 million parameters (Figures 9 and 10)."""
    return _six_layers("large", 2048)


def small() -> Config:
    """The network of §4: width 256, about 3.2 million parameters."""
    return _six_layers("small", 256)


def narrow() -> Config:
    """The paper's small network: width 32, 500 epochs, about 55 thousand parameters (Figures 7 and 8)."""
    return _six_layers("narrow", 32, epochs=500)


def tiny() -> Config:
    """The demonstration: the whole pipeline in about a minute on two cores, clusters clearly visible.

    Few symbols in long-known patterns: the letters of an instruction alone say little, so that the clusters are earned.
    """
    return Config(
        size="tiny",
        data=DataSettings(
            tasks=8,
            max_distributions=4,
            total_distributions=16,
            instructions=40,
            subset_tasks=2,
            source_distributions=3,
            validation_tasks=4,
            validation_distributions=8,
            task_symbols=12,
            instruction_symbols=8,
            max_characters=6,
            max_length=16,
        ),
        model=ModelSettings(width=64, feed_forward=128, layers=3, heads=4, dropout=0.05),
        training=TrainingSettings(epochs=10, batch=32, learning_rate=2e-3),
        measure=MeasureSettings(dense_until=5, every=2, iterations=1000),
        pretrain=PretrainSettings(epochs=14, finetuning=0.5, unseen="no"),
        align=AlignSettings(epochs=10, rates=3),
    )


def micro() -> Config:
    """The whole pipeline in seconds, for tests: nothing is learnt in so few steps."""
    return Config(
        size="micro",
        data=DataSettings(
            tasks=6,
            mappings=3,
            total_distributions=10,
            max_distributions=3,
            instructions=5,
            subset_tasks=2,
            source_distributions=2,
            validation_tasks=3,
            validation_distributions=4,
            task_symbols=10,
            instruction_symbols=20,
            max_length=16,
        ),
        model=ModelSettings(width=16, feed_forward=32, layers=2, heads=2),
        training=TrainingSettings(epochs=6, batch=12, learning_rate=1e-3),
        measure=MeasureSettings(
            dense_until=2, every=2, perplexity=5.0, iterations=250, display_iterations=50, repeats=3
        ),
        pretrain=PretrainSettings(epochs=3),
        align=AlignSettings(epochs=2, rates=2, highest_rate=1e-3),
    )


SIZES = {"micro": micro, "tiny": tiny, "narrow": narrow, "small": small, "paper": paper, "large": large}


def configure(size: str, *, changes: Mapping[str, str] | None = None, **top: Any) -> Config:
    """The settings of a size, with changes (`section.key` to text, as typed) and `top` (seed, device, dtype).

    A changed width brings its feed-forward width along unless that is given too.
    """
    if size not in SIZES:
        raise Refused(f"size {size!r} does not exist{nearest(size, (s for s in SIZES if s != 'micro'))}")
    config = SIZES[size]()
    changed = dict(changes or {})
    if "model.width" in changed and "model.feed_forward" not in changed:
        width = parse("model.width", changed["model.width"], fields_of(ModelSettings)["width"])
        changed["model.feed_forward"] = str(feed_forward(width))
    for key, text in changed.items():
        section, _, name = key.partition(".")
        if section not in SECTIONS or name not in fields_of(SECTIONS[section]):
            known = [f"{part}.{one}" for part, kind in SECTIONS.items() for one in fields_of(kind)]
            raise Refused(f"setting {key!r} does not exist{nearest(key, known)}; all of them: nucleate settings")
        value = parse(key, text, fields_of(SECTIONS[section])[name])
        config = replace(config, **{section: replace(getattr(config, section), **{name: value})})
    known_top = fields_of(Config)
    for key, value in top.items():
        if value is not None:
            config = replace(config, **{key: parse(key, str(value), known_top[key])})
    return config


def describe(config: Config) -> Iterable[tuple[str, Any, str]]:
    """(key, value, meaning) of every setting, in order."""
    for one in fields(config):
        value = getattr(config, one.name)
        if one.name in SECTIONS:
            for inner in fields(value):
                yield f"{one.name}.{inner.name}", getattr(value, inner.name), inner.metadata["meaning"]
        else:
            yield one.name, value, one.metadata["meaning"]


def changed_from_size(size: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings, by dotted name, that a size has otherwise; none where the size is not one of ours."""
    if size not in SIZES:
        return {}
    usual = {key: value for key, value, _ in describe(configure(size))}
    return {key: settings[key] for key in sorted(usual.keys() & settings.keys()) if settings[key] != usual[key]}


def to_toml(config: Config, **leading: str) -> str:
    """The settings as TOML: top-level keys first, then a table per section.

    With a `verb` among the leading keys, sections named after other verbs are left out: that run never reads them.
    """
    tables = {"": {**leading, **{k: v for k, v in asdict(config).items() if k not in SECTIONS}}}
    others = set(VERB_SECTIONS) - {leading["verb"]} if "verb" in leading else set()
    tables |= {name: asdict(getattr(config, name)) for name in SECTIONS if name not in others}
    lines: list[str] = []
    for name, table in tables.items():
        lines += ["", f"[{name}]"] if name else []
        lines += [f"{key} = {json.dumps(value)}" for key, value in table.items()]
    return "\n".join(lines) + "\n"


def flat_toml(settings: Any, **leading: object) -> str:
    """A dataclass without sections as TOML: mappings as `ours=theirs`, what is not set left out."""
    lines = []
    for key, value in {**leading, **asdict(settings)}.items():
        if isinstance(value, Mapping):
            value = [f"{ours}={theirs}" for ours, theirs in value.items()]
        elif isinstance(value, Iterable) and not isinstance(value, str):
            value = list(value)
        if value is not None:
            lines.append(f"{key} = {json.dumps(value, ensure_ascii=False, default=lambda number: number.item())}\n")
    return "".join(lines)


def differing(saved: str, wanted: str, kind: type | None = None) -> list[str]:
    """Keys whose values differ between two texts of `to_toml`, or of `flat_toml` of a `kind` of settings, with both
    values. A setting that came only after the first was saved had then what is its default now."""
    old, new = (_flat(tomllib.loads(text)) for text in (saved, wanted))
    usual = {f"{part}.{name}": one.default for part, kind in SECTIONS.items() for name, one in fields_of(kind).items()}
    usual |= {} if kind is None else {name: one.default for name, one in fields_of(kind).items()}
    before = {key: old.get(key, usual.get(key)) for key in {**old, **new}}
    return [f"{key} ({then} there, {new.get(key)} now)" for key, then in before.items() if then != new.get(key)]


def _flat(table: Mapping[str, Any]) -> dict[str, Any]:
    return {
        (f"{key}.{inner}" if isinstance(value, dict) else key): one
        for key, value in table.items()
        for inner, one in (value.items() if isinstance(value, dict) else [("", value)])
    }
