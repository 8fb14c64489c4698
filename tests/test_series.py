"""Which models are meant by a path, a folder of checkpoints or revisions, and what each is called; equal weights are
refused; what reading one will cost."""

import hashlib
import json
import shutil
from functools import partial

import pytest
import torch
import transformers as hf

from nucleate.model import series
from nucleate.model.estimate import estimate
from nucleate.model.networks import gpt2, save_network, word_tokenizer
from nucleate.model.series import checksum, find_models, refuse_twins
from nucleate.model.subjects import subjects_of
from nucleate.refusal import Refused


def save(folder, seed):
    model = gpt2(vocabulary=6, width=8, feed_forward=8, layers=2, heads=2, positions=8, dropout=0.0, pad=0, seed=seed)
    save_network(model, word_tokenizer(["a", "b"]), folder)
    return folder


def short(sources):
    return [(one.name, one.epoch, one.step) for one in sources]


def test_a_run_of_ours_is_its_checkpoints_in_order_without_best_and_last(tmp_path):
    for seed, name in enumerate(("epoch-0010", "epoch-0000", "epoch-0100", "last", "best")):
        save(tmp_path / "run" / "checkpoints" / name, seed % 3)
    for given in (tmp_path / "run", tmp_path / "run" / "checkpoints"):
        sources = find_models([given])
        assert short(sources) == [("epoch-0000", 0, None), ("epoch-0010", 10, None), ("epoch-0100", 100, None)]
    assert sources[1].path == str(tmp_path / "run" / "checkpoints" / "epoch-0010")
    (alone,) = find_models([tmp_path / "run" / "checkpoints" / "last"])
    assert (alone.name, alone.epoch) == ("last", None)


def test_checkpoints_of_a_trainer_tell_their_step_and_the_epochs_done(tmp_path):
    for step, epoch in ((1000, 2.0), (500, 0.9999999999), (20, 0.04)):
        folder = save(tmp_path / "out" / f"checkpoint-{step}", step)
        (folder / "trainer_state.json").write_text(json.dumps({"epoch": epoch}))
    save(tmp_path / "out" / "checkpoint-1500", 3)  # without the trainer's file
    expected = [
        ("checkpoint-20", 0, 20),
        ("checkpoint-500", 1, 500),
        ("checkpoint-1000", 2, 1000),
        ("checkpoint-1500", None, 1500),
    ]
    assert short(find_models([tmp_path / "out"])) == expected
    one_by_one = [tmp_path / "out" / name for name, _, _ in expected]
    assert short(find_models(one_by_one)) == expected
    shutil.copytree(tmp_path / "out" / "checkpoint-1500", tmp_path / "out", dirs_exist_ok=True)
    assert short(find_models([tmp_path / "out"])) == [("out", None, None)]  # it has weights of its own


def test_names_are_the_shortest_tails_that_tell_models_apart(tmp_path, monkeypatch):
    for seed, name in enumerate(("a/net", "b/net", "c/other", "c/x/net")):
        save(tmp_path / name, seed)
    monkeypatch.chdir(tmp_path)
    names = [one.name for one in find_models(["a/net", "./b/net", "c/other", "c/x/net"])]
    assert names == ["a/net", "b/net", "other", "x/net"]
    monkeypatch.chdir(tmp_path / "c" / "other")
    assert [one.name for one in find_models(["."])] == ["other"]


def test_revisions_are_models_of_their_own():
    sources = find_models(["someone/net-70m"], revisions=["step1000", "step2000", "main"])
    assert short(sources) == [("step1000", None, 1000), ("step2000", None, 2000), ("main", None, None)]
    assert {one.path for one in sources} == {"someone/net-70m"} and sources[0].revision == "step1000"
    assert sources[0].checksum is None  # not on this machine
    several = find_models(["someone/one", "someone/two"], revisions=["step1"])
    assert [one.name for one in several] == ["one/step1", "two/step1"]


def test_a_model_of_the_hub_is_fetched_so_that_its_weights_are_known_before_the_run_begins(tmp_path, monkeypatch):
    """What `snapshot_download` does is played: the files appear in the cache."""
    monkeypatch.setattr(series.constants, "HF_HUB_CACHE", str(tmp_path))
    fetched = []

    def appear(hub_id, *, revision, allow_patterns, ignore_patterns):
        fetched.append((hub_id, revision))
        assert "*.safetensors" in allow_patterns and not any("bin" in one or "pt" in one for one in allow_patterns)
        home = tmp_path / "models--someone--net"
        save(home / "snapshots" / "abc", 0)
        (home / "refs").mkdir(parents=True)
        (home / "refs" / "main").write_text("abc")
        return str(home / "snapshots" / "abc")

    monkeypatch.setattr(series, "snapshot_download", appear)
    monkeypatch.setattr(series, "try_to_load_from_cache", partial(series.try_to_load_from_cache, cache_dir=tmp_path))
    (found,), _ = subjects_of("someone/net", None, word_tokenizer(["a", "b"]), {"dtype": "float32", "device": "cpu"})
    assert found.checksum is None
    ready = found.ready()
    expected = checksum(tmp_path / "models--someone--net" / "snapshots" / "abc")
    assert ready.checksum == expected is not None and fetched == [("someone/net", None)]
    assert ready.ready() == ready and len(fetched) == 1
    save(tmp_path / "models--someone--net" / "snapshots" / "def", 1)
    (tmp_path / "models--someone--net" / "refs" / "main").write_text("def")
    assert checksum(ready.what) == expected, "what is loaded is what was hashed, wherever main has moved"


