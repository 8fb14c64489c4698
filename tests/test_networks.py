"""The paper's networks have its parameter counts; folders load with the ordinary tools; nothing unsafe is opened."""

import copy
import json
import shutil

import numpy as np
import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForSequenceClassification

from nucleate.model.networks import (
    as_network,
    gpt2,
    load_network,
    network_shape,
    save_network,
    untrained,
    word_tokenizer,
)
from nucleate.model.series import checksum
from nucleate.refusal import Refused
from test_families import tiny, words

SYMBOLS = ["a", "B", "é", "7", "ж"]


def small(seed=0, vocabulary=7):
    return gpt2(
        vocabulary=vocabulary,
        width=16,
        feed_forward=32,
        layers=2,
        heads=2,
        positions=12,
        dropout=0.2,
        pad=0,
        seed=seed,
    )


@pytest.fixture
def folder(tmp_path):
    save_network(small(), word_tokenizer(SYMBOLS), tmp_path / "net")
    return tmp_path / "net"


def contents(folder):
    return {f.relative_to(folder).as_posix(): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


@pytest.mark.parametrize(
    ("width", "feed_forward", "millions"), [(32, 64, 0.055), (256, 512, 3.2), (768, 1024, 23.7), (2048, 4096, 202)]
)
def test_parameter_counts_are_those_of_table_8(width, feed_forward, millions):
    with torch.device("meta"):
        model = gpt2(
            vocabulary=62,
            width=width,
            feed_forward=feed_forward,
            layers=6,
            heads=8,
            positions=44,
            dropout=0.2,
            pad=0,
            seed=0,
        )
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(millions * 1e6, rel=0.02)


def test_the_settings_reach_the_network():
    model = small()
    config = model.config
    assert config.resid_pdrop == config.embd_pdrop == config.attn_pdrop == 0.2
    assert config.activation_function == "gelu" and config.n_inner == 32 and config.pad_token_id == 0
    for token in (config.bos_token_id, config.eos_token_id):
        assert token is None or token < config.vocab_size
    assert model.lm_head.weight is model.transformer.wte.weight
    assert 0.015 < model.transformer.wpe.weight.std() < 0.025


def test_equal_seeds_give_equal_weights_and_the_callers_random_state_stays():
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    a, b, other = small(seed=1), small(seed=1), small(seed=2)
    assert torch.equal(torch.rand(4), expected)
    for (name, x), y in zip(a.named_parameters(), b.parameters(), strict=True):
        assert torch.equal(x, y), name
    assert not torch.equal(a.transformer.wte.weight, other.transformer.wte.weight)


def test_words_are_tokens_and_unknown_words_are_unk():
    tokenizer = word_tokenizer(SYMBOLS)
    assert tokenizer("a B é 7 ж")["input_ids"] == [2, 3, 4, 5, 6]
    assert tokenizer("a zz b")["input_ids"] == [2, 1, 1]
    assert tokenizer.pad_token_id == 0 and tokenizer.unk_token_id == 1
    assert tokenizer.decode([2, 4, 6]) == "a é ж"
    for wrong in (["a", "a"], ["a b"], [""], ["<pad>"]):
        with pytest.raises(Refused):
            word_tokenizer(wrong)


def test_a_saved_folder_loads_with_the_ordinary_tools_and_answers_alike(folder):
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokens = tokenizer("a é zz 7", return_tensors="pt")["input_ids"]
    assert tokens.tolist() == [[2, 4, 1, 5]]
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(tokens).logits, small().eval()(tokens).logits)  # another kernel
    made = model.generate(tokens, max_new_tokens=3, do_sample=False)
    assert made.shape == (1, 7)
    ours, same = load_network(folder)
    assert same("B ж")["input_ids"] == [3, 6] and not ours.training
    assert {f.suffix for f in folder.iterdir()} == {".json", ".safetensors"}


def test_equal_weights_give_equal_bytes_and_replacing_leaves_nothing_behind(folder):
    before = contents(folder)
    save_network(small(), word_tokenizer(SYMBOLS), folder)
    assert contents(folder) == before
    save_network(small(seed=9), word_tokenizer(SYMBOLS), folder)
    assert contents(folder)["model.safetensors"] != before["model.safetensors"]
    assert [f.name for f in folder.parent.iterdir()] == ["net"]


def test_a_failed_save_leaves_the_old_folder_whole(folder, monkeypatch):
    before, model = contents(folder), small(seed=9)

    def fail(*arguments, **named):
        raise OSError("disk full")

    monkeypatch.setattr(model, "save_pretrained", fail)
    with pytest.raises(OSError, match="disk full"):
        save_network(model, word_tokenizer(SYMBOLS), folder)
    assert contents(folder) == before
    assert [f.name for f in folder.parent.iterdir()] == ["net"]


def test_a_death_between_the_two_renames_is_mended_at_the_next_look(folder):
    folder.rename(folder.parent / ".net.old")
    load_network(folder)
    assert [f.name for f in folder.parent.iterdir()] == ["net"]


