"""What a score is compared with: permuted labels, the bare text, right answers, a linear probe, the input word.

A cluster score, a share of neighbours or a variance means little alone. `shuffled_labels` and `regrouped_tasks` say
what chance gives; `surface_features` what the letters of the prompt give without any model; `answer_features` what
input and right answer give where nothing is known of a task; `LinearProbe` what is in
the states whether it clusters or not; `explained_variance`, `InputMeans` and `averaged` what remains once the input
word, most of any state at the input token, is accounted for.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.linalg.blas import dsyrk
from scipy.sparse import csr_array
from sklearn.feature_extraction.text import TfidfVectorizer

from nucleate.compiled import compiled
from nucleate.refusal import Refused

MOST_FEATURES = 4096
RIDGE = 0.01  # the probe's penalty, as a share of the mean eigenvalue of the features' correlation matrix, which is 1
_SPARSE = 0.05  # share of numbers that are not 0 up to which the zeros are worth leaving out
_NUMBERS_AT_ONCE = 2**21  # of states turned to double precision: 16 MiB


# --- labels that mean nothing -----------------------------------------------------------------------------------------


def shuffled_labels(labels: np.ndarray, instructions: np.ndarray, *, seed: int, repeats: int = 20) -> np.ndarray:
    """(repeat, n) the labels permuted between instructions: each instruction takes over those of a random donor.

    An instruction's instances, in their order, take the donor's labels in their order, from the start again where the
    donor has fewer. So a label that is constant in an instruction (task, distribution) stays so, labels that differ
    inside it (distribution-mapping) still differ, and where instructions have equally many instances, as ours do, every
    class keeps its size. Permuting single instances instead would be too easy a baseline: the instances of an
    instruction lie together whatever the labels. A donor may be the instruction itself. Fewer repeats are the first of
    more.
    """
    labels, instructions = np.asarray(labels), np.asarray(instructions)
    _check_pair("shuffled_labels", labels=labels, instructions=instructions)
    instruction = np.unique(instructions, return_inverse=True)[1]
    by_instruction = np.argsort(instruction, kind="stable")
    size = np.bincount(instruction)
    start = np.cumsum(size) - size
    place = np.empty(len(labels), dtype=np.int64)  # of an instance inside its instruction
    place[by_instruction] = np.arange(len(labels)) - start[instruction[by_instruction]]
    rng = np.random.default_rng(seed)
    shuffled = np.empty((repeats, len(labels)), dtype=labels.dtype)
    for row in shuffled:
        donor = rng.permutation(len(size))[instruction]
        row[:] = labels[by_instruction[start[donor] + place % size[donor]]]
    return shuffled


def regrouped_tasks(task: np.ndarray, distribution: np.ndarray, *, seed: int, repeats: int = 20) -> np.ndarray:
    """(repeat, n) tasks after dealing the distributions to tasks at random; each task gets as many as it has.

    What remains of a score under it is due to distributions being recognised one by one: only what exceeds it says that
    different distributions of one task come together. For the same deal on several splits, give their instances in one
    array: equal distributions get equal tasks. A distribution may be dealt to its own task again.
    """
    task, distribution = np.asarray(task), np.asarray(distribution)
    _check_pair("regrouped_tasks", task=task, distribution=distribution)
    names, first, code = np.unique(distribution, return_index=True, return_inverse=True)
    owner = task[first]  # (distribution,)
    torn = np.flatnonzero(owner[code] != task)
    if len(torn):
        raise Refused(
            f"regrouped_tasks: distribution {names[code[torn[0]]]} belongs to several tasks; give each task its own ids"
        )
    rng = np.random.default_rng(seed)
    return (
        np.stack([rng.permutation(owner)[code] for _ in range(repeats)]) if repeats else np.empty((0, len(task)), int)
    )


def dealt_outputs(
    task: np.ndarray, inputs: np.ndarray, output: np.ndarray, *, seed: int, repeats: int = 20
) -> np.ndarray:
    """(repeat, n) outputs after dealing each task's outputs to its inputs at random: an input of a task takes over the
    output that another of its inputs has, in all of its instances.

    Whatever tells the pairs of task and input apart, answers or none, keeps its variance under it: only what exceeds it
    is the answer's own. Of several outputs of one input the first counts. An input may be dealt its own output again.
    """
    task, inputs, output = np.asarray(task), np.asarray(inputs), np.asarray(output)
    _check_pair("dealt_outputs", task=task, inputs=inputs)
    _check_pair("dealt_outputs", task=task, output=output)
    cells, first, cell = np.unique(np.stack([task, inputs]), axis=1, return_index=True, return_inverse=True)
    cell, held = cell.reshape(-1), output[first]
    rng = np.random.default_rng(seed)
    dealt = np.empty((repeats, len(task)), dtype=output.dtype)
    for row in dealt:
        moved = held.copy()
        for one in np.unique(cells[0]):
            members = np.flatnonzero(cells[0] == one)
            moved[members] = held[rng.permutation(members)]
        row[:] = moved[cell]
    return dealt


# --- the text without a model -----------------------------------------------------------------------------------------


def surface_features(fit_texts: Sequence[str], texts: Sequence[str]) -> np.ndarray:
    """(text, feature) float32 TF-IDF of n-grams, rows of length 1: what the letters alone say about an instance.

    The vocabulary and document frequencies come from `fit_texts` (the training set's), of whose n-grams the
    `MOST_FEATURES` most frequent are kept. Texts of single symbols between blanks, as the synthetic ones are, give
    n-grams of one to three symbols. Other texts give n-grams of one to five characters inside words. A text without a
    single known n-gram
    is a row of zeros. Deterministic.
    """
    if not len(fit_texts):
        raise Refused("surface_features: no texts to learn the n-grams from; give those of the training set")
    symbols = all(len(word) == 1 for text in fit_texts for word in text.split())
    vectorizer = TfidfVectorizer(
        preprocessor=_without_blanks if symbols else None,
        lowercase=not symbols,
        analyzer="char" if symbols else "char_wb",
        ngram_range=(1, 3) if symbols else (1, 5),
        max_features=MOST_FEATURES,
        sublinear_tf=True,
        dtype=np.float32,
    )
    try:
        vectorizer.fit(fit_texts)
    except ValueError as error:  # "empty vocabulary"
        raise Refused("surface_features: the texts to learn from are all blank; name the column of the text") from error
    return (
        vectorizer.transform(texts).toarray() if len(texts) else np.empty((0, len(vectorizer.vocabulary_)), np.float32)
    )


def _without_blanks(text: str) -> str:
    return "".join(text.split())


# --- right answers without a task -------------------------------------------------------------------------------------


def answer_features(inputs: np.ndarray, outputs: np.ndarray, tasks: np.ndarray) -> tuple[np.ndarray, ...]:
    """States that hold nothing but the input and the right output, (n, feature) float32 from codes (n,).

    In three codings: one-hots of both side by side, a one-hot of the pair, and for each task whether it has the output
    at all, which lays outputs of like tasks together (zeros for an output that one task has to itself: it would be the
    label; left out where no output is shared). Whichever scores highest is the control.

    Of more than `MOST_FEATURES` inputs, outputs or pairs the rarer ones are rows of zeros.
    """
    inputs, outputs, tasks = np.asarray(inputs), np.asarray(outputs), np.asarray(tasks)
    _check_pair("answer_features", inputs=inputs, outputs=outputs)
    _check_pair("answer_features", inputs=inputs, tasks=tasks)
    pairs = np.unique(np.stack([inputs, outputs]), axis=1, return_inverse=True)[1].reshape(-1)
    names, output = np.unique(outputs, return_inverse=True)
    of_task = _one_hot(tasks)
    users = np.zeros((len(names), of_task.shape[1]), dtype=np.float32)
    np.maximum.at(users, output, of_task)
    users[users.sum(axis=1) < 2] = 0
    codings = np.concatenate([_one_hot(inputs), _one_hot(outputs)], axis=1), _one_hot(pairs), users[output]
    return tuple(coding for coding in codings if coding.any())


def _one_hot(codes: np.ndarray) -> np.ndarray:
    code, sizes = np.unique(codes, return_inverse=True, return_counts=True)[1:]
    most = np.sort(np.argsort(-sizes, kind="stable")[:MOST_FEATURES])
    return (code[:, None] == most).astype(np.float32)


# --- what is in the states --------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class LinearProbe:
    """A ridge classifier for the task: is the task in the states, whether it clusters or not?

    Features are standardised with the training set's means and deviations (constant ones are dropped), each class is
    regressed on as 1 against -1 with an intercept, and the largest answer wins. The penalty is `RIDGE` x the number of
    training instances, the same everywhere: no choice is made on the test set. Closed form, double precision, on the
    smaller side of the matrix.
    """

    classes: np.ndarray  # (class,) tasks
    mean: np.ndarray  # (width,)
    scale: np.ndarray  # (width,) 0 for constant features
    weights: np.ndarray  # (width, class)
    intercept: np.ndarray  # (class,)

    @classmethod
    def fit(cls, states: np.ndarray, task: np.ndarray) -> "LinearProbe":
        states, task = np.asarray(states), np.asarray(task)
        _check_states("linear_probe (training)", states, task)
        classes, code = np.unique(task, return_inverse=True)
        n, width = states.shape
        mean = _mean(states)
        spread = np.sqrt(_variance(states, mean))
        varies = spread > 8 * np.finfo(states.dtype).eps * np.abs(mean)  # less is rounding of a constant
        scale = np.divide(1.0, spread, out=np.zeros(width), where=varies)
        # The targets' own means are the intercepts, since the features have mean 0.
        targets = np.where(code[:, None] == np.arange(len(classes)), 1.0, -1.0)  # (instance, class)
        intercept = targets.mean(axis=0)
        penalty = RIDGE * n
        if width <= n:
            targets -= intercept
            few = np.count_nonzero(states) < _SPARSE * states.size
            product, answer = (_sparse_products if few else _products)(states, mean, scale, targets)
            product[np.diag_indices(width)] += penalty
            weights = cho_solve(cho_factor(product, overwrite_a=True), answer, overwrite_b=True)
        else:
            features = (states - mean) * scale
            product = features @ features.T
            product[np.diag_indices(n)] += penalty
            weights = features.T @ cho_solve(cho_factor(product, overwrite_a=True), targets - intercept)
        return cls(classes, mean, scale, weights, intercept)

    def accuracy(self, states: np.ndarray, task: np.ndarray) -> float:
        """Share of instances whose task is guessed, 0..1. Tasks that the training set lacks count as wrong."""
        states, task = np.asarray(states), np.asarray(task)
        _check_states("linear_probe (test)", states, task)
        if states.shape[1] != len(self.mean):
            widths = f"{len(self.mean)} in training and {states.shape[1]} in the test"
            raise Refused(f"linear_probe: states have width {widths}; give those of the same layer and model")
        answers = (
            ((states[rows] - self.mean) * self.scale) @ self.weights + self.intercept for rows in _blocks(states)
        )
        guessed = np.concatenate([self.classes[np.argmax(one, axis=1)] for one in answers])
        return float(np.mean(guessed == task))


def _products(
    states: np.ndarray, mean: np.ndarray, scale: np.ndarray, targets: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(width, width), whose upper triangle counts, and (width, class): the standardised features with themselves and
    with the centred targets."""
    width = len(mean)
    product, answer = np.zeros((width, width), order="F"), np.zeros((width, targets.shape[1]))
    for rows in _blocks(states):
        block = states[rows] - mean
        block *= scale
        product = dsyrk(1.0, block.T, 1.0, product, overwrite_c=True)  # the upper triangle, in place
        answer += block.T @ targets[rows]
    return product, answer


def _sparse_products(
    states: np.ndarray, mean: np.ndarray, scale: np.ndarray, targets: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The same by way of the few numbers that are not 0: n-grams of a text, where it takes a hundredth of the time."""
    few = csr_array(states, dtype=np.float64)
    product = np.asfortranarray((few.T @ few).toarray())
    product -= len(states) * np.outer(mean, mean)
    product *= np.outer(scale, scale)
    return product, scale[:, None] * (few.T @ targets)  # the targets sum to 0, so that the means drop out


def explained_variance(states: np.ndarray, labels: np.ndarray) -> float | None:
    """Share of the states' total variance that lies between the means of the classes, 0..1; None where there is none.

    Labels are (n,), or (deal, n) for the mean over several deals. Not corrected for the number of classes: with as many
    classes as points it is 1. Compare labels of like number.
    """
    states, deals = np.asarray(states), np.atleast_2d(labels)
    for dealt in deals:
        _check_states("explained_variance", states, dealt)
    mean = _mean(states)
    total = float(_variance(states, mean).sum())
    rounding = np.finfo(states.dtype).eps * float(np.abs(mean).max())
    if total <= states.shape[1] * rounding**2:
        return None
    shares = []
    for dealt in deals:
        code = np.unique(dealt, return_inverse=True)[1]
        sizes = np.bincount(code)
        means = sums_by_class(states, code, len(sizes)) / sizes[:, None] - mean
        between = float((sizes[:, None] * means**2).sum()) / len(states)
        shares.append(min(max(between / total, 0.0), 1.0))
    return float(np.mean(shares))


@dataclass(frozen=True, eq=False)
class InputMeans:
    """Each input's mean state over the training instances (the reference): what the input alone says.

    From training instances, never from the set that is scored, which would wipe out tasks whose inputs are theirs alone
    there. An input seen in fewer than two tasks of the reference has none: there, input and task are one.
    """

    names: np.ndarray  # (input,) sorted
    means: np.ndarray  # (input, width)
    shared: np.ndarray  # (input,) whether it is seen in two tasks

    @classmethod
    def of(cls, states: np.ndarray, inputs: np.ndarray, tasks: np.ndarray) -> "InputMeans":
        states, inputs, tasks = np.asarray(states), np.asarray(inputs), np.asarray(tasks)
        _check_states("centred (reference)", states, inputs)
        _check_pair("centred (reference)", inputs=inputs, tasks=tasks)
        names, code = np.unique(inputs, return_inverse=True)
        task = np.unique(tasks, return_inverse=True)[1]
        pairs = np.unique(code * (int(task.max()) + 1) + task)
        in_tasks = np.bincount(pairs // (int(task.max()) + 1))
        means = sums_by_class(states, code, len(names)) / np.bincount(code)[:, None]
        return cls(names, means, in_tasks >= 2)

    def taken_from(self, states: np.ndarray, inputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The states less their inputs' means (n, width) in single precision, zeros where there is no mean, and
        `kept` (n,) bool: where there is one."""
        states, inputs = np.asarray(states), np.asarray(inputs)
        _check_states("centred", states, inputs)
        at = np.minimum(np.searchsorted(self.names, inputs), len(self.names) - 1)
        kept = (self.names[at] == inputs) & self.shared[at]
        less = np.zeros(states.shape, dtype=np.float32)
        for rows in _blocks(states):
            np.subtract(states[rows], self.means[at[rows]], out=less[rows], where=kept[rows, None], casting="same_kind")
        return less, kept


def averaged(states: np.ndarray, instructions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One point per instruction, the mean over its inputs (instruction, width) float32, in order of first appearance;
    and the row where each instruction appears first, from which to take its labels.

    Meant for centred states. The mean of raw ones names the *set* of inputs, and by that the task: pure embeddings of
    inputs, without any task in them, then score an F1 of 1.
    """
    states, instructions = np.asarray(states), np.asarray(instructions)
    _check_states("averaged", states, instructions)
    first, code = np.unique(instructions, return_index=True, return_inverse=True)[1:]
    points = sums_by_class(states, code, len(first)) / np.bincount(code)[:, None]
    order = np.argsort(first)
    return points[order].astype(np.float32), first[order]


# --- sums in double precision -----------------------------------------------------------------------------------------


def _blocks(states: np.ndarray) -> list[slice]:
    step = max(1, _NUMBERS_AT_ONCE // max(states.shape[1], 1))
    return [slice(first, first + step) for first in range(0, len(states), step)]


def _mean(states: np.ndarray) -> np.ndarray:
    """(width,)"""
    return sums_by_class(states, np.zeros(len(states), dtype=np.int64), 1)[0] / len(states)


def _variance(states: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """(width,)"""
    return _squared_sums(states, mean) / len(states)


_kernel = compiled()  # rows are added in their order, whatever the machine


@_kernel
def sums_by_class(states, code, classes):
    """(class, width) sums of the states of each class, in double precision."""
    sums = np.zeros((classes, states.shape[1]))
    for row in range(len(states)):
        total = sums[code[row]]
        for i in range(len(total)):
            total[i] += np.float64(states[row, i])
    return sums


@_kernel
def _squared_sums(states, mean):
    """(width,) sums of squared distances to the mean, in double precision."""
    sums = np.zeros(states.shape[1])
    for row in range(len(states)):
        for i in range(len(sums)):
            difference = np.float64(states[row, i]) - mean[i]
            sums[i] += difference * difference
    return sums


def _check_pair(where: str, **columns: np.ndarray) -> None:
    (first, a), (second, b) = columns.items()
    if a.ndim != 1 or a.shape != b.shape:
        raise Refused(f"{where}: {first} has shape {a.shape} and {second} {b.shape}; give one of each per instance")


def _check_states(where: str, states: np.ndarray, labels: np.ndarray) -> None:
    if states.ndim != 2 or states.dtype.kind != "f" or labels.shape != (len(states),):
        raise Refused(
            f"{where}: states of shape {states.shape} and {states.dtype} with labels of shape {labels.shape}; "
            "give floats (n, width) and one label per row"
        )
    if not len(states):
        raise Refused(f"{where}: no instances; give at least one")
    if not np.isfinite(states).all():
        row = int(np.flatnonzero(~np.isfinite(states).all(axis=1))[0])
        raise Refused(f"{where}: the state of row {row} holds NaN or infinity; leave it out")
