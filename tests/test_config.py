"""Settings: sizes, changes, refusals, and the text that a run is saved under."""

import tomllib
from dataclasses import dataclass, fields

import pytest

from nucleate.config import SECTIONS, SIZES, configure, describe, differing, flat_toml, to_toml
from nucleate.refusal import Refused


def test_the_last_four_sizes_differ_only_in_width_and_epochs():
    assert [(SIZES[s]().model.width, SIZES[s]().model.feed_forward) for s in ("narrow", "small", "paper", "large")] == [
        (32, 64),
        (256, 512),
        (768, 1024),
        (2048, 4096),
    ]
    assert [SIZES[s]().training.epochs for s in ("narrow", "small", "paper", "large")] == [500, 200, 200, 200]
    assert SIZES["narrow"]().data == SIZES["large"]().data


def test_every_size_is_trained_by_the_law_of_single_rows():
    assert {size().training.packing for size in SIZES.values()} == {"rows"}
    assert not any(size().training.is_packed for size in SIZES.values())
    assert configure("small", changes={"training.packing": "tree"}).training.is_packed


def test_a_changed_width_brings_its_feed_forward_width_along_unless_that_is_given():
    assert configure("paper", changes={"model.width": "32"}).model.feed_forward == 64
    assert configure("small", changes={"model.width": "768"}).model.feed_forward == 1024
    assert configure("small", changes={"model.width": "32", "model.feed_forward": "100"}).model.feed_forward == 100


def test_changes_arrive_with_the_type_of_their_setting():
    config = configure("tiny", changes={"training.learning_rate": "3e-4", "measure.every": "7"}, seed=3)
    assert config.training.learning_rate == 3e-4
    assert config.measure.every == 7
    assert config.seed == 3


@pytest.mark.parametrize(
    ("size", "changes", "says"),
    [
        ("smal", {}, "did you mean 'small'"),
        ("tiny", {"data.task": "3"}, "did you mean 'data.tasks'"),
        ("tiny", {"training.packing": "trees"}, "did you mean 'tree'"),
        ("tiny", {"training.epochs": "many"}, "not a whole number"),
        ("tiny", {"training.epochs": "0"}, "at least 1"),
        ("tiny", {"training.learning_rate": "nan"}, "not a finite number"),
        ("tiny", {"model": "3"}, "does not exist"),
    ],
)
def test_a_wrong_setting_is_refused_in_one_line_with_the_remedy(size, changes, says):
    with pytest.raises(Refused, match=says) as refusal:
        configure(size, changes=changes)
    assert "\n" not in str(refusal.value)


def test_every_setting_has_a_meaning_and_survives_the_round_through_toml():
    config = configure("small", changes={"data.inputs": "shared"})
    saved = tomllib.loads(to_toml(config, leading="first"))
    assert saved["leading"] == "first"
    for key, value, meaning in describe(config):
        section, _, name = key.rpartition(".")
        assert meaning
        assert (saved[section] if section else saved)[name] == value
    assert sum(len(fields(kind)) for kind in SECTIONS.values()) + 4 == len(list(describe(config)))


def test_a_run_keeps_no_settings_that_only_another_verb_reads():
    assert "pretrain" not in tomllib.loads(to_toml(configure("tiny"), verb="learn"))
    assert tomllib.loads(to_toml(configure("tiny"), verb="pretrain"))["pretrain"]["epochs"] == 14


def test_differing_settings_are_named_with_both_values():
    one, other = to_toml(configure("tiny")), to_toml(configure("tiny", changes={"training.batch": "16"}))
    assert differing(one, one) == []
    assert differing(one, other) == ["training.batch (32 there, 16 now)"]


def test_a_run_begun_before_a_setting_came_goes_on_under_its_default_and_under_no_other():
    now = to_toml(configure("tiny"))
    before = "".join(line for line in now.splitlines(keepends=True) if not line.startswith("architecture"))
    assert before != now and differing(before, now) == []
    other = to_toml(configure("tiny", changes={"model.architecture": "opt"}))
    assert differing(before, other) == ["model.architecture (gpt2 there, opt now)"]
    assert differing(now, before) == ["model.architecture (gpt2 there, None now)"]


def test_flat_settings_come_back_from_their_text_whatever_signs_and_containers_they_hold():
    @dataclass(frozen=True)
    class Some:
        template: str = '{input} 🦆 \\ "ü"'
        columns: object = None
        layers: object = range(2, 4)
        limit: int | None = None

    saved = tomllib.loads(flat_toml(Some(columns={"task": "label"}), verb="probe"))
    assert saved == {"verb": "probe", "template": Some.template, "columns": ["task=label"], "layers": [2, 3]}
