"""The ledger's claims on ready-made models (Table 1), pre-training (Figure 5) and alignment (Table 2)."""

from functools import partial, update_wrapper

from nucleate.claims import applications
from nucleate.claims.claim import ALL_CONTROLS, SIZES_OF_THE_PAPER, Claim, Quantity
from nucleate.long_table import METHODS

# Experiments whose evidence are packed runs: what is missing of them is asked for with --fast.
PACKED = ("pretrain", "align")
_ARMS = ("task_id", "none", "instruction", "longer")


def _relief(worse: str, better: tuple[str, ...]) -> Quantity:
    quantity = partial(applications.relief, worse=worse, better=better)
    update_wrapper(quantity, applications.relief)
    return quantity


_PRETRAINING = (
    "our method not only converges faster but also achieves higher task accuracy on the validation set during the "
    "fine-tuning process than the other two settings"
)
_ALIGNMENT = (
    "all methods achieve perfect performance for the updated source tasks on a validation set, but the direct "
    "fine-tuning undergoes significant performance drops on other tasks"
)
_FORGETS_LESS = (  # claim, sentence, the method that loses more, those that lose less
    (
        "C18b",
        "The switches cost the other tasks less than the language head.",
        "head",
        ("linear_switch", "mlp_switch"),
    ),
    ("C18c", "The language head costs them less than direct fine-tuning.", "direct", ("head",)),
    ("C18d", "The MLP switch costs them less than the linear one.", "linear_switch", ("mlp_switch",)),
)
OF_APPLICATIONS: tuple[Claim, ...] = (
    Claim(
        id="C15",
        sentence="Open language models cluster by task category; LLaMAs by distribution-mapping too, GPT-Js less.",
        paper="all of the LLMs achieve high clustering performances based on task identities [...] the GPT-J-6B and "
        "Instruct-GPT-J-6B seem to not form clear clusters based on the distribution-mapping identity",
        experiment="probe",
        sizes=("natural",),
        primary=applications.category_f1,
        threshold=0.88,
        controls=(*ALL_CONTROLS, "neutral"),
        note="0.887 is the lowest F1 that Table 1 calls high. The models are fixed, so that seeds change only the "
        "clustering and the controls. The second half of the claim needs LLaMAs and GPT-Js in one run and is shown "
        "beside.",
        beside={
            "F1, raw": partial(applications.best_f1, space="raw"),
            "F1, t-SNE": partial(applications.best_f1, space="tsne"),
            "distribution-mapping F1, LLaMAs less GPT-Js": applications.family_gap,
        },
    ),
    Claim(
        id="C16",
        sentence="Task-id pre-training converges faster.",
        paper=_PRETRAINING,
        experiment="pretrain",
        sizes=("small",),
        primary=applications.area_gain,
        threshold=0.0,
        note="The paper's other arms are part of the quantity. The arm that trains for as many steps is shown beside.",
        beside={
            f"{measure}, {arm}": partial(applications.curve_measure, arm=arm, measure=measure)
            for measure in ("area_under_curve", "epochs_to_90")
            for arm in _ARMS
        },
    ),
    Claim(
        id="C17",
        sentence="And ends higher.",
        paper=_PRETRAINING,
        experiment="pretrain",
        sizes=("small",),
        primary=applications.final_accuracy_gain,
        threshold=0.0,
        note="On test, because the pre-trained models are chosen on validation. The arm that trains for as many steps "
        "is shown beside.",
        beside={f"final accuracy, {arm}": partial(applications.final_accuracy, arm=arm) for arm in _ARMS},
    ),
    Claim(
        id="C18a",
        sentence="Every alignment fixes the source tasks.",
        paper=_ALIGNMENT,
        experiment="align",
        sizes=SIZES_OF_THE_PAPER,
        primary=applications.lowest_source_accuracy,
        threshold=0.95,
        note="Judged on test, because the models are chosen on validation.",
        beside={
            f"source_accuracy, {arm}": partial(applications.chosen_model, arm=arm, measure="source_accuracy")
            for arm in METHODS
        },
    ),
    *(
        Claim(
            id=name,
            sentence=sentence,
            paper=_ALIGNMENT,
            experiment="align",
            sizes=SIZES_OF_THE_PAPER,
            primary=_relief(worse, better),
            threshold=0.0,
            note="The paper's drops, from one run each: direct 0.210, head 0.120, linear switch 0.087, MLP switch "
            "0.080.",
            beside={
                f"accuracy_drop, {arm}": partial(applications.chosen_model, arm=arm, measure="accuracy_drop")
                for arm in METHODS
            },
        )
        for name, sentence, worse, better in _FORGETS_LESS
    ),
)