@pytest.mark.parametrize(("dtype", "expected"), [("bfloat16", torch.bfloat16), ("auto", torch.float32)])
def test_the_precision_is_the_callers(folder, dtype, expected):
    model, _ = load_network(folder, dtype=dtype)
    assert model.dtype == expected


def one_line(function, *words):
    with pytest.raises(Refused) as caught:
        function()
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in words), message


def test_what_cannot_be_loaded_safely_is_refused_in_one_line(folder, tmp_path, monkeypatch):
    one_line(lambda: load_network(tmp_path / "nowhere"), "nowhere", "does not exist")
    one_line(lambda: load_network("./nowhere"), "does not exist")
    one_line(lambda: load_network(folder / "config.json"), "is no folder")
    one_line(lambda: load_network(folder, dtype="float7"), "float7")
    empty = tmp_path / "empty"
    empty.mkdir()
    one_line(lambda: load_network(empty), "config.json")

    pickled = tmp_path / "pickled"
    shutil.copytree(folder, pickled)
    (pickled / "model.safetensors").unlink()
    one_line(lambda: load_network(pickled), "safetensors")
    torch.save(small().state_dict(), pickled / "pytorch_model.bin")
    one_line(lambda: load_network(pickled), "pickle", "pytorch_model.bin")

    mute = tmp_path / "mute"
    shutil.copytree(folder, mute)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (mute / name).unlink()
    one_line(lambda: load_network(mute), "tokenizer")

    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    (broken / "model.safetensors").write_bytes(b"nonsense")
    one_line(lambda: load_network(broken), "cannot be loaded")


def test_weights_that_are_missing_are_not_filled_at_random(folder):
    from safetensors.torch import load_file, save_file

    stored = load_file(folder / "model.safetensors")
    del stored["transformer.h.1.mlp.c_fc.weight"]
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    one_line(lambda: load_network(folder), "transformer.h.1.mlp.c_fc.weight")


def test_code_that_comes_with_a_model_does_not_run_unless_asked_for(folder):
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "strange",
        "auto_map": {"AutoConfig": "strange.StrangeConfig", "AutoModelForCausalLM": "strange.Strange"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "strange.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\nraise SystemExit\n")
    one_line(lambda: load_network(folder), "trust_remote_code=True")
    assert not (folder / "ran").exists()


def test_a_hub_id_that_cannot_be_reached_is_refused_in_one_line(monkeypatch):
    from transformers import AutoConfig

    def offline(*arguments, **named):
        raise OSError("We couldn't connect to the hub\nand found nothing in the cache")

    monkeypatch.setattr(AutoConfig, "from_pretrained", offline)
    one_line(lambda: load_network("nobody/nothing"), "nobody/nothing", "connect")


def test_a_width_that_the_heads_do_not_divide_is_refused():
    one_line(
        lambda: gpt2(
            vocabulary=9, width=30, feed_forward=60, layers=1, heads=8, positions=8, dropout=0.0, pad=0, seed=0
        ),
        "30",
        "8",
    )


