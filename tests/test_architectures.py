"""Every architecture is trained, read, saved and resumed by the same code, and computes what transformers computes."""

import copy
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

from nucleate.config import ModelSettings, configure
from nucleate.model.architectures import FAMILIES, Shape, fresh_network
from nucleate.model.packed_pass import packing_is_exact
from nucleate.model.prefix_tree import Group
from nucleate.model.states import read_groups
from nucleate.model.training import make_optimizer, train
from nucleate.paper import alignment, pretraining
from nucleate.paper.learning import learn
from nucleate.paper.network import check_network
from nucleate.refusal import Refused
from nucleate.runs import load_run
from nucleate.settings import fields_of
from test_prefix_tree import some_groups

ALL = ("gpt2", *FAMILIES)
PLAIN = ("mamba", "bert")  # that cannot hold several instances in a row
CAUSAL = [one for one in ALL if one != "bert"]
STILL = ("mamba",)  # without dropout and attention


def shape(**changes) -> Shape:
    usual = {
        **{"vocabulary": 64, "width": 32, "feed_forward": 64, "layers": 2, "heads": 4, "positions": 44, "pad": 0},
        **{"dropout": 0.0, "initial_scale": 0.2},  # large enough for attention to matter
    }
    return Shape(**{**usual, **changes})


def network(architecture, seed=1, **changes):
    return fresh_network(architecture, shape(**changes), seed=seed)


def rows_of(groups: list[Group]) -> list[list[int]]:
    return [[*g.prefix, *branch, *g.target(b)] for g in groups for b, branch in enumerate(g.branches)]


def lesson(architecture, **more) -> list[Group]:
    """Answers of one to three tokens; of one for the encoder, which sees all that it is fed and predicts no more."""
    groups = some_groups(**more)
    if architecture in CAUSAL:
        return groups
    return [replace(g, targets=tuple(target[:1] for target in g.targets), answers_only=True) for g in groups]


def loss_of(architecture, logits: torch.Tensor, row: list[int]) -> tuple[torch.Tensor, int]:
    """Summed over what a row predicts, and how many tokens that is: all after the first, or the answer alone."""
    wished, given = (row[1:], logits[: len(row) - 1]) if architecture in CAUSAL else (row[-1:], logits[-1:])
    return cross_entropy(given, torch.tensor(wished), reduction="sum"), len(wished)


def quietly(architecture):
    return pytest.warns(UserWarning, match="packed instances") if architecture in PLAIN else nullcontext()


def test_the_setting_names_exactly_the_architectures_there_are():
    assert fields_of(ModelSettings)["architecture"].metadata["choices"] == ALL


@pytest.mark.parametrize("architecture", ALL)
def test_equal_seeds_give_equal_weights_others_others_and_the_callers_random_state_stays(architecture):
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    one, same, other = (network(architecture, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(4), expected)
    for (name, x), y in zip(one.named_parameters(), same.parameters(), strict=True):
        assert torch.equal(x, y), name
    embedding = one.get_input_embeddings().weight
    assert not torch.equal(embedding, other.get_input_embeddings().weight)
    assert 0.15 < embedding[1:].std() < 0.25


@pytest.mark.parametrize("architecture", ALL)
def test_no_token_sees_a_later_one_but_in_the_encoder(architecture):
    model = network(architecture).eval()
    tokens = torch.tensor([[5, 9, 3, 7, 2], [5, 9, 3, 8, 4]])
    one, other = model(input_ids=tokens).logits
    gap = (one - other).abs().amax(dim=-1)
    assert (gap[:3].max() < 1e-5) == (architecture in CAUSAL)
    assert gap[3] > 1e-3


@pytest.mark.parametrize("architecture", ALL)
def test_instances_share_tokens_exactly_where_the_architecture_allows_it(architecture):
    assert packing_is_exact(network(architecture).eval(), some_groups()) == (architecture not in PLAIN)


@pytest.mark.parametrize("architecture", ALL)
def test_states_answers_and_losses_are_those_of_single_rows(architecture):
    model, groups = network(architecture).eval(), lesson(architecture)
    with quietly(architecture):
        reading = read_groups(model, groups, tokens_per_batch=90)
    rows, fed = rows_of(groups), [len(g.prefix) + len(x) for g in groups for x in g.branches]
    for number, (row, last) in enumerate(zip(rows, fed, strict=True)):
        tokens = torch.tensor([row[:last] if architecture == "bert" else row])
        embedded: list[torch.Tensor] = []
        first = next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList))[0]
        handle = first.register_forward_pre_hook(lambda _, given, kept=embedded: kept.append(given[0]))
        with torch.no_grad():
            out = model(input_ids=tokens, output_hidden_states=True)
        handle.remove()
        states = reading.states[:, number]
        np.testing.assert_allclose(states[0], embedded[0][0, last - 1], atol=1e-4)  # layer 0 goes into the first block
        np.testing.assert_allclose(states[-1], out.hidden_states[-1][0, last - 1], atol=1e-4)
        assert len(states) == 3 and np.abs(states[1] - states[2]).max() > 1e-2
        assert reading.predicted[number] == out.logits[0, last - 1].argmax()
        loss, predicted = loss_of(architecture, out.logits[0], row)
        assert reading.loss[number] == pytest.approx(loss.item(), rel=1e-4)
        assert reading.predicted_tokens[number] == predicted


