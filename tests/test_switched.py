"""A switched network: its own logits to the bit where the switch says no, the second head's added where it says yes."""

import json
from functools import partial

import pytest
import torch
from torch import nn

from nucleate.model import series
from nucleate.model.networks import save_network
from nucleate.model.own_head import head_logits
from nucleate.model.prefix_tree import Group
from nucleate.model.switch import Head, Switch, remember
from nucleate.redirecting.loading import load_switched
from nucleate.redirecting.stored import seal
from nucleate.redirecting.switched import SwitchedModel
from nucleate.refusal import Refused
from test_families import CAUSAL, tiny, words
from test_prefix_tree import layers_alone

PROMPTS = ["w1 w2 x3", "w4 x5", "w6 w7 w8 w9 x10", "w11 x12"]


def parts(network, seed=1, rank=4):
    """A switch that is on for about half of all texts, and a head that has learnt something."""
    width, vocabulary = network.config.get_text_config().hidden_size, network.config.vocab_size
    switch, head = Switch(width, "mlp", seed=seed), Head(width, vocabulary, rank=rank)
    nn.init.normal_(head.up.weight, std=2.0, generator=torch.Generator().manual_seed(seed))
    return switch, head


def alone(network, tokenizer, text):
    """The last state and the logits of one text."""
    with torch.no_grad():
        out = network(**batch(tokenizer, [text]), output_hidden_states=True)
    return out.hidden_states[-1][0], out.logits[0]


def batch(tokenizer, texts, side="right"):
    tokenizer.padding_side = side
    found = tokenizer(texts, return_tensors="pt", padding=True)
    return {"input_ids": found["input_ids"], "attention_mask": found["attention_mask"]}


