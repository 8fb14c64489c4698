# ruff: noqa: F811
"""A switch that chooses a LoRA adapter: what it changes, what it leaves to the bit, and that peft says the same."""

import json
import shutil
from dataclasses import replace

import numpy as np
import peft
import polars as pl
import pytest
import torch
from torch import nn

from nucleate.cli import main
from nucleate.model.adapter import Adapter, linear_layers, tune
from nucleate.model.networks import load_network
from nucleate.model.prefix_tree import Group
from nucleate.redirecting import study as study_room
from nucleate.redirecting import tuning
from nucleate.redirecting.loading import load_switched
from nucleate.redirecting.redirect import redirect_into
from nucleate.redirecting.study import study_of
from nucleate.redirecting.switched import SwitchedModel
from nucleate.refusal import Refused
from nucleate.report.application_tables import alignment_table
from nucleate.report.redirection import saved_arm, verdict_of
from nucleate.runs import load_run
from test_families import CAUSAL, tiny, words
from test_redirecting import INPUTS, QUICK, network, prompts, values  # noqa: F401
from test_switched import PROMPTS, alone, batch, centre, generated, parts

TUNED = replace(QUICK, expert="adapter", epochs=6, adapter_rate=1e-2, examples=4)


def adapter_of(made, seed=3, rank=4):
    """One that has learnt something."""
    adapter = Adapter(linear_layers(made), rank=rank, seed=seed)
    for number, up in enumerate(adapter.ups):
        nn.init.normal_(up, std=0.3, generator=torch.Generator().manual_seed(seed + number))
    return adapter


def through(made, adapter, tokenizer, text):
    with adapter.on(made):
        return alone(made, tokenizer, text)[1]


@pytest.fixture(params=CAUSAL)
def both(request):
    """Of every family a model whose switch chooses an adapter for two of four prompts, and what the plain network and
    the network through the adapter say of each."""
    made, tokenizer = tiny(request.param), words()
    plain = [alone(made, tokenizer, text) for text in PROMPTS]
    switch, _ = parts(made)
    centre(switch, torch.stack([states[-1] for states, _ in plain]))
    adapter = adapter_of(made)
    adapted = [through(made, adapter, tokenizer, text) for text in PROMPTS]
    return SwitchedModel(made, tokenizer, switch, adapter).eval(), [logits for _, logits in plain], adapted


def test_prompts_that_are_not_chosen_keep_every_bit_and_the_others_are_read_through_the_adapter(both):
    model, plain, adapted = both
    on = []
    for text, own, other in zip(PROMPTS, plain, adapted, strict=True):
        with torch.no_grad():
            found = model(**batch(model.tokenizer, [text])).logits[0]
        on.append(bool(model.decided[0]))
        assert torch.equal(found, other if on[-1] else own) and not torch.allclose(own, other, atol=1e-3)
    assert sorted(on) == [False, False, True, True]
    model.turn_off()
    for text, own in zip(PROMPTS, plain, strict=True):
        with torch.no_grad():
            assert torch.equal(model(**batch(model.tokenizer, [text])).logits[0], own)