@pytest.mark.parametrize("architecture", [one for one in ALL if one not in STILL])
def test_what_attention_puts_out_is_what_a_block_without_feed_forward_part_adds(architecture):
    model, groups = network(architecture, initial_scale=0.3).eval(), lesson(architecture)
    for name, part in model.named_modules():
        of_attention = name.endswith("attention.output.dense")
        if name.endswith(("mlp.c_proj", "mlp.down_proj", "fc2", "output.dense")) and not of_attention:
            part.requires_grad_(False).weight.zero_()
    model.config.tie_last_hidden_states = False
    with quietly(architecture):
        blocks = read_groups(model, groups).states
        hooks = sum(len(part._forward_hooks) for part in model.modules())  # transformers leaves some of its own
        attention = read_groups(model, groups, state="attention").states
    assert attention.shape == blocks.shape and np.array_equal(attention[0], blocks[0])
    added = attention[1:] + blocks[:-1]
    if not FAMILIES.get(architecture, FAMILIES["llama"]).has_final_norm:  # post-norm, twice, with fresh weights
        added = (added - added.mean(-1, keepdims=True)) / added.std(-1, keepdims=True)
    np.testing.assert_allclose(blocks[1:], added, atol=1e-3)
    assert np.abs(attention[1:]).max() > 0.01
    assert sum(len(part._forward_hooks) for part in model.modules()) == hooks


def test_attention_that_is_not_found_is_refused():
    with pytest.raises(Refused, match="it cannot be measured alone"), quietly("mamba"):
        read_groups(network("mamba").eval(), some_groups(), state="attention")


