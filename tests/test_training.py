"""Training depends on the network, the seed and the epoch's number alone; it learns; it never goes on with a NaN."""

import math
from itertools import pairwise

import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import load_file

from nucleate.model import training
from nucleate.model.networks import gpt2
from nucleate.model.packed_pass import batch_loss
from nucleate.model.prefix_tree import Group, plain
from nucleate.model.training import (
    cosine,
    load_state,
    make_optimizer,
    order,
    save_state,
    stream,
    train,
    weights,
)
from nucleate.refusal import Refused

# Two tasks, two ways to ask for each, three inputs: what follows an input depends on who asks.
GROUPS = [
    Group((2 + way, 6, 7), ((10,), (11,), (12,)), tuple((answer,) for answer in answers))
    for way, answers in enumerate([(13, 14, 15), (14, 15, 13), (13, 14, 15), (14, 15, 13)])
]


def network(dropout=0.1, seed=0):
    return gpt2(
        vocabulary=16,
        width=16,
        feed_forward=32,
        layers=2,
        heads=2,
        positions=8,
        dropout=dropout,
        pad=0,
        seed=seed,
    )


def fresh(dropout=0.1):
    model = network(dropout)
    return model, make_optimizer(model, learning_rate=3e-3)


def run(model, optimizer, epochs=4, first_epoch=1, stop=None, **settings):
    done = []
    settings = {"batch": 6, "learning_rate": 3e-3, "packing": "tree", "seed": 1} | settings
    for epoch in train(model, optimizer, GROUPS, epochs=epochs, first_epoch=first_epoch, **settings):
        done.append(epoch)
        if epoch.number == stop:
            break
    return done


def same(a, b):
    a, b = weights(a), weights(b)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("packing", ["tree", "rows"])
def test_stopping_saving_and_going_on_gives_the_bytes_of_an_unbroken_run(tmp_path, packing):
    whole, optimizer = fresh()
    expected = run(whole, optimizer, packing=packing)

    first, optimizer = fresh()
    begun = run(first, optimizer, stop=2, packing=packing)
    save_state(tmp_path / "state", first, optimizer, epoch=2, curve=[0.5, None])
    torch.manual_seed(99)
    torch.rand(7)  # whatever else happened in between
    second = network(seed=8)
    optimizer = make_optimizer(second, learning_rate=1.0)
    assert load_state(tmp_path / "state", second, optimizer) == {"epoch": 2, "curve": [0.5, None]}
    assert same(first, second)
    ended = run(second, optimizer, first_epoch=3, packing=packing)
    assert same(whole, second)
    assert [e.loss for e in begun + ended] == [e.loss for e in expected]
    assert [e.number for e in begun + ended] == [1, 2, 3, 4]


def test_equal_states_are_equal_bytes_and_best_weights_come_back(tmp_path):
    model, optimizer = fresh()
    run(model, optimizer, epochs=1)
    best = weights(model)
    run(model, optimizer, epochs=2)
    save_state(tmp_path / "a", model, optimizer, best=best, accuracy=0.5)
    save_state(tmp_path / "b", model, optimizer, best=best, accuracy=0.5)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert sorted(f.name for f in tmp_path.iterdir()) == ["a", "b"]
    other, other_optimizer = fresh()
    loaded = load_state(tmp_path / "a", other, other_optimizer)
    assert loaded.pop("best").keys() == best.keys() and loaded == {"accuracy": 0.5}
    assert other.lm_head.weight is other.transformer.wte.weight  # tied weights stay tied
    saved = load_state(tmp_path / "a", *fresh())["best"]
    assert all(torch.equal(saved[name], best[name]) for name in best)


def test_a_loaded_state_keeps_no_hold_of_its_file_which_windows_would_then_not_replace(tmp_path):
    def held() -> bool:
        return any(one.path == str(tmp_path / "state") for one in psutil.Process().memory_maps())

    model, optimizer = fresh()
    run(model, optimizer, epochs=1)
    save_state(tmp_path / "state", model, optimizer, best=weights(model))
    raw = load_file(tmp_path / "state")
    assert held()
    del raw
    loaded = load_state(tmp_path / "state", model, optimizer)
    assert loaded["best"] and not held()


