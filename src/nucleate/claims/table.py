"""The ledger's table, second reading: every claim with its one primary quantity, the bar and the controls to beat.

Bars that are not the paper's own were set on networks of seeds 100 and 101, quantities and controls before any judged
run (seeds 5-9 of `learn`); pre-training and alignment keep the packed runs of seeds 0-4. What the first reading asked,
and what right answers alone would have given by it, stands in docs/findings.md.
`verdicts.py` turns finished runs into verdicts by what stands here and one rule.
"""

from collections.abc import Mapping
from functools import partial

import polars as pl

from nucleate.claims import quantities
from nucleate.claims.application_claims import OF_APPLICATIONS
from nucleate.claims.claim import ALL_CONTROLS, LABELS, SIZES_OF_THE_PAPER, TEXT, Claim
from nucleate.long_table import (
    ACCURACY,
    BEST_OF,
    FIRST,
    LAST,
    LEAD,
    LOSS,
    MOST,
    PAPERS_F1,
    TURNED,
    Score,
    best_epoch,
    curve_of,
    f1,
    late_mean,
    level_of,
)

INNER_F1, INNER_MAPPING_F1 = 0.5, 0.65  # of C8a and C8b


def verdicts_alike(
    table: pl.DataFrame, control: str = "none", *, expected: Mapping[str, bool] | None = None
) -> float | None:
    """Share of verdicts that come out as they do at width 256. Of C1, C3, C12 and C13, each with its own bar and
    controls; 0 to 1. Undefined for a network that has not learnt."""
    claims = [claim for claim in CLAIMS if claim.id in (expected or {})]
    stand = {claim.id: claim.stands(table) for claim in claims}
    if not expected or None in stand.values() or not quantities.has_learnt(table):
        return None
    return sum(stand[name] == held for name, held in expected.items()) / len(expected)