def write_gguf(file):
    """A tiny Llama as llama.cpp stores one: quarter-size weights of its own, a tokenizer of bytes."""
    gguf = pytest.importorskip("gguf")
    rng = np.random.default_rng(0)
    tokens = [*"abcdefgh", "Ġ", "ab", "<s>", "</s>"]
    writer = gguf.GGUFWriter(file, "llama")
    for add, value in (
        (writer.add_block_count, 1),
        (writer.add_context_length, 32),
        (writer.add_embedding_length, 32),
        (writer.add_feed_forward_length, 64),
        (writer.add_head_count, 4),
        (writer.add_head_count_kv, 2),
        (writer.add_vocab_size, len(tokens)),
        (writer.add_layer_norm_rms_eps, 1e-5),
        (writer.add_tokenizer_model, "gpt2"),
        (writer.add_token_list, tokens),
        (writer.add_token_merges, ["a b"]),
        (writer.add_token_types, [1] * 10 + [3] * 2),
        (writer.add_bos_token_id, 10),
        (writer.add_eos_token_id, 11),
    ):
        add(value)
    shapes = {"token_embd": (12, 32), "output_norm": (32,), "blk.0.attn_norm": (32,), "blk.0.ffn_norm": (32,)}
    shapes |= {"blk.0.attn_q": (32, 32), "blk.0.attn_k": (16, 32), "blk.0.attn_v": (16, 32)}
    shapes |= {"blk.0.attn_output": (32, 32), "blk.0.ffn_gate": (64, 32), "blk.0.ffn_up": (64, 32)}
    shapes |= {"blk.0.ffn_down": (32, 64)}
    values = {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}
    for name, value in values.items():
        kind = gguf.GGMLQuantizationType.Q8_0 if value.ndim == 2 else gguf.GGMLQuantizationType.F32
        data = gguf.quants.quantize(value, kind)
        writer.add_tensor(f"{name}.weight", data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return values


def test_a_gguf_file_becomes_an_ordinary_network(tmp_path, capsys):
    values = write_gguf(tmp_path / "tiny.gguf")
    model, tokenizer = load_network(tmp_path / "tiny.gguf")
    assert capsys.readouterr().err == "" and model.dtype == torch.float32 and not model.training
    found = model.model.layers[0].mlp.up_proj.weight.detach().numpy()
    np.testing.assert_allclose(found, values["blk.0.ffn_up"], atol=0.02)
    ids = tokenizer("ab c", return_tensors="pt")["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids[0]) == ["ab", "Ġ", "c"]
    save_network(copy.deepcopy(model), tokenizer, tmp_path / "net")
    again, _ = load_network(tmp_path / "net")
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, model(ids).logits)


def test_a_gguf_file_without_its_packages_or_cut_short_is_refused_in_one_line(tmp_path, monkeypatch):
    write_gguf(tmp_path / "tiny.gguf")
    for end in (2, 300, 1500, -9):
        (tmp_path / "cut.gguf").write_bytes((tmp_path / "tiny.gguf").read_bytes()[:end])
        one_line(lambda: load_network(tmp_path / "cut.gguf"), "cut.gguf", "cannot be loaded")
    one_line(lambda: load_network(tmp_path / "none.gguf"), "none.gguf", "does not exist")
    monkeypatch.setattr("nucleate.model.places.find_spec", lambda name: None if name == "gguf" else name)
    one_line(lambda: load_network(tmp_path / "tiny.gguf"), "needs gguf: pip install 'nucleate[gguf]'")


def test_a_loaded_network_stays_as_it_is_and_brings_its_tokenizer_or_is_given_one(folder):
    model, tokenizer = load_network(folder)
    model.train()
    same, found = as_network(model)
    assert same is model and model.training and found("a B")["input_ids"] == [2, 3]
    assert as_network(model, tokenizer)[1] is tokenizer
    assert as_network(folder, dtype="bfloat16")[0].dtype == torch.bfloat16
    one_line(lambda: as_network(small()), "without a tokenizer")
    one_line(lambda: as_network(3), "a int is no network")


def test_fresh_weights_keep_the_architecture_and_leave_the_callers_random_state(folder):
    model, _ = load_network(folder, dtype="bfloat16")
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    fresh, again, other = untrained(model, 1), untrained(model, 1), untrained(model, 2)
    assert torch.equal(torch.rand(4), expected)
    assert fresh.dtype == torch.bfloat16 and type(fresh) is type(model) and not fresh.training
    assert fresh.lm_head.weight is fresh.transformer.wte.weight
    for (name, x), y in zip(fresh.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(x, y), name
    assert not torch.equal(fresh.transformer.wte.weight, other.transformer.wte.weight)
    assert not torch.equal(fresh.transformer.wte.weight, model.transformer.wte.weight)


def test_the_shape_of_an_adapter_is_that_of_the_network_below_it(tmp_path):
    below = gpt2(vocabulary=6, width=8, feed_forward=8, layers=3, heads=2, positions=8, dropout=0.0, pad=0, seed=0)
    save_network(below, word_tokenizer(["a", "b"]), tmp_path / "below")
    (tmp_path / "adapter").mkdir()
    told = {"base_model_name_or_path": str(tmp_path / "below"), "peft_type": "LORA"}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(told))
    assert network_shape(tmp_path / "adapter").config.num_hidden_layers == 3


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of peft's, about transformers
def test_an_adapter_without_a_tokenizer_has_that_of_the_network_below_it(folder, tmp_path):
    adapter = tmp_path / "adapter"
    model = peft.get_peft_model(small(), peft.LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True))
    model.save_pretrained(adapter)
    told = json.loads((adapter / "adapter_config.json").read_text()) | {"base_model_name_or_path": str(folder)}
    (adapter / "adapter_config.json").write_text(json.dumps(told))
    loaded, tokenizer = load_network(adapter)
    assert tokenizer("a é")["input_ids"] == load_network(folder)[1]("a é")["input_ids"]
    assert any("lora" in name for name, _ in loaded.named_parameters())
    before = checksum(adapter)
    save_network(small(seed=1), word_tokenizer(SYMBOLS), folder)
    assert checksum(adapter) != before, "other weights below it are other weights"
    del told["base_model_name_or_path"]
    (adapter / "adapter_config.json").write_text(json.dumps(told))
    one_line(lambda: network_shape(adapter), "names no base_model_name_or_path")


def test_a_decoder_that_was_stored_without_its_head_is_read_bare(tmp_path):
    model = tiny("llama")
    assert not model.config.tie_word_embeddings
    for name, bare in (("bare", model.model), ("reward", LlamaForSequenceClassification(model.config))):
        save_network(bare, words(), tmp_path / name)
        loaded, _ = load_network(tmp_path / name)
        assert type(loaded) is type(model.model)
        kept = (bare if name == "bare" else bare.model).state_dict()
        assert all(torch.equal(weight, kept[key]) for key, weight in loaded.state_dict().items())


def test_a_misspelt_option_of_loading_is_refused_in_one_line(folder):
    one_line(lambda: load_network(folder, attn_implementaton="eager"), "attn_implementaton")
