"""Models from strangers: weights only from inside their folder, nothing fetched that was not named, sizes that fit."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nucleate.model import series
from nucleate.model.networks import load_network, network_shape, tokenizer_of
from nucleate.model.places import at_the_door, refuse_absent
from nucleate.model.subjects import all_ready, subjects_of
from nucleate.redirecting.loading import load_switched
from nucleate.redirecting.stored import network_of, seal
from nucleate.refusal import Refused
from test_damage import a_model, a_switched, an_adapter, sharded

HUB = "someone/something"


@pytest.fixture(autouse=True)
def _nothing_is_fetched(monkeypatch):
    """Whatever would be fetched fails loudly."""

    def fetch(*what, **how):
        raise AssertionError(f"fetched: {what} {how}")

    monkeypatch.setattr(series, "fetch", fetch)
    monkeypatch.setattr(series, "snapshot_download", fetch)
    monkeypatch.setattr("huggingface_hub.file_download.hf_hub_download", fetch)
    monkeypatch.setattr("socket.socket.connect", fetch)


@pytest.fixture
def model(tmp_path) -> Path:
    a_model(tmp_path)
    return tmp_path / "model"


def refused(*fragments: str):
    return pytest.raises(Refused, match=r"(?s)\A[^\n]*" + "[^\n]*".join(fragments) + r"[^\n]*\Z")


def every_door(folder: Path):
    return (
        lambda: load_network(folder),
        lambda: tokenizer_of(folder),
        lambda: refuse_absent([folder]),
        lambda: at_the_door([str(folder)]),
    )


def test_a_link_to_weights_outside_the_folder_is_refused_with_its_name(model, tmp_path):
    (model / "model.safetensors").rename(tmp_path / "elsewhere.safetensors")
    (model / "model.safetensors").symlink_to(tmp_path / "elsewhere.safetensors")
    for door in every_door(model):
        with refused("model.safetensors", "is a link to a file outside the folder"):
            door()


@pytest.mark.parametrize(
    "shard", ["../elsewhere.safetensors", "{tmp}/elsewhere.safetensors", "inner/../../x.safetensors"]
)
def test_an_index_that_names_weights_outside_the_folder_is_refused_with_its_name(shard, tmp_path):
    sharded(tmp_path)
    index = tmp_path / "model" / "model.safetensors.index.json"
    told = json.loads(index.read_text())
    first = next(iter(told["weight_map"]))
    shutil.copy(tmp_path / "model" / told["weight_map"][first], tmp_path / "elsewhere.safetensors")
    told["weight_map"][first] = shard.format(tmp=tmp_path)
    index.write_text(json.dumps(told))
    for door in every_door(tmp_path / "model"):
        with refused("model.safetensors.index.json", "outside the folder"):
            door()


def test_links_inside_a_folder_and_those_of_the_hubs_cache_are_followed(model, tmp_path):
    (model / "model.safetensors").rename(model / "weights")
    (model / "model.safetensors").symlink_to("weights")
    assert load_network(model)
    cached = tmp_path / "models--a--b"
    (cached / "blobs").mkdir(parents=True)
    shutil.copytree(model, cached / "snapshots" / "123")
    (cached / "snapshots" / "123" / "weights").unlink()
    shutil.copy(model / "weights", cached / "blobs" / "abc")
    (cached / "snapshots" / "123" / "model.safetensors").unlink(missing_ok=True)
    (cached / "snapshots" / "123" / "model.safetensors").symlink_to("../../blobs/abc")
    assert load_network(cached / "snapshots" / "123")


def names_base(folder: Path, base: object) -> None:
    told = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**told, "base_model_name_or_path": base}))


@pytest.mark.filterwarnings("ignore")
def test_the_base_of_an_adapter_in_a_folder_is_not_fetched_but_refused_with_what_to_do(tmp_path, monkeypatch):
    an_adapter(tmp_path)
    assert load_network(tmp_path / "model")
    names_base(tmp_path / "model", HUB)
    for door in (*every_door(tmp_path / "model"), lambda: network_shape(tmp_path / "model")):
        with refused(HUB, "not on this machine", "hf download"):
            door()
    subjects, _ = subjects_of(str(tmp_path / "model"), None, None, {})
    with refused(HUB, "not on this machine"):
        all_ready(subjects)
    monkeypatch.setattr(series, "fetch", lambda hub_id, revision=None: pytest.fail("fetched") if hub_id != HUB else "x")
    at_the_door([str(tmp_path / "model"), HUB])  # which the user names


@pytest.mark.filterwarnings("ignore")
def test_a_base_that_is_no_text_or_an_adapter_itself_is_refused_in_one_line(tmp_path):
    an_adapter(tmp_path)
    for base, told in ((3, "names no base"), ({}, "names no base"), (str(tmp_path / "model"), "is an adapter itself")):
        names_base(tmp_path / "model", base)
        for door in (*every_door(tmp_path / "model"), lambda: series.checksum(tmp_path / "model")):
            with refused(told):
                door()


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [("n_layer", 10**7, "10000000 layers"), ("vocab_size", 10**9, "weights"), ("n_positions", 10**8, "weights")],
)
def test_settings_of_a_far_larger_network_are_refused_before_memory_is_taken(key, value, told, model):
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, key: value}))
    with refused("its config.json speaks of", told, "do not belong together"):
        load_network(model)
    if key == "n_layer":
        with refused(told):
            network_shape(model)


def test_a_switched_model_fetches_no_network_and_reads_none_outside_itself(tmp_path):
    a_switched(tmp_path)
    file = tmp_path / "model" / "switched.json"
    told = json.loads(file.read_text())
    del told["seal"]

    def tells(**network: object) -> None:
        whole = {**told, "network": {**told["network"], **network}}
        file.write_text(json.dumps({**whole, "seal": seal(whole)}))

    assert load_switched(tmp_path / "model")
    tells(copied=False, path=HUB)
    for door in (lambda: load_switched(tmp_path / "model"), lambda: network_of(tmp_path / "model")):
        with refused(HUB, "not on this machine"):
            door()
    tells(path="../base")
    with refused("switched.json", "names a network outside the folder"):
        load_switched(tmp_path / "model")
    tells()
    whole = {**told, "switches": [{**told["switches"][0], "width": 10**9}]}
    file.write_text(json.dumps({**whole, "seal": seal(whole)}))
    with refused("switch.safetensors does not fit"):
        load_switched(tmp_path / "model")


def test_weights_of_another_shape_than_told_are_refused(model):
    tensors = load_file(model / "model.safetensors")
    name = next(one for one in tensors if one.endswith("c_attn.weight"))
    save_file({**tensors, name: torch.zeros(3, 3)}, model / "model.safetensors", {"format": "pt"})
    with refused("cannot be loaded"):
        load_network(model)


def test_a_folder_is_opened_without_asking_any_hub(model, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    assert load_network(model) and tokenizer_of(model) and network_shape(model)
    assert not os.environ.get("HF_HUB_OFFLINE")