def centre(switch, ends):
    """Half of these states on, half off."""
    with torch.no_grad():
        switch.layers[-1].bias -= switch(ends).sort().values[len(ends) // 2 - 1 : len(ends) // 2 + 1].mean()


@pytest.fixture(params=CAUSAL)
def switched(request):
    """Of every family, with what the plain network says of each prompt alone: (last state, logits)."""
    network, tokenizer = tiny(request.param), words()
    plain = [alone(network, tokenizer, text) for text in PROMPTS]
    switch, head = parts(network)
    centre(switch, torch.stack([states[-1] for states, _ in plain]))
    return SwitchedModel(network, tokenizer, switch, head).eval(), plain


def test_rows_that_are_off_keep_their_logits_to_the_bit_and_the_others_get_the_heads_added(switched):
    model, plain = switched
    on = []
    for text, (states, logits) in zip(PROMPTS, plain, strict=True):
        with torch.no_grad():
            found = model(**batch(model.tokenizer, [text])).logits[0]
            expected = logits + model.expert(states)
        on.append(bool(model.decided[0]))
        assert on[-1] == bool(model.switch(states[-1:])[0] > 0)
        assert torch.equal(found, logits) if not on[-1] else torch.allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert sorted(on) == [False, False, True, True]


def test_rows_of_a_padded_batch_are_decided_at_their_own_last_token(switched):
    model, plain = switched
    wanted = [bool(model.switch(states[-1:])[0] > 0) for states, _ in plain]
    with torch.no_grad():
        model(**batch(model.tokenizer, PROMPTS))
    assert model.decided.tolist() == wanted


@pytest.mark.parametrize("kind", CAUSAL)
def test_a_switch_that_reads_another_layer_decides_by_the_state_of_that_layer(kind):
    """Row by row, in a padded batch, inside `generate` and in a prompt that is read in pieces."""
    network, tokenizer = tiny(kind), words()
    ends = []
    for text in PROMPTS:
        states, _ = layers_alone(network, tokenizer(text)["input_ids"])
        ends.append(torch.from_numpy(states[1, -1]))
    switch, head = parts(network)
    switch.layer = 1
    centre(switch, torch.stack(ends))
    wanted = [bool(switch(end[None])[0] > 0) for end in ends]
    assert sorted(wanted) == [False, False, True, True]
    model = SwitchedModel(network, tokenizer, switch, head).eval()
    for text, on in zip(PROMPTS, wanted, strict=True):
        with torch.no_grad():
            model(**batch(tokenizer, [text]))
        assert model.decided.tolist() == [on]
    with torch.no_grad():
        model(**batch(tokenizer, PROMPTS))
    assert model.decided.tolist() == wanted
    for text, on in zip(PROMPTS, wanted, strict=True):
        one = generated(model, [text])
        assert model.decided.tolist() == [on]
        if kind == "llama":
            assert generated(model, [text], prefill_chunk_size=2) == one and model.decided.tolist() == [on]


def test_the_higher_the_threshold_the_fewer_texts_are_switched(llama):
    ends = torch.stack([alone(tiny("llama"), llama.tokenizer, text)[0][-1] for text in PROMPTS])
    counts = []
    for threshold in (1e-9, 0.5, 1 - 1e-9):
        llama.switch.threshold = threshold
        with torch.no_grad():
            llama(**batch(llama.tokenizer, PROMPTS))
        assert llama.decided.tolist() == llama.switch.is_on(ends).tolist()
        counts.append(int(llama.decided.sum()))
    llama.switch.threshold = 0.5
    assert counts[0] > counts[1] == 2 > counts[2]


def test_of_two_switches_that_say_yes_the_one_taught_last_answers(llama):
    network, tokenizer = tiny("llama"), llama.tokenizer
    first, second = parts(network, seed=1), parts(network, seed=2)
    second[0].layer = 1
    plain = [alone(network, tokenizer, text) for text in PROMPTS]
    inner = [layers_alone(network, tokenizer(text)["input_ids"])[0][1, -1] for text in PROMPTS]
    centre(first[0], torch.stack([states[-1] for states, _ in plain]))
    centre(second[0], torch.stack([torch.from_numpy(one) for one in inner]))
    model = SwitchedModel(network, tokenizer, *first).eval()
    model.add(*second)
    wanted = []
    for text, (states, logits), end in zip(PROMPTS, plain, inner, strict=True):
        on = [first[0].is_on(states[-1:])[0], second[0].is_on(torch.from_numpy(end)[None])[0]]
        wanted.append(1 if on[1] else 0 if on[0] else -1)
        with torch.no_grad():
            found = model(**batch(tokenizer, [text])).logits[0]
            expected = logits + (0 if wanted[-1] < 0 else model.experts[wanted[-1]](states))
        assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4) and model.by.tolist() == [wanted[-1]]
    assert len(set(wanted)) == 3, "each is needed once"
    with torch.no_grad():
        model(**batch(tokenizer, PROMPTS))
    assert model.by.tolist() == wanted


def test_turned_off_it_is_the_network_to_the_bit_and_can_be_turned_on_again(switched):
    model, plain = switched
    model.turn_off()
    with torch.no_grad():
        for text, (_, logits) in zip(PROMPTS, plain, strict=True):
            assert torch.equal(model(**batch(model.tokenizer, [text])).logits[0], logits)
    model.turn_on()
    changed = []
    with torch.no_grad():
        for text, (_, logits) in zip(PROMPTS, plain, strict=True):
            changed.append(not torch.equal(model(**batch(model.tokenizer, [text])).logits[0], logits))
    assert sum(changed) == 2


@pytest.mark.parametrize("use_cache", [True, False])
def test_generation_keeps_to_the_decision_of_the_prompt(switched, use_cache):
    """Against a loop without a cache that adds the head wherever the prompt, and only the prompt, was switched."""
    model, plain = switched
    for text, (states, _) in zip(PROMPTS, plain, strict=True):
        on = bool(model.switch(states[-1:])[0] > 0)
        tokens = model.tokenizer(text)["input_ids"]
        expected = list(tokens)
        model.turn_off()
        for _ in range(6):
            with torch.no_grad():
                out = model(input_ids=torch.tensor([expected]), output_hidden_states=True)
                logits = out.logits[0, -1] + (model.expert(out.hidden_states[-1][0, -1]) if on else 0)
            expected.append(int(logits.argmax()))
        model.turn_on()
        given = batch(model.tokenizer, [text])
        found = model.generate(**given, max_new_tokens=6, do_sample=False, use_cache=use_cache, eos_token_id=None)
        assert found[0].tolist() == expected
        assert model.decided.tolist() == [on]