def test_in_a_batch_each_row_goes_its_own_way_and_the_others_keep_the_bits_of_that_batch(both):
    model, _, adapted = both
    given = batch(model.tokenizer, PROMPTS)
    model.turn_off()
    with torch.no_grad():
        frozen = model(**given).logits
        model.turn_on()
        found = model(**given).logits
    assert model.by.tolist().count(0) == 2
    for row, other in enumerate(adapted):
        length = len(other)
        if model.by[row] < 0:
            assert torch.equal(found[row], frozen[row])
        else:
            assert torch.allclose(found[row, :length], other, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("use_cache", [True, False])
def test_generation_goes_through_the_adapter_from_the_prompts_first_token_on(both, use_cache):
    """Against a loop without a cache through the adapter, or through nothing."""
    model, _, _ = both
    adapter = model.expert
    for text in PROMPTS:
        given = batch(model.tokenizer, [text])
        found = model.generate(**given, max_new_tokens=5, do_sample=False, use_cache=use_cache, eos_token_id=None)
        on, tokens = bool(model.decided[0]), given["input_ids"][0].tolist()
        model.turn_off()
        with adapter.on(model.network) if on else torch.no_grad():
            for _ in range(5):
                with torch.no_grad():
                    tokens.append(int(model.network(input_ids=torch.tensor([tokens])).logits[0, -1].argmax()))
        model.turn_on()
        assert found[0].tolist() == tokens


def llama(seed=1):
    made, tokenizer = tiny("llama"), words()
    plain = [alone(made, tokenizer, text) for text in PROMPTS]
    switch, head = parts(made, seed=seed)
    centre(switch, torch.stack([states[-1] for states, _ in plain]))
    return made, tokenizer, switch, head


def test_batches_beams_and_a_static_cache_say_what_each_prompt_says_alone():
    made, tokenizer, switch, _ = llama()
    model = SwitchedModel(made, tokenizer, switch, adapter_of(made)).eval()
    singly = [generated(model, [text])[0] for text in PROMPTS]
    assert generated(model, PROMPTS) == singly
    assert generated(model, PROMPTS, cache_implementation="static") == singly
    beams = [generated(model, [text], num_beams=3)[0] for text in PROMPTS]
    assert generated(model, PROMPTS, num_beams=3) == beams


def test_plain_transformers_generates_the_same_from_the_network_itself():
    made, tokenizer, switch, _ = llama()
    model = SwitchedModel(made, tokenizer, switch, adapter_of(made)).eval()
    for text in PROMPTS:
        given = batch(tokenizer, [text])
        said = made.generate(**given, max_new_tokens=5, do_sample=False, eos_token_id=None)
        assert said[:, given["input_ids"].shape[1] :].tolist() == generated(model, [text])


def test_a_prompt_in_pieces_is_refused_where_an_adapter_is_chosen():
    made, tokenizer, switch, _ = llama()
    model = SwitchedModel(made, tokenizer, switch, adapter_of(made)).eval()
    switch.threshold = 1e-9
    with pytest.raises(Refused, match="in one piece"):
        generated(model, PROMPTS[2:3], prefill_chunk_size=2)
    switch.threshold = 1 - 1e-9
    assert generated(model, PROMPTS[2:3], prefill_chunk_size=2) == generated(model, PROMPTS[2:3])


def test_heads_and_adapters_mix_and_what_is_saved_says_the_same_to_the_bit(tmp_path):
    made, tokenizer, switch, head = llama()
    model = SwitchedModel(made, tokenizer, switch, head).eval()
    second, _ = parts(made, seed=2)
    plain = [alone(made, tokenizer, text)[0] for text in PROMPTS]
    centre(second, torch.stack([states[-1] for states in plain]))
    model.add(second, adapter_of(made))
    third, _ = parts(made, seed=5)
    third.threshold = 1 - 1e-12
    model.add(third, adapter_of(made, seed=9))
    model.save(tmp_path / "model", network=tmp_path, copy=True)
    assert {one.name for one in (tmp_path / "model").iterdir() if one.is_dir()} == {"network", "adapter1", "adapter2"}
    again, seen = load_switched(tmp_path / "model"), set()
    for text in PROMPTS:
        given = batch(tokenizer, [text])
        with torch.no_grad():
            assert torch.equal(model(**given).logits, again(**given).logits)
        assert model.by.tolist() == again.by.tolist()
        seen |= set(again.by.tolist())
    assert {0, 1} <= seen
    again.save(tmp_path / "model", network=tmp_path / "elsewhere", copy=True)
    weights = tmp_path / "model" / "adapter1" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(Refused, match=r"adapter1/adapter_model.safetensors has changed"):
        load_switched(tmp_path / "model")


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of peft's, about transformers
@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen2"])
def test_peft_reads_what_is_saved_and_is_read(kind, tmp_path):
    made, tokenizer = tiny(kind), words()
    adapter = adapter_of(made)
    given = batch(tokenizer, PROMPTS[:1])
    made.config.save_pretrained(tmp_path / "base")
    adapter.save(tmp_path / "ours", network=made, base=str(tmp_path / "base"))
    with torch.no_grad(), adapter.on(made):
        ours = made(**given).logits
    theirs = peft.PeftModel.from_pretrained(tiny(kind), tmp_path / "ours").eval()
    with torch.no_grad():
        assert torch.allclose(theirs(**given).logits, ours, rtol=1e-5, atol=1e-5)
    theirs.save_pretrained(tmp_path / "theirs")
    with torch.no_grad(), Adapter.load(tmp_path / "theirs").on(made):
        assert torch.equal(made(**given).logits, ours)


def test_adapters_of_other_kinds_and_for_other_networks_are_refused(tmp_path):
    made = tiny("llama")
    adapter_of(made).save(tmp_path / "it", network=made, base="base")
    with pytest.raises(Refused, match="for another network"):
        Adapter.load(tmp_path / "it").attach(tiny("gpt2"), lambda: True)
    told = json.loads((tmp_path / "it" / "adapter_config.json").read_text())
    (tmp_path / "it" / "adapter_config.json").write_text(json.dumps(told | {"use_dora": True}))
    with pytest.raises(Refused, match="use_dora"):
        Adapter.load(tmp_path / "it")
    with pytest.raises(Refused, match="is no adapter"):
        Adapter.load(tmp_path)


def test_tuning_changes_the_adapter_alone_and_twice_gives_the_same_bits():
    made = tiny("llama")
    before = {name: one.clone() for name, one in made.state_dict().items()}
    groups = [Group((n, 5, 6), ((7,), (8,)), ((20, 21), (22, 23))) for n in range(10, 18)]
    found = []
    for _ in range(2):
        adapter = Adapter(linear_layers(made), rank=4, seed=1)
        assert list(tune(made, adapter, groups, steps=40, batch=4, learning_rate=1e-2, seed=1))[-1] == 40
        found.append(adapter.state_dict())
    assert all(torch.equal(one, found[1][name]) for name, one in found[0].items())
    assert all(torch.equal(one, before[name]) for name, one in made.state_dict().items())
    assert all(one.requires_grad for one in made.parameters())
    with torch.no_grad(), adapter.on(made):
        assert made(torch.tensor([[9, 5, 6, 8, 22]])).logits[0, -2:].argmax(-1).tolist() == [22, 23]


# --- the door --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(network, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "adapted"
    assert redirect_into(folder, network, prompts(), TUNED)
    return folder


def answered(model, dealt, side):
    right = []
    for one in dealt.sides[side]:
        given = model.tokenizer(f"{one.instruction} {one.input}", return_tensors="pt")
        given.pop("token_type_ids", None)
        said = model.generate(**given, max_new_tokens=2, do_sample=False, eos_token_id=None)
        right.append(model.tokenizer.decode(said[0, -2:]) == one.output)
    return np.mean(right)


def test_an_adapter_learns_the_source_and_switches_keep_the_others(run):
    found = values(run)
    assert {arm for arm, _ in found} == {"main", "adapter", "linear_switch", "mlp_switch"}
    assert found["main", "source_accuracy"] < 0.1 and found["adapter", "source_accuracy"] > 0.8
    arm = saved_arm(load_run(run))
    assert found[arm, "source_accuracy"] > 0.8 and found[arm, "others_kept"] > 0.9
    assert found["adapter", "others_kept"] < found[arm, "others_kept"]
    assert alignment_table(load_run(run)).header == ("on test", "before", "adapter", "linear switch", "MLP switch")


def test_the_saved_model_says_what_the_table_counts(run, network):
    dealt, model, arm = study_of(prompts(), TUNED).dealt, load_switched(run / "model"), saved_arm(load_run(run))
    for side, name in (("test", ""), ("new_inputs", "_new_inputs")):
        assert answered(model, dealt, side) == pytest.approx(values(run)[arm, f"source_accuracy{name}"])
    plain, tokenizer = load_network(network)
    same = []
    for one in dealt.others:
        if one.instance in dealt.asked:
            tokens = tokenizer(f"{one.instruction} {one.input}", return_tensors="pt")["input_ids"]
            with torch.no_grad():
                same.append(bool(model(tokens).logits[0, -1].argmax() == plain(tokens).logits[0, -1].argmax()))
    assert np.mean(same) == pytest.approx(values(run)[arm, "others_kept"])


def test_the_same_command_and_a_run_stopped_at_every_moment_give_the_same_bytes(run, network, tmp_path, monkeypatch):
    made = []

    def counted(room, name):
        own = getattr(room, name)
        monkeypatch.setattr(room, name, lambda *all_, **named: (made.append(name), own(*all_, **named))[1])

    counted(tuning, "tune")
    counted(study_room, "read_prompts_states")
    stopped_at: list[str] = []

    def stop_at_the_next_moment(text, fraction):
        within = text.startswith("tuning an adapter: ") or text == "reading the prompts"
        if fraction is not None and not within and text not in stopped_at:
            stopped_at.append(text)
            raise KeyboardInterrupt

    while not (tmp_path / "run" / "metrics.parquet").exists():
        try:
            redirect_into(tmp_path / "run", network, prompts(), TUNED, resume=True, progress=stop_at_the_next_moment)
        except KeyboardInterrupt:
            continue
    assert "tuning an adapter" in stopped_at and "what the adapter answers" in stopped_at
    assert made == ["read_prompts_states", "tune", "read_prompts_states"]
    for file in (
        "metrics.parquet",
        "others.parquet",
        "model/README.md",
        "model/switch.safetensors",
        "model/adapter/adapter_model.safetensors",
    ):
        assert (tmp_path / "run" / file).read_bytes() == (run / file).read_bytes(), file


def test_the_card_says_that_an_adapter_answers(run):
    card = (run / "model" / "README.md").read_text(encoding="utf-8")
    assert "by a LoRA adapter of rank 8 (a folder of peft's)" in card and "second head" not in card
    assert verdict_of(load_run(run)).sentence in card


def test_a_second_redirection_finds_the_first_as_it_answers_and_leaves_it_so(run, network, tmp_path):
    """An adapter, then a head, then an adapter: what came first is among what is judged, through its adapter."""
    lessons = (("third", "fourth", "head"), ("fourth", "first", "adapter"))
    model, folder = run / "model", run
    for number, (source, target, expert) in enumerate(lessons):
        settings = replace(TUNED, source=source, target=target, expert=expert, epochs=40 if expert == "head" else 6)
        folder = tmp_path / str(number)
        assert redirect_into(folder, model, prompts(), settings)
        before, after, dealt = (
            load_switched(model),
            load_switched(folder / "model"),
            study_of(prompts(), settings).dealt,
        )
        asked = [one for one in dealt.others if one.instance in dealt.asked]
        same = []
        for one in asked:
            tokens = before.tokenizer(f"{one.instruction} {one.input}", return_tensors="pt")["input_ids"]
            with torch.no_grad():
                same.append(bool(before(tokens).logits[0, -1].argmax() == after(tokens).logits[0, -1].argmax()))
        assert np.mean(same) == pytest.approx(values(folder)[saved_arm(load_run(folder)), "others_kept"])
        model = folder / "model"
    last = load_switched(model)
    assert [type(one).__name__ for one in last.experts] == ["Adapter", "Head", "Adapter"]
    for number, settings in enumerate((TUNED, *(replace(TUNED, source=s, target=t) for s, t, _ in lessons))):
        assert answered(last, study_of(prompts(), settings).dealt, "test") > 0.8, number


def test_before_a_source_with_an_adapter_is_redirected_again_it_gets_what_the_adapter_answers(run, tmp_path):
    wished = tmp_path / "own.csv"
    told = {row["input"]: row["output"] for row in prompts() if row["task"] == "second"}
    wished.write_text("input,output\n" + "".join(f"{given},{told[given]}\n" for given in INPUTS))
    settings = replace(QUICK, target=None, outputs=str(wished), examples=4)
    assert redirect_into(tmp_path / "run", run / "model", prompts(), settings)
    arm = saved_arm(load_run(run))
    assert values(tmp_path / "run")["main", "source_accuracy"] == values(run)[arm, "source_accuracy"] > 0.8


def test_the_command_line_tunes_an_adapter_estimates_it_and_holds_it_to_its_bars(network, tmp_path, capsys):
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in prompts()))
    given = ["align", "--model", str(network), "--data", str(data), "--source", "first", "--target", "second"]
    given += ["--expert", "adapter", "--examples", "4"]
    assert main([*given, "--estimate"]) == 0
    assert "million parameters" in capsys.readouterr().out
    out = tmp_path / "run"
    assert main([*given, "--out", str(out), "--want", "0.999999", "--keep", "1"]) in (0, 3)
    said = capsys.readouterr()
    assert "what the adapter answers" in said.err and "the adapter" in said.out
    table = pl.read_parquet(out / "others.parquet")
    assert set(table["arm"]) == {"adapter", "linear_switch", "mlp_switch"}
    shutil.rmtree(out)
    assert main([*given[:-4], "--expert", "adaptor", "--out", str(out)]) == 2
    assert "did you mean 'adapter'" in capsys.readouterr().err