def test_a_model_that_the_hub_does_not_give_is_refused_in_one_line(monkeypatch):
    def offline(*_, **__):
        raise OSError("no connection")

    monkeypatch.setattr(series, "snapshot_download", offline)
    with pytest.raises(
        Refused, match=r"someone/net: is no folder here, and the hub does not give it \(no connection\)"
    ):
        series.fetch("someone/net")


def test_a_model_that_was_fetched_by_half_is_fetched_again(tmp_path, monkeypatch):
    home = tmp_path / "models--someone--net"
    folder = save(home / "snapshots" / "abc", 0)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text("abc")
    monkeypatch.setattr(series, "try_to_load_from_cache", partial(series.try_to_load_from_cache, cache_dir=tmp_path))
    assert checksum("someone/net") is not None
    for file in folder.glob("*token*"):
        file.rename(tmp_path / file.name)
    assert checksum("someone/net") is None, "weights without a tokenizer were fetched by half"
    for file in tmp_path.glob("*token*"):
        file.rename(folder / file.name)
    (folder / "model.safetensors").rename(tmp_path / "kept")
    assert checksum("someone/net") is None, "so were settings alone"
    (tmp_path / "kept").rename(folder / "model.safetensors")
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert checksum("someone/net") is None


@pytest.mark.parametrize("name", ["my model", "a--b", "who/x y"])
def test_a_name_that_no_hub_has_is_refused_in_one_line(name):
    (source,) = find_models([name])
    assert source.checksum is None
    with pytest.raises(Refused, match="is no folder here"):
        series.fetch(name)


def test_a_file_that_is_no_gguf_is_no_model(tmp_path):
    (tmp_path / "prompts.jsonl").write_text("{}")
    with pytest.raises(Refused, match="models come first, the prompts last"):
        find_models([tmp_path / "prompts.jsonl"])


def test_a_checksum_is_that_of_the_weights_alone(tmp_path):
    folder = save(tmp_path / "net", 1)
    assert checksum(folder) == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    (folder / "README.md").write_text("more")
    assert find_models([folder])[0].checksum == checksum(folder)
    (tmp_path / "net.gguf").write_bytes(b"weights")
    assert find_models([tmp_path / "net.gguf"])[0].checksum == hashlib.sha256(b"weights").hexdigest()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere/to/be"], "nowhere/to/be: does not exist"),
        (["net", "again"], "net and again have the same weights"),
        (["net", "./net"], "net: is given twice"),
        (["empty"], "empty: holds neither config.json"),
        (["hollow"], "epoch-2: holds no weights"),
    ],
)
def test_what_is_no_model_or_two_of_one_is_refused_in_one_line(tmp_path, monkeypatch, arguments, message):
    save(tmp_path / "net", 1)
    shutil.copytree(tmp_path / "net", tmp_path / "again")
    (tmp_path / "empty").mkdir()
    save(tmp_path / "hollow" / "epoch-1", 2)
    (tmp_path / "hollow" / "epoch-2").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Refused, match=message) as caught:
        find_models(arguments)
    assert "\n" not in str(caught.value)


def test_revisions_of_a_folder_and_twins_that_came_later_are_refused(tmp_path):
    with pytest.raises(Refused, match="has no revisions"):
        find_models([save(tmp_path / "net", 1)], revisions=["step1"])
    refuse_twins({"a": "1", "b": None, "c": None, "d": "2"})
    with pytest.raises(Refused, match="a and d have the same weights"):
        refuse_twins({"a": "1", "b": None, "d": "1"})


def test_an_estimate_needs_no_weights_and_counts_them_right(tmp_path):
    folder = save(tmp_path / "net", 1)
    (folder / "model.safetensors").unlink()
    small = estimate(folder, 10, 100, rate=1e9)
    assert small.parameters == sum(
        p.numel() for p in hf.AutoModelForCausalLM.from_config(hf.AutoConfig.from_pretrained(folder)).parameters()
    )
    assert small.weight_bytes == 4 * small.parameters and small.state_bytes == 3 * 10 * 8 * 4
    assert estimate(folder, 10, 100, rate=1e9, dtype="bfloat16").weight_bytes == 2 * small.parameters
    assert estimate(folder, 10, 100, rate=1e9, layers=7).state_bytes == 7 * 10 * 8 * 4
    twice = estimate(folder, 200, 2000, rate=1e9).seconds / estimate(folder, 100, 1000, rate=1e9).seconds
    assert twice == pytest.approx(2)
    assert estimate(folder, 10, 100, rate=2e9).seconds == small.seconds / 2
    assert estimate(folder, 10, 100).seconds > 0  # this machine's rate


@pytest.mark.parametrize(
    ("config", "billions"),
    [
        (hf.LlamaConfig(vocab_size=32000), 6.74),
        (hf.LlamaConfig(hidden_size=5120, intermediate_size=13824, num_hidden_layers=40, num_attention_heads=40), 13.0),
        (hf.GPTJConfig(), 6.05),
    ],
)
def test_the_papers_models_are_estimated_at_their_real_sizes(config, billions):
    cost = estimate(config, 8800, 40_000, rate=1e11, dtype="float16")
    assert cost.parameters == pytest.approx(billions * 1e9, rel=0.01)
    assert cost.peak_bytes > cost.weight_bytes + cost.state_bytes
    assert cost.seconds == pytest.approx(2 * billions * 1e9 * 40_000 / 0.7e11, rel=0.1)


@pytest.mark.parametrize("config", [hf.BertConfig(), hf.T5Config(), hf.MambaConfig()])
def test_other_families_are_estimated_too(config):
    with torch.device("meta"):
        assert estimate(config, 10, 100, rate=1e9).seconds > 0
