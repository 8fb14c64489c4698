"""GGUF files are converted once; what is kept is checked by its bytes, made anew where they changed, and no pickle."""

import os
import shutil
import time
from pathlib import Path

import pytest
import torch

from nucleate.model import converted, networks, places
from nucleate.model.networks import load_network, network_shape, tokenizer_of
from nucleate.model.subjects import all_ready, subjects_of
from nucleate.refusal import Refused
from test_networks import contents, write_gguf


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("NUCLEATE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "gguf"


@pytest.fixture
def file(tmp_path) -> Path:
    write_gguf(tmp_path / "tiny.gguf")
    return tmp_path / "tiny.gguf"


def directly(file: Path):
    """As transformers gives it, nothing kept."""
    folder, common = networks.locate(file, revision=None, trust_remote_code=False)
    return networks._load_weights(folder, "it", common, {"dtype": "float32"}), networks._load_tokenizer(
        folder, "it", common
    )


def same(one, other) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return list(mine) == list(theirs) and all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_what_is_kept_is_the_same_network_and_tokenizer_and_nothing_is_converted_twice(file, cache, monkeypatch):
    expected, words = directly(file)
    cold, _ = load_network(file)
    (entry,) = cache.iterdir()
    assert {one.suffix for one in entry.iterdir()} == {".json", ".safetensors"}
    before = contents(entry)
    monkeypatch.setattr(converted, "TemporaryDirectory", None)  # whatever converts fails
    warm, tokenizer = load_network(file)
    assert same(cold, expected) and same(warm, expected) and type(warm) is type(expected) and not warm.training
    for text in ("ab c", "  a\tbé", "<s>a</s>", ""):
        assert tokenizer(text)["input_ids"] == words(text)["input_ids"]
    assert tokenizer_of(file).get_vocab() == words.get_vocab()
    assert network_shape(file).config.hidden_size == 32
    assert load_network(file, dtype="bfloat16")[0].dtype == torch.bfloat16
    assert contents(entry) == before


@pytest.mark.parametrize("damage", ["cut", "flipped", "gone", "nonsense"])
def test_an_entry_whose_bytes_changed_is_made_anew(damage, file, cache):
    expected, _ = load_network(file)
    (entry,) = cache.iterdir()
    before = contents(entry)
    for name in before:
        broken, content = entry / name, before[name]
        if damage == "gone":
            broken.unlink()
        elif damage == "flipped":
            broken.write_bytes(content[:-2] + bytes([content[-2] ^ 1]) + content[-1:])
        else:
            broken.write_bytes(content[: len(content) // 2] if damage == "cut" else b"[]")
        assert same(load_network(file)[0], expected), name
        assert contents(entry) == before, name
        assert [one.name for one in cache.iterdir()] == [entry.name]


def test_an_entry_is_known_by_content_and_by_what_converted_it(file, cache, tmp_path, monkeypatch):
    load_network(file)
    shutil.copy(file, tmp_path / "other.gguf")
    load_network(tmp_path / "other.gguf")
    assert len(list(cache.iterdir())) == 1, "the same bytes under another name"
    with open(tmp_path / "other.gguf", "r+b") as stream:
        stream.seek(-3, os.SEEK_END)
        stream.write(b"\1")
    load_network(tmp_path / "other.gguf")
    assert len(list(cache.iterdir())) == 2
    monkeypatch.setattr(converted, "version", lambda name: "99")
    assert converted.kept_of(file) is None, "another transformers might convert otherwise"


def test_where_nothing_can_be_kept_it_is_converted_every_time(file, tmp_path, monkeypatch):
    (tmp_path / "taken").write_text("mine")
    monkeypatch.setenv("NUCLEATE_CACHE", str(tmp_path / "taken"))
    expected, _ = directly(file)
    assert same(load_network(file)[0], expected)
    assert tokenizer_of(file)("ab")["input_ids"] == [9]
    assert (tmp_path / "taken").read_text() == "mine"


def test_what_was_stopped_halfway_leaves_nothing_and_what_was_killed_is_cleared_away(file, cache):
    def stopped(place: Path) -> None:
        (place / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        converted.converted(file, stopped)
    assert not list(cache.iterdir())
    for name, age in ((".begun-old", 2), (".begun-new", 0)):
        (cache / name).mkdir()
        os.utime(cache / name, times=(time.time() - 86400 * age,) * 2)
    load_network(file)
    assert {one.name for one in cache.iterdir()} == {converted.kept_of(file).name, ".begun-new"}


def test_of_two_that_convert_at_once_one_is_kept(file, cache):
    def late(place: Path) -> None:
        load_network(file)  # the other one, which is done first
        (place / "model.safetensors").write_bytes(b"mine")

    kept = converted.converted(file, late)
    assert (kept / "model.safetensors").stat().st_size > 1000 and list(cache.iterdir()) == [kept]


def test_a_file_that_cannot_be_converted_is_refused_and_nothing_is_kept(file, cache):
    file.write_bytes(file.read_bytes()[:1500])
    for call in (load_network, tokenizer_of):
        with pytest.raises(Refused, match=r"tiny\.gguf: cannot be loaded"):
            call(file)
    assert not list(cache.iterdir())


def test_a_file_without_the_packages_that_convert_it_is_refused_by_name(file, cache, monkeypatch):
    for room in (converted, places):
        monkeypatch.setattr(room, "find_spec", lambda name: None)
    subjects, _ = subjects_of(str(file), None, None, {})
    with pytest.raises(Refused, match="needs gguf and accelerate: pip install"):
        all_ready(subjects)


def test_the_cache_lies_where_it_is_told_or_where_the_user_has_caches(tmp_path, monkeypatch):
    monkeypatch.setenv("NUCLEATE_CACHE", "~/mine")
    assert converted.cache_folder() == Path.home() / "mine"
    monkeypatch.delenv("NUCLEATE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert converted.cache_folder() == tmp_path / "nucleate"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert converted.cache_folder() == Path.home() / ".cache" / "nucleate"


def test_a_conversion_is_told_beforehand_with_its_place_and_not_again(file, cache):
    subjects, _ = subjects_of(str(file), None, None, {})
    told: list[str] = []
    all_ready(subjects, lambda text, fraction: told.append(text))
    assert told == [f"tiny.gguf is converted, which takes a while; next time it lies in {cache}"]
    all_ready(subjects, lambda text, fraction: told.append(text))
    assert len(told) == 1