@pytest.fixture(scope="module")
def llama():
    network, tokenizer = tiny("llama"), words()
    plain = [alone(network, tokenizer, text) for text in PROMPTS]
    switch, head = parts(network)
    centre(switch, torch.stack([states[-1] for states, _ in plain]))
    return SwitchedModel(network, tokenizer, switch, head).eval()


def generated(model, texts, **more):
    given = batch(model.tokenizer, texts, side="left")
    found = model.generate(**given, max_new_tokens=5, do_sample=False, eos_token_id=None, **more)
    return found[:, given["input_ids"].shape[1] :].tolist()


def test_a_batch_generates_what_each_prompt_generates_alone(llama):
    assert generated(llama, PROMPTS) == [generated(llama, [text])[0] for text in PROMPTS]


@pytest.mark.parametrize("more", [{"prefill_chunk_size": 2}, {"prompt_lookup_num_tokens": 2}])
def test_other_ways_to_decode_greedily_give_the_same(llama, more):
    for text in PROMPTS:
        assert generated(llama, [text], **more) == generated(llama, [text])


def test_beams_share_the_decision_of_their_prompt(llama):
    found = generated(llama, PROMPTS, num_beams=3)
    assert len(llama.decided) == 3 * len(PROMPTS)
    assert all(len(set(own)) == 1 for own in llama.decided.view(-1, 3).tolist())
    on = llama.decided.view(-1, 3)[:, 0].tolist()
    llama.turn_off()
    plain = generated(llama, PROMPTS, num_beams=3)
    llama.turn_on()
    assert [one != other for one, other in zip(found, plain, strict=True)] == on


def test_the_networks_own_generate_is_switched_too_and_so_is_a_pipeline(llama):
    from transformers import pipeline

    given = batch(llama.tokenizer, PROMPTS, side="left")
    found = llama.network.generate(**given, max_new_tokens=5, do_sample=False, eos_token_id=None)
    assert found[:, given["input_ids"].shape[1] :].tolist() == generated(llama, PROMPTS)
    speak = pipeline("text-generation", model=llama, tokenizer=llama.tokenizer)
    (said,) = speak(PROMPTS[0], max_new_tokens=5, do_sample=False, eos_token_id=None, return_full_text=False)
    assert said["generated_text"] == llama.tokenizer.decode(generated(llama, PROMPTS[:1])[0])


def test_a_loop_of_ones_own_with_a_cache_keeps_to_the_decision(llama):
    for text in PROMPTS:
        tokens, cache, said = llama.tokenizer(text, return_tensors="pt")["input_ids"], None, []
        for _ in range(5):
            with torch.no_grad():
                out = llama(input_ids=tokens, past_key_values=cache, use_cache=True)
            cache, tokens = out.past_key_values, out.logits[:, -1:].argmax(-1)
            said.append(int(tokens))
        assert said == generated(llama, [text])[0]


def test_logits_are_those_that_head_and_switch_learnt_from(llama):
    tokens = [tuple(llama.tokenizer(text)["input_ids"]) for text in PROMPTS]
    llama.turn_off()
    memory = remember(llama.network, [Group((), (one,), ((5,),)) for one in tokens], answers_only=True)
    llama.turn_on()
    expected = memory.logits + (llama.switch(memory.ends) > 0)[:, None] * llama.expert(memory.states)
    for text, wanted in zip(PROMPTS, expected, strict=True):
        with torch.no_grad():
            found = llama(**batch(llama.tokenizer, [text])).logits[0, -1]
        assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", CAUSAL)