def test_a_state_that_does_not_fit_is_refused_and_changes_nothing(tmp_path):
    model, optimizer = fresh()
    save_state(tmp_path / "state", model, optimizer)
    wider = gpt2(vocabulary=16, width=32, feed_forward=64, layers=2, heads=2, positions=8, dropout=0.0, pad=0, seed=0)
    before = weights(wider)
    with pytest.raises(Refused, match="another network"):
        load_state(tmp_path / "state", wider, make_optimizer(wider, learning_rate=1e-3))
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(wider).items())
    (tmp_path / "state").write_bytes(b"half written")
    with pytest.raises(Refused, match="no whole safetensors file"):
        load_state(tmp_path / "state", model, optimizer)
    with pytest.raises(Refused, match="no whole safetensors file"):
        load_state(tmp_path / "missing", model, optimizer)


@pytest.mark.parametrize("packing", ["tree", "rows"])
def test_it_learns_what_it_did_not_know_before(packing):
    model, optimizer = fresh(dropout=0.0)
    with torch.no_grad():
        before = batch_loss(model, plain(GROUPS)).item()
    epochs = run(model, optimizer, epochs=60, packing=packing)
    with torch.no_grad():
        after = batch_loss(model, plain(GROUPS)).item()
    assert before > 2.5 and after < 1.2
    assert epochs[0].loss > epochs[-1].loss and all(e.seconds > 0 for e in epochs)


def test_tree_and_rows_take_the_same_step_on_the_same_instances():
    models = []
    for packing in ("tree", "rows"):
        model = network(dropout=0.0)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        [epoch] = run(model, optimizer, epochs=1, batch=12, learning_rate=0.1, packing=packing)
        models.append((model, epoch.loss))
    (tree, loss), (rows, other) = models
    assert loss == pytest.approx(other, rel=1e-6)
    for (name, a), b in zip(tree.named_parameters(), rows.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6, msg=name)


def test_the_first_step_is_that_of_plain_torch():
    model, by_hand = network(dropout=0.0), network(dropout=0.0)
    run(model, make_optimizer(model, learning_rate=1e-3), epochs=1, batch=12, learning_rate=1e-3)
    optimizer = torch.optim.AdamW(by_hand.parameters(), lr=1e-3, weight_decay=0.01)
    batch_loss(by_hand, plain(GROUPS)).backward()
    torch.nn.utils.clip_grad_norm_(by_hand.parameters(), 1.0)
    optimizer.step()
    for (name, a), b in zip(model.named_parameters(), by_hand.parameters(), strict=True):
        # AdamW's first step is the gradient's sign: where there is hardly a gradient, rounding decides.
        known = b.grad.abs() > 1e-5
        torch.testing.assert_close(a[known], b[known], rtol=1e-4, atol=1e-6, msg=name)


def test_gradients_are_clipped():
    moved = []
    for limit in (1e-6, 1e9):
        model = network(dropout=0.0)
        run(
            model,
            torch.optim.SGD(model.parameters(), lr=1.0),
            epochs=1,
            batch=12,
            learning_rate=1.0,
            max_gradient_norm=limit,
        )
        start = weights(network(dropout=0.0))
        moved.append(sum((t - start[n]).square().sum() for n, t in weights(model).items()).sqrt().item())
    assert moved[0] == pytest.approx(1e-6, rel=0.1)
    assert moved[1] > 0.1


def test_an_epoch_visits_every_instance_once_in_an_order_of_its_own():
    branches = [5] * 40
    tree = order(branches, packing="tree", batch=65, seed=0, epoch=1)
    assert [len(b) for b in tree] == [13, 13, 13, 1]
    rows = order(branches, packing="rows", batch=65, seed=0, epoch=1)
    assert [len(b) for b in rows] == [65, 65, 65, 5]
    for batches, count in ((tree, 40), (rows, 200)):
        assert sorted(np.concatenate(batches).tolist()) == list(range(count))
    again = order(branches, packing="tree", batch=65, seed=0, epoch=1)
    assert all(np.array_equal(a, b) for a, b in zip(tree, again, strict=True))
    for other in ({"seed": 1, "epoch": 1}, {"seed": 0, "epoch": 2}):
        assert not np.array_equal(tree[0], order(branches, packing="tree", batch=65, **other)[0])


