"""The reading of labelled prompts: several places of each, answers, chats, states spilled, what cannot be read."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers as hf
from safetensors.numpy import load_file

from nucleate.model import texts
from nucleate.model.batches import share_prefixes
from nucleate.model.deadline import deadline
from nucleate.model.networks import load_network
from nucleate.model.prefix_tree import pack
from nucleate.model.prompts import read_prompts_states
from nucleate.model.texts import prompts_of
from nucleate.refusal import Refused
from test_families import WHOLE, WIDE, Line, alone, lines, tiny, words
from test_states import merging_tokenizer

CHAT = (
    "{% for turn in messages %}x19 {{ turn.role }} {{ turn.content | trim }} x18 {% endfor %}"
    "{% if add_generation_prompt %}x19 x17{% endif %}"
)


def chatty():
    tokenizer = words()
    tokenizer.chat_template = CHAT.replace("turn.role", "{'user': 'w18', 'system': 'w19'}[turn.role]")
    return tokenizer


def read(model, tokenizer, prompts, reads=("input",), **more):
    return read_prompts_states(model, tokenizer, prompts, reads=dict.fromkeys(reads), **more)


def same(states, expected):
    np.testing.assert_allclose(states, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def test_spilled_states_are_the_same_and_lie_in_files_that_safetensors_reads(tmp_path):
    model, tokenizer, prompts = tiny("llama"), words(), lines()[:12]
    kept = read(model, tokenizer, prompts, ("input", "answer_start"))
    spilled = read(model, tokenizer, prompts, ("input", "answer_start"), spill=tmp_path / "states")
    assert isinstance(spilled.states["input"], np.memmap) and not isinstance(kept.states["input"], np.memmap)
    for name, states in kept.states.items():
        np.testing.assert_array_equal(spilled.states[name], states)
        np.testing.assert_array_equal(load_file(tmp_path / "states" / f"{name}.safetensors")["states"], states)


@pytest.mark.parametrize("kind", ["llama", "mistral", "bert"])
def test_the_size_of_a_batch_changes_nothing(kind):
    model, tokenizer, prompts = tiny(kind), words(), lines()[:14]
    whole = read(model, tokenizer, prompts, ("input", "instruction_end"))
    for budget in (7, 40):
        small = read(model, tokenizer, prompts, ("input", "instruction_end"), tokens_per_batch=budget)
        for name, states in whole.states.items():
            same(small.states[name], states)
        assert small.answers == whole.answers


def test_equal_prompts_are_computed_once_and_common_beginnings_too(monkeypatch):
    model, tokenizer, prompts = tiny("llama"), words(), lines()[:15]
    fed = []

    def count(groups):
        fed.append(sum(group.size for group in groups))
        return pack(groups)

    monkeypatch.setattr("nucleate.model.blocks.pack", count)
    once = read(model, tokenizer, prompts, tokens_per_batch=2048)
    thrice = read(model, tokenizer, prompts * 3, tokens_per_batch=2048)
    assert fed[0] == fed[1] and len(fed) == 2
    assert fed[0] < 0.6 * sum(len(f"{one.instruction} {one.input} {one.output}".split()) - 1 for one in prompts)
    np.testing.assert_array_equal(thrice.states["input"], np.tile(once.states["input"], (1, 3, 1)))


def test_texts_with_a_long_common_beginning_share_it_and_others_do_not():
    system = tuple(range(5, 45))
    groups, order = share_prefixes([((*system, 50 + number), (1, 2)) for number in range(9)])
    assert [group.prefix for group in groups] == [system] and sorted(order) == list(range(9))
    rows = [((1, *[number] * 20, k), ()) for k in range(3) for number in (7, 8, 9)]  # one common token is not worth it
    groups, order = share_prefixes(rows)
    assert [group.prefix for group in groups] == [(1, *[number] * 20) for number in (7, 8, 9)]
    flat = [(group.prefix + branch, ()) for group in groups for branch in group.branches]
    assert flat == [rows[place] for place in order]


def test_without_inputs_the_last_token_of_the_prompt_is_read():
    model, tokenizer = tiny("llama"), words()
    prompts = [Line("w1 w2", "", None, "a"), Line("w3", "", "x1", "b"), Line("w1 w2 w4", "", None, "a")]
    reading = read_prompts_states(model, tokenizer, prompts, reads={"input": [0, 1], "answer_start": [2]})
    assert list(reading.states) == ["answer_start"] and reading.layers == {"answer_start": (0, 1, 2)}
    for row, one in enumerate(prompts):
        same(reading.states["answer_start"][:, row], alone(model, tokenizer(one.instruction)["input_ids"])[0][:, -1])
    assert reading.scored.tolist() == [False, True, False]


def test_a_whole_answer_is_right_where_greedy_generation_gives_it():
    model, tokenizer, rng = tiny("qwen3"), words(), random.Random(1)
    prompts, expected = [], []
    for number, one in enumerate(lines()[:15]):
        fed = tokenizer(f"{one.instruction} {one.input}", return_tensors="pt")["input_ids"]
        made = model.generate(fed, max_new_tokens=3, do_sample=False, eos_token_id=None)[0, fed.shape[1] :].tolist()
        given = list(made)
        if number % 3:  # another first or last token
            place = 0 if number % 3 == 1 else 2
            given[place] = rng.choice([token for token in range(4, 44) if token != made[place]])
        prompts.append(replace(one, output=" ".join(tokenizer.convert_ids_to_tokens(given))))
        expected.append((given[0] == made[0], given == made))
    reading = read(model, tokenizer, prompts)
    assert list(zip(reading.predicted.tolist(), reading.whole.tolist(), strict=True)) == expected


def test_answers_alone_cost_no_states():
    model, tokenizer, prompts = tiny("llama"), words(), lines()[:9]
    reading = read(model, tokenizer, prompts, ())
    assert reading.states == {} and reading.answers == read(model, tokenizer, prompts).answers


def test_a_prompt_under_two_tasks_is_judged_among_each_ones_own_outputs():
    model, tokenizer = tiny("llama"), words()
    fed = tokenizer("w1 w2 x1")["input_ids"]
    order = alone(model, fed)[1][-1, 4:].argsort(descending=True) + 4
    best, middle, worst = (tokenizer.convert_ids_to_tokens([order[k].item()])[0] for k in (0, 5, 30))
    prompts = [
        Line("w1 w2", "x1", middle, "easy"),
        Line("w5", "x2", worst, "easy"),
        Line("w1 w2", "x1", middle, "hard"),
        Line("w5", "x2", best, "hard"),
    ]
    reading = read(model, tokenizer, prompts)
    assert reading.predicted[:3].tolist() == [False, reading.predicted[1], False]
    assert reading.restricted[[0, 2]].tolist() == [True, False]
    np.testing.assert_array_equal(reading.states["input"][:, 0], reading.states["input"][:, 2])


def test_an_answer_that_would_merge_with_the_prompt_leaves_the_prompt_alone():
    model, tokenizer = tiny("llama"), merging_tokenizer()
    prompts = [Line("bat", "at", "ca", "a"), Line("bb", "ca", "b", "b")]
    reading = read(model, tokenizer, prompts)  # "at" and " ca" would become "a", "t c", "a"
    for row, one in enumerate(prompts):
        fed = tokenizer(f"{one.instruction} {one.input}")["input_ids"][:-1]
        states, logits = alone(model, fed)
        same(reading.states["input"][:, row], states[:, -1])
        answer = tokenizer(f" {one.output}", add_special_tokens=False)["input_ids"]
        best = alone(model, fed + answer)[1][len(fed) - 1 : -1].argmax(-1).tolist()
        assert reading.predicted[row] == (logits[-1].argmax() == answer[0])
        assert reading.whole[row] == (best[: len(answer)] == answer)


@pytest.mark.parametrize("kind", ["llama", "mpt"])
def test_chats_are_rendered_by_the_template_and_the_input_is_found_in_them(kind):
    """`x19` and `w18`, words of the template, stand in the texts too; blanks around a turn are cut by the template."""
    model, tokenizer = tiny(kind), chatty()
    prompts = [
        Line("w18 x19", "w18", "x1", "a"),
        Line(" w18 x19", "x18 x19", "x2 x3", "b"),
        Line("w2", "x4 ", "x5", "a"),
    ]
    reading = read(model, tokenizer, prompts, ("input", "instruction_end", "answer_start"), chat=True)
    for row, one in enumerate(prompts):
        tokens = f"x19 w18 {one.instruction} {one.input} x18 x19 x17".split()
        states, logits = alone(model, tokenizer(" ".join(tokens))["input_ids"])
        instruction = 2 + len(one.instruction.split()) - 1
        places = {"input": len(tokens) - 4, "instruction_end": instruction, "answer_start": len(tokens) - 1}
        for name, place in places.items():
            same(reading.states[name][:, row], states[:, place])
        assert reading.answers[row] == tokenizer.decode([logits[-1].argmax().item()])


def test_messages_are_read_as_they_are():
    model, tokenizer = tiny("llama"), chatty()
    chats = [
        ({"role": "system", "content": "w1"}, {"role": "user", "content": "w2"}),
        ({"role": "user", "content": "w3 w4"},),
    ]
    prompts = [Line("w1\nw2", "", "x1", "a"), Line("w3 w4", "", "x2", "b")]
    reading = read(model, tokenizer, prompts, messages=chats, chat=True)
    for row, text in enumerate(["x19 w19 w1 x18 x19 w18 w2 x18 x19 x17", "x19 w18 w3 w4 x18 x19 x17"]):
        same(reading.states["answer_start"][:, row], alone(model, tokenizer(text)["input_ids"])[0][:, -1])


@pytest.mark.parametrize(
    "template, answer",
    [
        ("{% if turn.role == 'user' %}b {{ turn.content }} b{% else %} {{ turn.content }} t{% endif %}", " c"),
        ("b{{ turn.content }}b{% if turn.role == 'user' %}a{% endif %}", "c"),
        ("{% if turn.role == 'user' %}b{{ turn.content }}b{% else %}at{{ turn.content }}{% endif %}", "c"),
    ],
    ids=["a blank, as Llama 2", "none, as ChatML", "a thought before it"],
)
def test_the_answer_of_a_chat_begins_as_the_template_would_begin_it(template, answer):
    tokenizer = merging_tokenizer()
    tokenizer.chat_template = "{% for turn in messages %}" + template + "{% endfor %}"
    (prompt,) = prompts_of(tokenizer, [Line("tt", "aa", "c", "a")], reads=("input",), chat=True)
    assert tokenizer.convert_ids_to_tokens(prompt.answer) == [answer]


def test_prompts_that_cannot_be_read_are_left_out_with_the_reason():
    model, tokenizer = tiny("llama"), words()
    prompts = [
        Line("w1", "x1", "x2", "a"),
        Line("w1 " * 70, "x1", None, "a"),
        Line("w1", "", None, "a"),
        Line("w1", "  ", None, "b"),
        Line("w1", "zz x2", None, "b"),
        Line("w1", "x1", "x2 " * 64, "b"),
    ]
    reading = read(model, tokenizer, prompts)
    assert reading.kept.tolist() == [0, 4] and reading.unknown_words == 1
    assert reading.states["input"].shape == (3, 2, 32) and len(reading.answers) == 2
    assert dict(reading.dropped) == {
        1: "is 71 tokens long, the network has 64 positions",
        2: "its input is empty",
        3: "its input '  ' has no token",
        5: "is 65 tokens long, the network has 64 positions",
    }
    with pytest.raises(Refused, match="no prompt can be read: prompt 0: its input is empty"):
        read(model, tokenizer, [prompts[2], prompts[1]])


def test_roberta_has_fewer_positions_than_its_table():
    model, tokenizer = tiny("roberta"), words()
    reading = read(model, tokenizer, [Line("w1 " * 65, "x1", None, "a"), Line("w1 " * 64, "x1", None, "b")])
    assert reading.dropped[0] == (0, "is 66 tokens long, the network has 65 positions")


@pytest.mark.parametrize(
    ("tokenizer", "options", "message"),
    [
        (words(), {"reads": ("middle",)}, "read 'middle' is unknown"),
        (words(), {"template": "{instruction}"}, "no .input. to read"),
        (words(), {"chat": True}, "no chat template"),
        (hf.PreTrainedTokenizerFast(tokenizer_object=words()._tokenizer), {"template": "{input} {inptu}"}, "inptu"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_one_line(tokenizer, options, message):
    with pytest.raises(Refused, match=message) as caught:
        read(tiny("llama"), tokenizer, lines()[:4], **options)
    assert "\n" not in str(caught.value)


def test_a_chat_template_that_raises_or_rewrites_is_refused():
    tokenizer, prompts = words(), lines()[:3]
    for template, message in (
        ("{{ raise_exception('no system role') }}", "refuses a prompt .*no system role"),
        ("{% for turn in messages %}{{ turn.content | upper }}{% endfor %}", "changes the text"),
    ):
        tokenizer.chat_template = template
        with pytest.raises(Refused, match=message):
            read(tiny("llama"), tokenizer, prompts, chat=True)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "takes longer than 0.3 s"),
        ("{{ 'long' * 5000000 }}", "20,000,000 characters of one prompt"),
        ("{{ messages.__class__.__base__.__subclasses__() }}", "refuses a prompt .*unsafe"),
        ("{{ cycler.__init__.__globals__.os.popen('id').read() }}", "refuses a prompt"),
    ],
)
def test_a_strangers_chat_template_ends_in_time_and_reaches_nothing(template, message, monkeypatch):
    monkeypatch.setattr(texts, "RENDERED_WITHIN", 0.3 if "0.3 s" in message else 60)
    tokenizer, prompts = words(), lines()[:3]
    tokenizer.chat_template = template
    with pytest.raises(Refused, match=message) as refusal:
        read(tiny("llama"), tokenizer, prompts, chat=True)
    assert "\n" not in str(refusal.value)


def test_a_deadline_ends_what_is_late_and_nothing_that_comes_after():
    with pytest.raises(TimeoutError), deadline(0.05):
        while True:
            pass
    with deadline(0.05):
        pass
    for _ in range(200_000):  # longer than the time that was given
        pass
    with pytest.raises(KeyError), deadline(5):
        raise KeyError


def test_whether_a_network_answers_is_asked_of_the_network_not_of_its_name():
    prompts, tokenizer = lines()[:6], words()
    for decoder in (False, True):
        torch.manual_seed(0)
        model = hf.BertLMHeadModel(hf.BertConfig(**WIDE, is_decoder=decoder)).eval()
        reading = read(model, tokenizer, prompts)
        assert (reading.answers is not None) == decoder
        for row, one in enumerate(prompts):
            expected = alone(model, tokenizer(f"{one.instruction} {one.input}")["input_ids"])[0][:, -1]
            same(reading.states["input"][:, row], expected)


@pytest.mark.parametrize("kind", [hf.BertForMaskedLM, hf.T5ForConditionalGeneration, hf.T5EncoderModel])
def test_encoders_stored_with_another_head_or_without_their_decoder_load(kind, tmp_path):
    torch.manual_seed(0)
    config, settings = WHOLE["bert" if kind is hf.BertForMaskedLM else "t5"]
    model, tokenizer, prompts = kind(config(**settings)).eval(), words(), lines()[:6]
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded, _ = load_network(tmp_path, tokenizer=tokenizer)
    same(read(loaded, tokenizer, prompts).states["input"], read(model, tokenizer, prompts).states["input"])


def test_progress_grows_and_the_mode_of_the_network_stays():
    model, told = tiny("llama").train(), []
    read(model, words(), lines()[:15], tokens_per_batch=20, progress=lambda text, share: told.append(share))
    assert told == sorted(told) and told[0] == 0 and told[-1] == 1 and len(told) > 3
    assert model.training


def test_a_token_that_also_begins_or_ends_a_text_is_no_unknown_word():
    model, tokenizer = tiny("llama"), words()
    prompts = [Line("w1 zz", "x1", None, "a"), Line("w2", "x1", None, "b")]
    assert read(model, tokenizer, prompts).unknown_words == 1
    tokenizer.eos_token = tokenizer.unk_token
    assert read(model, tokenizer, prompts).unknown_words == 0