def test_states_give_the_networks_logits_by_its_own_code(kind):
    network, tokenizer = tiny(kind), words()
    states, logits = alone(network, tokenizer, PROMPTS[2])
    assert torch.allclose(head_logits(network, states), logits, rtol=1e-4, atol=1e-4)


def test_labels_are_refused_while_it_is_on(llama):
    tokens = llama.tokenizer(PROMPTS[0], return_tensors="pt")["input_ids"]
    with pytest.raises(Refused, match="no loss for labels"):
        llama(input_ids=tokens, labels=tokens)
    llama.turn_off()
    assert llama(input_ids=tokens, labels=tokens).loss > 0
    llama.turn_on()


@pytest.mark.parametrize("kind", ["bert", "t5"])
def test_what_does_not_generate_is_refused(kind):
    network = tiny(kind)
    with pytest.raises(Refused, match="no causal language model"):
        SwitchedModel(network, words(), Switch(32, "linear"), Head(32, 64))


# --- saved and loaded ------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(llama, tmp_path):
    """An ordinary network folder and two switched models of it: by reference and with a copy."""
    save_network(llama.network, llama.tokenizer, tmp_path / "original")
    for name, copy in (("referring", False), ("whole", True)):
        llama.save(tmp_path / name, network=tmp_path / "original", copy=copy, card="# card\n")
    return tmp_path


@pytest.mark.parametrize("name", ["referring", "whole"])
def test_a_loaded_model_gives_the_same_logits_and_texts(llama, saved, name):
    if name == "whole":
        (saved / "original").rename(saved / "elsewhere")
    model = load_switched(saved / name)
    for text in PROMPTS:
        with torch.no_grad():
            one, other = (m(**batch(llama.tokenizer, [text])).logits for m in (model, llama))
        assert torch.equal(one, other)
    assert generated(model, PROMPTS) == generated(llama, PROMPTS)
    assert (saved / name / "README.md").read_text() == "# card\n"


def test_several_switches_with_their_layers_and_thresholds_are_saved_and_loaded(llama, saved):
    model = load_switched(saved / "whole")
    switch, head = parts(model.network, seed=4)
    switch.layer, switch.threshold = 1, 0.3
    model.add(switch, head, {"source": "second"})
    model.save(saved / "two", network=saved / "original")
    again = load_switched(saved / "two")
    assert [(one.layer, one.threshold) for one in again.switches] == [(None, 0.5), (1, 0.3)]
    assert again.facts == [{}, {"source": "second"}]
    with torch.no_grad():
        for text in PROMPTS:
            assert torch.equal(*(m(**batch(llama.tokenizer, [text])).logits for m in (model, again)))
    assert generated(again, PROMPTS) == generated(model, PROMPTS)


def test_what_an_earlier_version_saved_is_loaded_still(llama, saved):
    """One switch, of the last layer, told of beside its head."""
    told = json.loads((saved / "whole" / "switched.json").read_text())
    (one,) = told.pop("switches")
    told |= {"format": 1, "switch": {key: one[key] for key in ("kind", "width")}, "head": {"rank": one["rank"]}}
    told |= {"source": "a task", "seal": None}
    told["seal"] = seal({key: value for key, value in told.items() if key != "seal"})
    (saved / "whole" / "switched.json").write_text(json.dumps(told))
    model = load_switched(saved / "whole")
    assert generated(model, PROMPTS) == generated(llama, PROMPTS)
    assert model.facts == [{"source": "a task"}]


def test_the_original_may_have_moved_if_one_says_where_it_is(llama, saved):
    (saved / "original").rename(saved / "elsewhere")
    with pytest.raises(Refused, match="network="):
        load_switched(saved / "referring")
    model = load_switched(saved / "referring", network=saved / "elsewhere")
    assert generated(model, PROMPTS) == generated(llama, PROMPTS)