def test_the_learning_rate_falls_from_its_peak_to_zero_over_the_whole_run():
    rates = []
    model, optimizer = fresh()
    optimizer.register_step_post_hook(lambda one, *given: rates.append(one.param_groups[0]["lr"]))
    run(model, optimizer)
    assert len(rates) == 8  # 4 epochs of 2 steps
    assert rates[0] == 3e-3
    assert all(a > b for a, b in pairwise(rates))
    assert rates == [pytest.approx(cosine(k, 8, 3e-3)) for k in range(8)]
    assert cosine(4, 8, 1.0) == pytest.approx(0.5) and cosine(8, 8, 1.0) == pytest.approx(0, abs=1e-12)


def test_dropout_follows_the_seed_and_the_callers_random_state_stays():
    torch.manual_seed(4)
    expected = torch.rand(3)
    torch.manual_seed(4)
    a = run(*fresh(), epochs=1)
    assert torch.equal(torch.rand(3), expected)
    b = run(*fresh(), epochs=1)
    still = run(*fresh(dropout=0.0), epochs=1)
    assert a[0].loss == b[0].loss != still[0].loss


def test_every_epoch_drops_something_else():
    first, second = run(*fresh(), epochs=2, batch=12, learning_rate=0.0)
    assert abs(first.loss - second.loss) > 1e-4
    first, second = run(*fresh(dropout=0.0), epochs=2, batch=12, learning_rate=0.0)
    assert first.loss == pytest.approx(second.loss, rel=1e-6)  # nothing else differs at a learning rate of 0


def test_the_mode_of_the_network_is_put_back():
    model, optimizer = fresh()
    model.eval()
    run(model, optimizer, epochs=1)
    assert not model.training


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_number_that_is_not_finite_stops_the_run_before_the_weights_are_spoilt(what, monkeypatch):
    model, optimizer = fresh()
    before = weights(model)
    if what == "loss":
        monkeypatch.setattr(training, "batch_loss", lambda *given: batch_loss(*given) * math.nan)
    else:
        model.transformer.wpe.weight.register_hook(lambda g: g * math.inf)
    with pytest.raises(RuntimeError, match=r"epoch 1, step 0.*no longer finite"):
        run(model, optimizer)
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(model).items())


def test_bfloat16_computes_coarsely_and_keeps_weights_in_float32():
    model, optimizer = fresh(dropout=0.0)
    coarse = run(model, optimizer, dtype="bfloat16", epochs=1)
    exact = run(*fresh(dropout=0.0), epochs=1)
    assert coarse[0].loss == pytest.approx(exact[0].loss, rel=0.02) and coarse[0].loss != exact[0].loss
    assert all(t.dtype == torch.float32 for t in weights(model).values())
    assert all(s["exp_avg"].dtype == torch.float32 for s in optimizer.state.values())


def test_a_network_that_cannot_be_packed_is_trained_on_plain_rows():
    from transformers import BloomConfig, BloomForCausalLM

    torch.manual_seed(0)
    model = BloomForCausalLM(BloomConfig(vocab_size=16, hidden_size=16, n_layer=1, n_head=2))
    with pytest.warns(UserWarning, match="plain padded rows"):
        first, *_, last = run(model, make_optimizer(model, learning_rate=3e-3), epochs=10)
    assert last.loss < first.loss


def test_unusable_settings_are_refused():
    for wrong in ({"packing": "bush"}, {"dtype": "float16"}):
        with pytest.raises(Refused):
            run(*fresh(), **wrong)
    with pytest.raises(Refused, match="no instances"):
        next(train(*fresh(), [], epochs=1, learning_rate=1e-3, packing="rows", seed=0))
    with pytest.raises(Refused, match="8 positions"):
        long = [Group(tuple(range(2, 11)), ((3,),))]
        next(train(*fresh(), long, epochs=1, learning_rate=1e-3, packing="rows", seed=0))


def test_streams_depend_on_names_and_not_on_order():
    assert stream(1, "a", 2) == stream(1, "a", 2) < 2**63
    assert len({stream(1, "a"), stream(2, "a"), stream(1, "b"), stream(1, "a", 1)}) == 4
