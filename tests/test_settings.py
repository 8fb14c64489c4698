"""One source for an option: the field of a settings class is what doors, command line and refusals say."""

import argparse
import inspect
from dataclasses import MISSING, dataclass, fields

import numpy as np
import pytest

from nucleate.cli import _parser
from nucleate.config import SECTIONS, Config, MeasureSettings
from nucleate.measures.survey import Effort
from nucleate.measures.tsne import tsne
from nucleate.model.switch import KINDS
from nucleate.options import REDIRECT, given_of
from nucleate.probing.callback import ProbeCallback
from nucleate.probing.live import LOADING
from nucleate.probing.probe import probe
from nucleate.probing.settings import ProbeSettings, TransferSettings
from nucleate.probing.watch import watch
from nucleate.redirecting.settings import RedirectSettings
from nucleate.refusal import Refused
from nucleate.settings import check, explained, fields_of, option_of, setting

ASKED = ["probe", "model", "data.csv", "--out", "run"]
REDIRECTED = ["align", "--model", "model", "--data", "data.csv", "--source", "a", "--target", "b", "--out", "run"]


@pytest.mark.parametrize(
    ("door", "own", "without"),
    [
        (probe, {"model", "data", "tokenizer", "base", "progress"}, ()),
        (ProbeCallback, {"data", "every", "out", "tokenizer", "overwrite"}, LOADING),
        (watch, {"model", "data", "every", "begin", "out", "tokenizer", "overwrite"}, LOADING),
    ],
)
def test_a_door_takes_every_setting_as_a_keyword_with_the_settings_default_type_and_meaning(door, own, without):
    keywords = {name: one for name, one in inspect.signature(door).parameters.items() if name not in own}
    settings = {name: one for name, one in fields_of(ProbeSettings).items() if name not in without}
    assert keywords.keys() == settings.keys()
    for name, one in settings.items():
        assert (keywords[name].default, keywords[name].annotation) == (one.default, one.type), name
        assert keywords[name].kind is inspect.Parameter.KEYWORD_ONLY
        assert f"- `{name}`: {explained(one)}" in inspect.getdoc(door)


def test_no_door_takes_what_it_does_not_name():
    for door in (probe, ProbeCallback, watch):
        assert all(one.kind is not inspect.Parameter.VAR_KEYWORD for one in inspect.signature(door).parameters.values())


def test_every_setting_has_a_meaning_and_a_default_that_it_allows():
    for kind in (ProbeSettings, TransferSettings, RedirectSettings, *SECTIONS.values(), Config):
        for name, one in fields_of(kind).items():
            if one.default_factory is not MISSING:
                continue  # a section of the configuration
            assert one.metadata["meaning"], name
            if one.default is not MISSING:
                check(name, one.default, one)


def test_what_two_rooms_call_by_the_same_name_has_the_same_default():
    tsne_s, measure = inspect.signature(tsne).parameters, fields_of(MeasureSettings)
    for one in fields(Effort):
        if one.name in tsne_s and one.name != "threads":
            assert tsne_s[one.name].default == one.default
        if one.name in measure:
            assert measure[one.name].default == one.default
    assert fields_of(RedirectSettings)["switch"].metadata["choices"] == KINDS


# --- the command line ------------------------------------------------------------------------------------------------


def parser_of(verb: str) -> argparse.ArgumentParser:
    return next(one.choices[verb] for one in _parser()._actions if one.dest == "verb")


@pytest.mark.parametrize(
    ("verb", "kind"), [("probe", ProbeSettings), ("transfer", TransferSettings), ("align", RedirectSettings)]
)
def test_every_setting_with_an_option_is_one_of_its_verb_and_explained_by_its_field(verb, kind):
    options = parser_of(verb)._option_string_actions
    for name, one in fields_of(kind).items():
        if option_of(one) is None:
            assert name in (
                "perplexity",
                "iterations",
                "initialisations",
                "repeats",
                "rank",
                "epochs",
                "batch",
                "rates",
                "adapter_rate",
            )
        elif verb != "align" or name in REDIRECT:
            assert options[option_of(one)].help == explained(one)
        else:
            assert option_of(one) in options