@pytest.mark.parametrize(
    ("name", "file", "message"),
    [
        ("referring", "switch.safetensors", "switch.safetensors has changed"),
        ("referring", "switched.json", "switched.json has changed"),
        ("referring", "../original/model.safetensors", "model.safetensors has changed since the switch was taught"),
        ("referring", "../original/config.json", "config.json has changed since the switch was taught"),
        ("whole", "network/model.safetensors", "model.safetensors has changed"),
    ],
)
def test_what_was_edited_after_saving_is_refused(saved, name, file, message):
    path = saved / name / file
    if path.suffix == ".json":
        told = json.loads(path.read_text())
        told["dtype" if "config" in path.name else "format"] = 7
        path.write_text(json.dumps(told))
    else:
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    with pytest.raises(Refused, match=message):
        load_switched(saved / name)


def test_what_is_gone_is_refused_and_the_card_may_be_edited(saved):
    (saved / "referring" / "README.md").write_text("mine\n")
    load_switched(saved / "referring")
    (saved / "referring" / "switch.safetensors").unlink()
    with pytest.raises(Refused, match="is gone"):
        load_switched(saved / "referring")
    with pytest.raises(Refused, match=r"holds no switched\.json"):
        load_switched(saved / "original")


def test_only_a_switched_model_is_replaced(llama, saved):
    with pytest.raises(Refused, match="holds no switched model"):
        llama.save(saved / "original", network=saved / "original")
    llama.save(saved / "referring", network=saved / "original", card="again")
    assert (saved / "referring" / "README.md").read_text() == "again"


def test_the_weights_that_it_refers_to_and_what_is_not_ours_are_never_replaced(llama, saved):
    whole = saved / "whole"
    before = {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()}
    with pytest.raises(Refused, match="will be replaced"):
        llama.save(whole, network=whole / "network")
    (whole / "thesis.tex").write_text("years of work")
    with pytest.raises(Refused, match=r"thesis\.tex, which is not ours"):
        llama.save(whole, network=saved / "original")
    (whole / "thesis.tex").unlink()
    assert before == {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()}
    llama.save(whole, network=whole / "network", copy=True, card="again")
    assert generated(load_switched(whole), PROMPTS) == generated(llama, PROMPTS)


def test_a_death_between_the_two_renames_of_a_replacement_is_mended_at_the_next_look(llama, saved):
    (saved / "whole").rename(saved / ".whole.old")
    assert generated(load_switched(saved / "whole"), PROMPTS) == generated(llama, PROMPTS)


def test_of_a_network_of_the_hub_that_files_are_loaded_which_are_checked(llama, tmp_path, monkeypatch):
    """The cache of the hub, played: `main` moves to a commit with other weights after the switch was taught."""
    home = tmp_path / "models--someone--net"
    save_network(llama.network, llama.tokenizer, home / "snapshots" / "abc")
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text("abc")
    in_cache = partial(series.try_to_load_from_cache, cache_dir=tmp_path)
    monkeypatch.setattr(series, "try_to_load_from_cache", in_cache)
    llama.save(tmp_path / "switched", network="someone/net")
    assert generated(load_switched(tmp_path / "switched"), PROMPTS) == generated(llama, PROMPTS)
    other = tiny("llama")
    with torch.no_grad():
        other.get_input_embeddings().weight.add_(1)
    save_network(other, llama.tokenizer, home / "snapshots" / "def")
    (home / "refs" / "main").write_text("def")
    assert generated(load_switched(tmp_path / "switched"), PROMPTS) == generated(llama, PROMPTS), "of its own commit"
    taught = home / "snapshots" / "abc"
    (taught / "more.json").write_text("{}")  # another tool completes the snapshot
    load_switched(tmp_path / "switched")
    (taught / "model.safetensors").write_bytes((home / "snapshots" / "def" / "model.safetensors").read_bytes())
    with pytest.raises(Refused, match="has changed since the switch was taught"):
        load_switched(tmp_path / "switched")
