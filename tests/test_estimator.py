"""Hidden states as a step of scikit-learn: the states of `read_states`, in pipelines and clones."""

import numpy as np
import pandas as pd
import polars as pl
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline

from nucleate import Refused, StatesTransformer, read_states
from nucleate.model.networks import save_network
from test_families import tiny, words

TEXTS = [f"w{number} w{number % 5} x{number % 3}" for number in range(12)]
PAIRS = [(text.rpartition(" ")[0], text.rpartition(" ")[2]) for text in TEXTS]


@pytest.fixture(scope="module")
def network():
    return tiny("llama")


@pytest.mark.parametrize("kind", ["list", "array", "pandas", "polars", "a column"])
def test_texts_of_any_kind_become_the_states_of_that_layer(network, kind):
    given = {
        "list": TEXTS,
        "array": np.array(TEXTS),
        "pandas": pd.Series(TEXTS),
        "polars": pl.Series(TEXTS),
        "a column": pd.DataFrame({"prompt": TEXTS}),
    }[kind]
    found = StatesTransformer(network, 1, tokenizer=words()).fit_transform(given)
    assert np.array_equal(found, read_states(network, words(), [(text, "") for text in TEXTS], layers=[1])[0])


@pytest.mark.parametrize("read", ["input", "instruction_end"])
def test_pairs_are_read_at_the_token_that_is_asked_for(network, read):
    found = StatesTransformer(network, 2, tokenizer=words(), read=read)
    expected = read_states(network, words(), PAIRS, read=read, layers=[2])[0]
    for given in (PAIRS, pd.DataFrame(PAIRS), pl.DataFrame(PAIRS, orient="row")):
        assert np.array_equal(found.fit_transform(given), expected)


def test_a_path_is_loaded_by_fit_and_gives_the_same(network, tmp_path):
    save_network(network, words(), tmp_path / "model")
    step = StatesTransformer(tmp_path / "model", 1)
    with pytest.raises(NotFittedError):
        step.transform(TEXTS)
    of_the_network = StatesTransformer(network, 1, tokenizer=words()).fit_transform(TEXTS)
    assert np.array_equal(step.fit_transform(TEXTS), of_the_network)


def test_a_clone_has_the_same_settings_and_the_same_network_and_is_not_fitted(network):
    step = StatesTransformer(network, 1, tokenizer=words(), template="{instruction} {input}").fit(TEXTS)
    copy = clone(step)
    assert copy.get_params() == step.get_params() and copy.model is network
    assert not hasattr(copy, "network_")
    assert copy.set_params(layer=2).layer == 2 and step.layer == 1


def test_a_search_in_a_pipeline_finds_the_layer(network):
    labels = [number % 2 for number in range(12)]
    steps = make_pipeline(StatesTransformer(network, 0, tokenizer=words()), LogisticRegression(max_iter=50))
    search = GridSearchCV(steps, {"statestransformer__layer": [0, 2]}, cv=2).fit(TEXTS, labels)
    assert set(search.predict(TEXTS)) <= {0, 1} and search.best_params_["statestransformer__layer"] in (0, 2)


def test_its_states_come_as_a_frame_where_that_is_asked_for(network):
    step = StatesTransformer(network, 1, tokenizer=words()).set_output(transform="polars")
    frame = step.fit_transform(TEXTS)
    width = network.config.hidden_size
    assert isinstance(frame, pl.DataFrame) and frame.shape == (12, width)
    assert frame.columns == [f"statestransformer{number}" for number in range(width)]


@pytest.mark.parametrize("given", [[1, 2], [("a", "b", "c")], [("a", "b"), "c"], ["a", None]])
def test_what_is_no_prompt_is_refused(network, given):
    with pytest.raises(Refused, match="neither texts nor pairs"):
        StatesTransformer(network, 1, tokenizer=words()).fit_transform(given)


def test_a_layer_that_is_not_there_is_refused_by_fit(network):
    with pytest.raises(Refused, match="layer"):
        StatesTransformer(network, 7, tokenizer=words()).fit(TEXTS)