@pytest.mark.parametrize("architecture", ALL)
def test_a_step_of_training_by_rows_is_that_of_plain_code_one_row_at_a_time(architecture):
    """Loss and clipped gradients; the weights after AdamW would hide a wrong scale."""
    groups = lesson(architecture, count=3)
    rows = rows_of(groups)
    expected = network(architecture)
    count = sum(len(row) - 1 if architecture in CAUSAL else 1 for row in rows)
    total = 0.0
    for row in rows:
        logits = expected(input_ids=torch.tensor([row if architecture in CAUSAL else row[:-1]])).logits[0]
        loss = loss_of(architecture, logits, row)[0] / count
        loss.backward()
        total += loss.item()
    torch.nn.utils.clip_grad_norm_([p for p in expected.parameters() if p.grad is not None], 1.0)

    model = network(architecture)
    optimizer = make_optimizer(model, learning_rate=0.0)
    seen: dict[str, torch.Tensor] = {}
    optimizer.register_step_pre_hook(
        lambda *_: seen.update({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    )
    settings = {"epochs": 1, "batch": len(rows), "learning_rate": 0.0, "packing": "rows", "seed": 0}
    with quietly(architecture):
        (epoch,) = train(model, optimizer, groups, **settings)
    assert epoch.loss == pytest.approx(total, rel=1e-5)
    wanted = {name: p.grad for name, p in expected.named_parameters() if p.grad is not None}
    assert seen.keys() == wanted.keys()
    largest = max(one.abs().max().item() for one in wanted.values())
    for name, gradient in wanted.items():
        torch.testing.assert_close(seen[name], gradient, atol=1e-4 * largest, rtol=1e-3, msg=name)


@pytest.mark.parametrize("architecture", ALL)
def test_learn_runs_to_the_end_and_its_checkpoint_loads_with_the_ordinary_tools(architecture, tmp_path):
    changes = {"model.architecture": architecture, "model.dropout": "0" if architecture in STILL else "0.2"}
    config = configure("micro", seed=3, changes={**changes, "training.epochs": "3"})
    assert learn(config, tmp_path / "run")
    run = load_run(tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints" / "last"
    kind = AutoModelForCausalLM if architecture in CAUSAL else AutoModelForMaskedLM
    model, tokenizer = kind.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert model.config.model_type == architecture
    rows = run.dataset.filter(pl.col("split") == "validation").to_dicts()
    answers = {}
    for row in rows:
        tokens = tokenizer(f"{row['instruction']} {row['input']}", return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            answers[row["instance"]] = tokenizer.decode(model.eval()(input_ids=tokens).logits[0, -1].argmax()).strip()
    recorded = dict(run.predictions(3).iter_rows())
    assert {instance: recorded[instance] for instance in answers} == answers
    losses = run.metrics.filter(pl.col("measure") == "loss", pl.col("split") == "train").sort("epoch")["value"]
    assert losses[-1] < losses[0]

    # the same logits, weight by weight the same network
    again = kind.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.inference_mode():
        torch.testing.assert_close(again(input_ids=tokens).logits, model(input_ids=tokens).logits)


class _Stopped(Exception):
    pass


@pytest.mark.parametrize("architecture", ["marian", "mamba", "bert"])
def test_a_run_that_was_stopped_and_resumed_gives_the_bytes_of_an_unbroken_one(architecture, tmp_path):
    changes = {"model.architecture": architecture, "model.dropout": "0" if architecture in STILL else "0.2"}
    config = configure("micro", seed=3, changes={**changes, "training.epochs": "4"})
    assert learn(config, tmp_path / "whole")

    def stop(what: str, share: object) -> None:
        if what.startswith("epoch 2 of"):
            raise _Stopped

    with pytest.raises(_Stopped):
        learn(config, tmp_path / "run", progress=stop)
    assert learn(config, tmp_path / "run", resume=True)
    one, other = ((tmp_path / name / "metrics.parquet").read_bytes() for name in ("whole", "run"))
    assert one == other


@pytest.mark.parametrize("architecture", [one for one in ALL if one not in STILL])
def test_dropout_moves_the_training_and_not_the_reading(architecture):
    tokens = torch.tensor([[5, 9, 3, 7, 2]])
    model = network(architecture, dropout=0.5)
    calm = copy.deepcopy(model).eval()
    assert not torch.equal(model(input_ids=tokens).logits, model(input_ids=tokens).logits)
    assert torch.equal(calm(input_ids=tokens).logits, calm(input_ids=tokens).logits)


@pytest.mark.parametrize(
    ("architecture", "parameters"),
    [("gpt2", 54_720), ("opt", 56_704), ("marian", 55_232), ("llama", 65_824), ("bert", 55_934)],
)
def test_parameters_in_use_at_width_32(architecture, parameters):
    """Table 8 says 55 thousand, at the vocabulary and the longest sequence of the main experiment."""
    model = network(architecture, vocabulary=62, layers=6, heads=8)
    assert model.num_parameters(only_trainable=True) == parameters


def test_weights_that_marian_never_uses_are_zero_and_stay_so():
    model = network("marian")
    unused = {name: p for name, p in model.named_parameters() if "encoder_attn" in name}
    assert len(unused) == 2 * 10
    with torch.no_grad():
        before = model(input_ids=torch.tensor([[5, 9, 3]])).logits
        assert not any(p.any() or p.requires_grad for p in unused.values())
        for p in unused.values():
            p.fill_(7.0)
        assert torch.equal(model(input_ids=torch.tensor([[5, 9, 3]])).logits, before)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model.architecture": "mamba"}, "has no dropout"),
        ({"model.architecture": "mamba", "model.dropout": "0", "training.packing": "tree"}, "leave out --fast"),
        ({"model.architecture": "marian", "measure.last_layer": "plain"}, "set it to normed"),
        ({"model.architecture": "opt", "measure.last_layer": "plain"}, "set it to normed"),
        ({"model.architecture": "mamba", "model.dropout": "0", "measure.state": "attention"}, "set it to block"),
        ({"measure.state": "attention", "measure.last_layer": "plain"}, "leave it out"),
        ({"model.architecture": "bert", "training.packing": "tree"}, "leave out --fast"),
        ({"model.architecture": "llama", "model.width": "18", "model.heads": "2"}, "odd width"),
        ({"model.architecture": "opt", "model.heads": "3"}, "not a multiple of model.heads"),
    ],
)
def test_what_an_architecture_has_not_is_refused_in_one_line(changes, says):
    with pytest.raises(Refused, match=says) as refusal:
        check_network(configure("micro", changes=changes))
    assert "\n" not in str(refusal.value)
    check_network(configure("micro", changes={"model.architecture": "mamba", "model.dropout": "0"}))


@pytest.mark.parametrize("room", [alignment, pretraining])
def test_an_encoder_is_for_the_main_experiment_alone(room):
    with pytest.raises(Refused, match="is for `nucleate learn` alone"):
        room.dataset_for(configure("micro", changes={"model.architecture": "bert"}))


def test_an_encoder_is_never_fed_rows_that_hide_what_follows_however_small_its_weights():
    assert not packing_is_exact(network("bert", initial_scale=1e-6, layers=1).eval(), lesson("bert"))