CLAIMS: tuple[Claim, ...] = (
    Claim(
        id="C1",
        sentence="States cluster by task late in training (F1 above 0.9 on the subset).",
        paper="This can be seen from the high F1 score of over 0.9 at the late training stage on the training subset, "
        "which contains both the hard examples and their original examples.",
        sizes=SIZES_OF_THE_PAPER,
        primary=quantities.late_f1_subset,
        threshold=PAPERS_F1,
        controls=ALL_CONTROLS,
        note="The threshold is the paper's own number. The paper read it off the better of raw states and t-SNE, so "
        "network and controls have the same choice.",
        beside={
            "F1, raw": partial(level_of, score=f1("subset", ("raw",))),
            "F1, t-SNE": partial(level_of, score=f1("subset", ("tsne",))),
            "F1, averaged over an instruction's inputs": partial(level_of, score=f1("subset", ("averaged",))),
            "F1, averaged, of right answers alone": partial(
                level_of, score=f1("subset", ("averaged",)), control="answers"
            ),
            "ARI": partial(level_of, score=Score("ari", "subset", "task", BEST_OF)),
        },
    ),
    Claim(
        id="C2",
        sentence="Clustering grows with training.",
        paper="there exists a strong trend of improvement of the clustering performance based on task identities "
        "throughout the training process until saturating at some high values",
        sizes=SIZES_OF_THE_PAPER,
        primary=quantities.f1_gain,
        threshold=0.1,
        controls=("shuffled",),
        note="A tenth of the scale stands for the paper's 'strong trend'; how steadily it grows is shown beside.",
        beside={
            "rank correlation of epoch and F1": lambda table: quantities.trend(curve_of(table, f1("subset"))),
            "saturation epoch": lambda table: quantities.saturation_epoch(curve_of(table, f1("subset"))),
        },
    ),
    Claim(
        id="C3",
        sentence="Higher layers cluster better.",
        paper="clustering performance tends to improve in higher layers of the Transformer model, with the 0th layer "
        "serving as a baseline",
        sizes=SIZES_OF_THE_PAPER,
        primary=quantities.f1_gain_per_layer,
        threshold=0.01,
        controls=("untrained", *LABELS),
        note="A slope of 0.01 makes 0.05 from the first block to the sixth. A text has no layers, so its n-grams are "
        "no control.",
        beside={
            "layer of the highest late F1": quantities.peak_layer,
            "late F1 in layer 0": partial(level_of, score=f1("subset"), layer=FIRST),
            "late F1 in layer 1": partial(level_of, score=f1("subset"), layer=1),
            "late F1 in the last": partial(level_of, score=f1("subset")),
        },
    ),
    Claim(
        id="C4",
        sentence="Layer 0 hardly changes.",
        paper="the baseline does not undergo much change during the training process compared to the clustering "
        "performances of other layers",
        sizes=SIZES_OF_THE_PAPER,
        primary=quantities.change_of_layer_0,
        direction="below",
        threshold=0.05,
        note="A twentieth of the scale; how much the last layer changes is shown beside.",
        beside={
            "change of the last layer's F1": partial(quantities.change_of, layer=LAST),
        },
    ),
    Claim(
        id="C5",
        sentence="The same on validation and on test.",
        paper="similar clustering phenomena are observed on both the validation and testing sets, indicating that the "
        "clustering effect generalizes to unseen instances as well",
        sizes=SIZES_OF_THE_PAPER,
        primary=quantities.unseen_less_subset,
        threshold=-0.1,
        controls=ALL_CONTROLS,
        note="At most a tenth below the subset, and above the F1 of every control.",
        beside={
            "F1, validation": partial(level_of, score=f1("validation")),
            "F1, test": partial(level_of, score=f1("test")),
            "ARI, test": partial(level_of, score=Score("ari", "test", "task", BEST_OF)),
        },
    ),
    Claim(
        id="C6",
        sentence="Different distributions of one task come together.",
        paper="instances with instructions from different distributions are clustered together based on their task "
        "identities",
        sizes=SIZES_OF_THE_PAPER,
        may_never_come=True,
        primary=quantities.told_share_other_both,
        threshold=MOST,
        controls=(*ALL_CONTROLS, "answers"),
        note="Most of them, and more than by right answers: a neighbour with the same input and the same answer has "
        "the same task whatever the network knows of tasks, so another input is asked for as well as another "
        "distribution.",
        beside={
            "mean over instances": partial(quantities.told_level, measure="knn_share_other_both"),
            "share of unseen instances whose task has such a neighbour": partial(
                level_of, score=Score("knn_share_other_both_kept", "test", "task", ("centred",))
            ),
            "the same in the last layer, raw": partial(level_of, score=Score("knn_share_other_both", "test")),
            "of other distributions, any input, last layer, raw": partial(
                level_of, score=Score("knn_share_other_distributions", "test")
            ),
            "the same of right answers alone": partial(
                level_of, score=Score("knn_share_other_distributions", "test"), control="answers"
            ),
        },
    ),
    Claim(
        id="C7",
        sentence="Hard examples part from their originals.",
        paper="hard examples, formulated as described in Section 2.2, and their corresponding original examples are "
        "predominantly separated into different clusters",
        sizes=SIZES_OF_THE_PAPER,
        primary=quantities.hard_margin,
        threshold=0.0,
        controls=("untrained", "shuffled"),
        note="The nearest instance decides; a cluster parts most pairs by chance. Right answers part them too, since "
        "the two differ in their answer.",
        beside={
            "K = 2": partial(quantities.hard_margin, suffix="_k2"),
            "K = 10": partial(quantities.hard_margin, suffix=""),
            "K = 1, centred": partial(quantities.hard_margin, space="centred"),
            "K = 1, right answers alone": partial(quantities.hard_margin, control="answers"),
        },
    ),
    Claim(
        id="C8a",
        sentence="Instances cluster by distribution.",
        paper="we found obvious clustering effects based on this setting, which reveals possible inner clustering "
        "structures within the task-specific clusters",
        sizes=SIZES_OF_THE_PAPER,
        primary=quantities.late_f1_distributions,
        threshold=INNER_F1,
        controls=("untrained", "shuffled", *TEXT),
        note="The bar was set by networks of seeds 100 and 101.",
        beside={
            "ARI of distributions within tasks": partial(quantities.ari_within, labels="distribution"),
        },
    ),
    Claim(
        id="C8b",
        sentence="Instances cluster by distribution-mapping.",
        paper="we found obvious clustering effects based on this setting, which reveals possible inner clustering "
        "structures within the task-specific clusters",
        sizes=SIZES_OF_THE_PAPER,
        primary=quantities.late_f1_distribution_mappings,
        threshold=INNER_MAPPING_F1,
        controls=("untrained", "shuffled", *TEXT, "answers"),
        note="Right answers alone, which know of no distribution, score about 0.6, since a pair of input and output "
        "names its mapping. The bar is above that.",
        beside={
            "ARI of distribution-mappings within tasks": partial(quantities.ari_within, labels="distribution_mapping"),
        },
    ),
    Claim(
        id="C9",
        sentence="Accuracy is near zero for the first epochs, then rises abruptly, while the loss falls steadily.",
        paper="the task accuracy remains around zero for the first few epochs on both training subsets and validation "
        "set before abruptly beginning to rise thereafter, despite continuous improvements in training loss",
        sizes=SIZES_OF_THE_PAPER,
        may_never_come=True,
        primary=quantities.waiting_share,
        threshold=0.1,
        note="The threshold is the most that a straight rise from the level of guesses can give.",
        beside={
            "the same on validation": partial(quantities.waiting_share, split="validation"),
            "accuracy, validation": partial(level_of, score=ACCURACY["validation"], layer=None),
            "first epoch at 5 %, subset": partial(quantities.accuracy_epoch, split="subset", share=0.05),
            "first epoch at 50 %, subset": partial(quantities.accuracy_epoch, split="subset", share=0.5),
            "trend of the training loss": lambda table: quantities.trend(curve_of(table, LOSS, None)),
        },
    ),
    Claim(
        id="C10",
        sentence="Clustering precedes accuracy.",
        paper="the model initially learns task identification through the evolved clustering process [...], enabling "
        "it to subsequently learn to solve different tasks successfully",
        sizes=SIZES_OF_THE_PAPER,
        may_never_come=True,
        primary=quantities.clustering_lead,
        threshold=0.0,
        note="The comparison is part of the quantity. Centred states of a middle layer, because the last layer's "
        "clusters follow from right answers.",
        beside={
            "accuracy, validation": partial(level_of, score=ACCURACY["validation"], layer=None),
            "accuracy above half from epoch": lambda table: quantities.stays_above_half(
                curve_of(table, ACCURACY["test"], None)
            ),
        },
    ),
    Claim(
        id="C11a",
        sentence="Clustering persists after the best epoch.",
        paper="the persistence and even improvement of the clustering phenomenon long after the early stopping point "
        "[...] In addition, the early stop point is close to when the clustering performance starts to saturate.",
        sizes=SIZES_OF_THE_PAPER,
        may_never_come=True,
        primary=quantities.persistence,
        threshold=-0.05,
        note="At most a twentieth of the scale is lost.",
        beside={
            "best epoch": lambda table: None if (best := best_epoch(table)) is None else best.epoch,
        },
    ),
    Claim(
        id="C11b",
        sentence="The best epoch falls near the saturation of clustering.",
        paper="the persistence and even improvement of the clustering phenomenon long after the early stopping point "
        "[...] In addition, the early stop point is close to when the clustering performance starts to saturate.",
        sizes=SIZES_OF_THE_PAPER,
        may_never_come=True,
        primary=quantities.best_epoch_to_saturation,
        direction="below",
        threshold=0.1,
        note="'Near' means within a tenth of the training, 20 of 200 epochs (the paper's best epoch was its 51st).",
        beside={
            "best epoch": lambda table: None if (best := best_epoch(table)) is None else best.epoch,
            "saturation epoch": lambda table: quantities.saturation_epoch(curve_of(table, f1("validation"))),
        },
    ),
    Claim(
        id="C12",
        sentence="Unseen instances find training instances of their task.",
        paper="We observe a dramatic improvement in the percentage along the training process, indicating that both "
        "training instances and unseen instances are not only close in the hidden space but also become more clustered",
        sizes=SIZES_OF_THE_PAPER,
        primary=quantities.late_knn_share,
        threshold=0.5,
        controls=("untrained", "shuffled", *TEXT),
        note="As the paper words it. Right answers alone find them all: no two tasks share a mapping. So they stand "
        "beside, with the share among other inputs.",
        beside={
            "right answers alone": partial(level_of, score=Score("knn_share", "validation"), control="answers"),
            "among other inputs": partial(level_of, score=Score("knn_share_other_inputs", "validation")),
            "test": partial(level_of, score=Score("knn_share", "test")),
            "K = 1": partial(level_of, score=Score("knn_share_k1", "validation")),
            "K = 20": partial(level_of, score=Score("knn_share_k20", "validation")),
        },
    ),
    Claim(
        id="C13",
        sentence="KNN accuracy rises to a high level.",
        paper="the task accuracy based on KNN improves consistently during training until saturating at high values "
        "[...] The KNN accuracy is also improved across layers.",
        sizes=SIZES_OF_THE_PAPER,
        primary=quantities.late_knn_accuracy,
        threshold=0.8,
        controls=("untrained", *TEXT),
        note="The paper gives no number for 'high'; 0.8 is our choice. Shuffled task labels change no answer and are "
        "no control. Right answers alone give 1.",
        beside={
            "right answers alone": partial(level_of, score=Score("knn_accuracy", "validation"), control="answers"),
            "layer 0": partial(level_of, score=Score("knn_accuracy", "validation"), layer=FIRST),
            "test": partial(level_of, score=Score("knn_accuracy", "test")),
            "the network's own accuracy": lambda table: late_mean(curve_of(table, ACCURACY["validation"], None)),
        },
    ),
    Claim(
        id="C14",
        sentence="The same at widths 32 and 2048.",
        paper="We also confirm a similar clustering phenomenon and various trends we have discovered so far on a "
        "smaller model with a small hidden dimension of 32 and a larger model with a large hidden dimension of 2048.",
        sizes=("narrow", "large"),
        may_never_come=True,
        primary=verdicts_alike,
        threshold=0.99,
        note="The verdicts of C1, C3, C12 and C13 are compared with those at width 256 of the same call; undecided "
        "ones are left out.",
        as_at_256=("C1", "C3", "C12", "C13"),
        only=("narrow", "large"),
    ),
    *OF_APPLICATIONS,
    Claim(
        id="N1",
        sentence="A middle layer tells tasks apart, beyond right answers.",
        paper="What the paper does not ask.",
        sizes=SIZES_OF_THE_PAPER,
        may_never_come=True,
        primary=quantities.lead_of_centred_f1,
        threshold=LEAD,
        note="Right answers alone score 0.3 to 0.5 by this quantity before the controls are taken off.",
        beside={
            "F1": quantities.told_centred_f1,
            **{
                f"F1, {control}": partial(quantities.told_centred_f1, control=control)
                for control in quantities.CONTROLS_OF_THE_CODE
            },
            "layer": quantities.told_layer,
        },
    ),
    Claim(
        id="N2",
        sentence="The last layer codes the answer.",
        paper="What the paper does not ask.",
        sizes=SIZES_OF_THE_PAPER,
        may_never_come=True,
        primary=quantities.turn_to_answers,
        threshold=0.1,
        note="Shares of the variance are not corrected for the number of classes, so that only their change is judged. "
        "A vector at random for each pair of task and input would pass if the task's share alone were taken off.",
        beside={
            "over the task's share": partial(quantities.turn_from, other="task", control="none"),
            "over outputs dealt anew": partial(quantities.turn_from, other="output", control="shuffled"),
            "same task among other inputs": partial(level_of, score=Score("knn_share_other_inputs", "validation")),
            "the same, untrained": partial(
                level_of, score=Score("knn_share_other_inputs", "validation"), control="untrained"
            ),
            "variance by output, late": partial(level_of, score=quantities.centred_variance("output")),
            "the same, outputs dealt anew": partial(
                level_of, score=quantities.centred_variance("output"), control="shuffled"
            ),
            "variance by task, late": partial(level_of, score=quantities.centred_variance("task")),
        },
    ),
    Claim(
        id="N3",
        sentence="The task's code is used.",
        paper="What the paper does not ask.",
        sizes=SIZES_OF_THE_PAPER,
        may_never_come=True,
        primary=quantities.turned_answers,
        threshold=TURNED,
        controls=("random", "regrouped", "answers", "untrained"),
        note="Controls are those at the same layer and strength: in the last layers, or with more strength, a move to "
        "the other answer alone turns nearly all, which says nothing of this place. A whole state of the other task, "
        "which any code there could do, is shown beside.",
        beside={
            "a whole state": quantities.turned_by_states,
            "pairs that are answered as their own task": quantities.transfer_kept,
        },
    ),
)
