"""Hidden states as a step of a scikit-learn pipeline: prompts in, the states of one layer out."""

from collections.abc import Sequence
from typing import Self

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted
from transformers import PreTrainedTokenizerBase

from nucleate.model.batches import layers_of
from nucleate.model.networks import as_network
from nucleate.model.prompts import reader_of
from nucleate.model.states import read_states
from nucleate.model.subjects import Model
from nucleate.refusal import Refused


class StatesTransformer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Prompts as the hidden states of one layer, (n, width) float32, for a `Pipeline`: `read_states` of that layer.

    `model` is a path, a hub id or a loaded network (with its `tokenizer`), which clones share and which is never
    trained; `layer` counts as everywhere, 0 being the embedding. A prompt is a text, or a pair of instruction and
    input (two columns). `read` and `template` are those of `read_states`, `dtype` and `device` say how a path is
    loaded. `fit` does that and no more: of what is fitted again and again, as in `cross_val_score`, hand over the
    loaded network.
    Attributes after `fit`: `network_`, `tokenizer_`.
    """

    def __init__(
        self,
        model: Model,
        layer: int,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        read: str = "input",
        template: str | None = None,
        dtype: str = "float32",
        device: str = "cpu",
    ) -> None:
        self.model = model
        self.layer = layer
        self.tokenizer = tokenizer
        self.read = read
        self.template = template
        self.dtype = dtype
        self.device = device

    def fit(self, X: ArrayLike, y: object = None) -> Self:
        """Load the network; nothing is learnt."""
        network, tokenizer = as_network(self.model, self.tokenizer, dtype=self.dtype, device=self.device)
        layers_of(reader_of(network)[0], [self.layer])  # refused here, and not after the prompts were tokenised
        self.network_, self.tokenizer_ = network, tokenizer
        return self

    def transform(self, X: ArrayLike) -> np.ndarray:
        """(n, width), in the order of the prompts."""
        check_is_fitted(self)
        states = read_states(
            self.network_,
            self.tokenizer_,
            _pairs(X),
            read=self.read,
            layers=[self.layer],
            template=self.template,
        )
        return states[0]

    def __sklearn_clone__(self) -> Self:
        """With the same network: it is not copied."""
        return type(self)(**self.get_params(deep=False))

    @property
    def _n_features_out(self) -> int:
        return int(self.network_.config.get_text_config().hidden_size)


def _pairs(X: ArrayLike) -> Sequence[tuple[str, str]]:
    """(instruction, input) of each prompt."""
    try:
        table = np.asarray(X, dtype=object)
    except ValueError:  # rows of unequal length
        table = np.empty(0)
    table = table[:, None] if table.ndim == 1 else table
    if table.ndim != 2 or table.shape[1] not in (1, 2) or not all(isinstance(cell, str) for cell in table.flat):
        raise Refused("the prompts to read are neither texts nor pairs of instruction and input: give a list of either")
    return [(row[0], row[1] if len(row) == 2 else "") for row in table]