def test_what_is_typed_becomes_the_settings_and_what_is_not_keeps_its_default():
    words = ["--columns", "task=label, input=x", "--layers", "0,8", "--limit", "40", "--chat", "--revision", "a"]
    words += ["--revision", "b", "--loading", "n=3", "--loading", "device_map=auto", "--seed", "7"]
    asked = _parser().parse_args([*ASKED, *words])
    assert ProbeSettings(**given_of(asked, ProbeSettings)) == ProbeSettings(
        columns={"task": "label", "input": "x"},
        layers=(0, 8),
        limit=40,
        chat=True,
        revisions=("a", "b"),
        loading={"n": 3, "device_map": "auto"},
        seed=7,
    )
    assert given_of(_parser().parse_args(ASKED), ProbeSettings) == {}
    asked = _parser().parse_args([*REDIRECTED, "--switch", "linear", "--epochs", "3"])
    assert given_of(asked, RedirectSettings) == {"source": "a", "target": "b", "switch": "linear"}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([*ASKED, "--limit", "many"], "--limit 'many' is not a whole number"),
        ([*ASKED, "--seed", "-1"], "--seed -1 is too small; it must be at least 0"),
        ([*ASKED, "--layers", "0;8"], "--layers '0;8' is not of the form 0,8,…"),
        ([*ASKED, "--columns", "label"], "--columns 'label' is not of the form ours=theirs,…"),
        ([*ASKED, "--loading", "=3"], "--loading '=3' is not of the form name=value"),
        ([*REDIRECTED, "--switch", "mpl"], "--switch 'mpl' is not known; did you mean 'mlp'?"),
        ([*REDIRECTED, "--limit", "8"], "--limit 8 is too small; it must be at least 9"),
        (REDIRECTED[:5], "nucleate align needs --source A, the distribution, or task, to be answered otherwise"),
    ],
)
def test_what_cannot_be_meant_is_refused_under_the_name_of_the_option(words, says):
    asked = _parser().parse_args(words)
    with pytest.raises(Refused) as refusal:
        given_of(asked, ProbeSettings if asked.verb == "probe" else RedirectSettings)
    assert str(refusal.value) == says


# --- values from Python ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"limit": True}, "limit=True is not a whole number"),
        ({"limit": 2.0}, r"limit=2\.0 is not a whole number"),
        ({"chat": "no"}, "chat='no' is not True or False"),
        ({"template": 3}, "template=3 is not text"),
        ({"revisions": "main"}, "revisions='main' is not a list of texts"),
        ({"layers": [0, 1.5]}, "is not a list of whole numbers"),
        ({"loading": ["x"]}, "is not a dictionary such as"),
        ({"seed": None}, "seed=None is not a whole number; give one, at least 0"),
        ({"perplexity": float("nan")}, "perplexity=nan is not a finite number"),
        ({"repeats": 0}, "repeats=0 is too small; it must be at least 1"),
    ],
)
def test_a_value_of_another_kind_or_out_of_range_is_refused_when_the_settings_are_made(given, says):
    with pytest.raises(Refused, match=says):
        ProbeSettings(**given)


def test_numbers_of_numpy_are_numbers():
    found = ProbeSettings(limit=np.int64(4), layers=np.arange(2), perplexity=np.float32(3), seed=np.int32(0))
    assert found.limit == 4 and list(found.layers) == [0, 1]


def test_a_setting_may_be_required():
    @dataclass(frozen=True)
    class Some:
        name: str = setting(MISSING, "a name", form="NAME")

    with pytest.raises(TypeError, match="name"):
        Some()
    with pytest.raises(Refused, match="nucleate probe needs --name NAME, a name"):
        given_of(argparse.Namespace(verb="probe"), Some)
