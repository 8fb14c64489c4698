"""What to redirect and how: every option with its meaning, for Python, the command line and the reference alike."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nucleate.devices import DEVICES, PRECISIONS
from nucleate.refusal import Refused
from nucleate.settings import REQUIRED, check_all, setting


@dataclass(frozen=True)
class RedirectSettings:
    """What to redirect and how; what cannot be meant is refused when it is made."""

    source: str = setting(REQUIRED, "the distribution, or task, to be answered otherwise", form="A")
    target: str | None = setting(None, "another with the same inputs, whose outputs it shall give", form="B")
    outputs: str | None = setting(
        None, "or a table with the columns input (prompt, where there are no inputs) and output", form="FILE"
    )
    columns: Mapping[str, str] | None = setting(None, "names of columns, as task=label", form="ours=theirs,…")
    template: str | None = setting(
        None, "how a prompt is put together (default: {instruction} {input})", form="TEMPLATE"
    )
    chat: bool = setting(False, "as the user's turn of the model's chat template")
    limit: int = setting(200, "prompts of each distribution or task", least=9, form="N")
    examples: int = setting(1, "prompts of each other one, from which the switch learns", least=1, form="N")
    expert: str = setting(
        "head",
        "what answers where the switch says yes: a second head, or a LoRA adapter tuned on the wished outputs",
        choices=("head", "adapter"),
    )
    switch: str | None = setting(
        None, "which one is saved (default: the better one on validation)", choices=("linear", "mlp")
    )
    layers: Sequence[int] | None = setting(
        None,
        "that the switch may read, one of which is chosen on validation (default: five spread over the depth and the "
        "last)",
        form="8,16,…",
    )
    threshold: float | None = setting(
        None,
        "probability above which the switch is on (default: 0.5, unless another one errs clearly less on validation)",
        form="P",
    )
    want: float | None = setting(
        None, "exit with 3 where less of the source is answered as wished (told without it by 0.95)", least=0, form="P"
    )
    keep: float | None = setting(
        None, "exit with 3 where less of all others is unchanged (told without it by 0.95)", least=0, form="P"
    )
    copy: bool = setting(False, "save the original weights with the switch, not where they lie")
    dtype: str = setting("float32", "precision of the weights; auto: as they are stored", choices=PRECISIONS)
    device: str = setting("auto", "where to compute: auto (cuda if there is one), cpu or cuda", choices=DEVICES)
    trust_remote_code: bool = setting(False, "run code that comes with the model")
    seed: int = setting(100, "root of every random stream", least=0)
    rank: int = setting(16, "of the second head, or of the adapter", least=1, option=None)
    epochs: int | None = setting(
        None,
        "over the prompts of the source, for each method and rate (default: 30, or what a hundred steps take); of an "
        "adapter ten steps each (default: 10)",
        least=1,
        option=None,
    )
    batch: int = setting(40, "prompts of an optimiser step", least=1, option=None)
    rates: Sequence[float] = setting((3e-3, 1e-2, 3e-2), "learning rates tried, the same for all methods", option=None)
    adapter_rate: float = setting(1e-3, "learning rate of an adapter", option=None)

    def __post_init__(self) -> None:
        check_all(self)
        for name in ("threshold", "want", "keep"):
            value = getattr(self, name)
            if value is not None and not (0 < value < 1 if name == "threshold" else value <= 1):
                raise Refused(f"--{name} {value:g} is not between 0 and 1: give a share such as 0.95")
        if self.layers is not None and not self.layers:
            raise Refused("--layers names none: give one at least, or leave it out")
        if (self.target is None) == (self.outputs is None):
            raise Refused("say what the source shall answer: --target NAME, or --outputs FILE, one of the two")
        if self.source == self.target:
            raise Refused(f"--source and --target are both {self.source!r}: name two")
