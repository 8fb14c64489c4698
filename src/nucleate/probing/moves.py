"""What a probe moves to find out where to act: another task's mean put in place of the own one, at five layers.

`moved` is the whole story. On validation every layer is tried at three strengths, each beside random directions,
regrouped tasks and the answers' states. Where the share is furthest above the hardest of these, it is told on test:
there alone the untrained network is asked too, and prompts of other tasks. Of each half at most `MOVED` pairs are moved
(costs.py): with prompts of ten tokens about 60,000 tokens are fed, however many prompts there are, and half of these
read by the untrained network. That bound is why every model of a series is asked.
"""

from collections.abc import Sequence
from typing import Any

from nucleate.long_table import STRENGTHS, best_move, shares_of
from nucleate.model.networks import untrained
from nucleate.model.prompts import PromptReading
from nucleate.model.subjects import Subject
from nucleate.probing.costs import MOVED, movable
from nucleate.probing.layers import Rows
from nucleate.probing.study import ProbeStudy
from nucleate.progress import Progress
from nucleate.refusal import Refused
from nucleate.runs import metrics_frame
from nucleate.streams import stream
from nucleate.transferring import transfer


def moved(
    study: ProbeStudy, subject: Subject, network: Any, tokenizer: Any, reading: PromptReading, progress: Progress
) -> tuple[Rows, list[str]]:
    """Rows of the experiment transfer, and what has to be said besides; nothing where nothing can be moved.

    Counted are answers that become the other task's. Where too few pairs of a half are answered as their own task,
    which of the two answers is the likelier one is counted instead."""
    layers, rows = movable(study, subject), Rows()
    if not layers or not study.pairs or reading.predicted is None:
        return [], []

    def move(split: str, at: Sequence[int], arms: Sequence[str], **more: Any) -> Rows:
        before = 0.0 if split == "validation" else 0.5
        found = transfer(
            network,
            tokenizer,
            study.prompts.instances,
            {split: study.halves[split]},
            units=study.units,
            layers=at,
            arms=arms,
            template=study.settings.template,
            chat=study.settings.chat,
            seed=study.settings.seed,
            most=MOVED,
            reading=reading,
            progress=lambda text, share: (
                None if share in (None, 1) else progress(f"where to act: {text}", before + share / 2)
            ),
            **more,
        )
        return [{"experiment": "transfer", **row} for row in found.rows]

    try:
        for measure, likelier in (("transfer_target", False), ("transfer_turned", True)):
            rows += move("validation", layers, tuple(STRENGTHS), likelier=likelier, beside=False)
            place = best_move(shares_of(metrics_frame(rows), measure, "validation"))
            fresh = None if place is None else untrained(network, stream(study.settings.seed, "untrained"))
            at, arms = ([layers[0]], ()) if place is None else ([place[0]], (place[1],))
            rows += move("test", at, arms, likelier=likelier, untrained=fresh)
            if shares_of(metrics_frame(rows), measure, "test"):
                break
    except Refused as refusal:  # a model whose blocks cannot be found
        return [], [f"where to act was not tried: {refusal}"]
    progress("where to act: told", 1.0)
    return rows, []
