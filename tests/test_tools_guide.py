"""The guide to other tools is run as it stands, on a tiny network; a hub is played on this machine."""

import base64
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

import polars as pl
import pytest

from nucleate.cli import main
from nucleate.model.networks import gpt2, save_network, word_tokenizer
from nucleate.redirecting.switched import SwitchedModel
from nucleate.refusal import Refused
from test_families import tiny, words
from test_guides import BLOCK, ROOT, prompts
from test_switched import parts

GUIDE = (ROOT / "docs" / "guides" / "tools.md").read_text(encoding="utf-8")
TABLES, _, REST = GUIDE.partition("## A hub")
HUB, _, SHELL = REST.partition("## A shell")


@pytest.mark.timeout(600)
def test_the_guide_to_other_tools_runs_from_top_to_bottom(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    pl.DataFrame(prompts()).write_ndjson("prompts.jsonl")
    known = {word for one in prompts() for word in one["prompt"].split()} | {"where", "is", "my", "parcel"}
    tokenizer = word_tokenizer(sorted(known))
    shape = {"width": 16, "feed_forward": 32, "layers": 2, "heads": 2, "positions": 64, "dropout": 0, "pad": 0}
    save_network(gpt2(vocabulary=len(tokenizer), seed=1, **shape), tokenizer, tmp_path / "my-model")
    found: dict[str, Any] = {}
    for block in BLOCK.finditer(TABLES):
        exec(compile(block["text"], "tools.md", "exec"), found)
    said = capsys.readouterr().out
    assert said.splitlines()[0] == "True"  # of pandas and of Arrow the same
    assert found["features"].shape == (36, 16) and found["pred_probs"].shape == (36, 3)
    assert found["pred_probs"].sum(axis=1) == pytest.approx(1) and found["labels"] == sorted(found["labels"])
    commands = re.findall(r"^    embedding-atlas (\S+\.parquet) (.*?)(?:  #.*)?$", TABLES, re.MULTILINE)
    assert len(commands) == 3
    for file, options in commands:
        table = pl.read_parquet(file)
        named = dict(zip(options.split()[::2], options.split()[1::2], strict=True))
        assert table.schema[named.pop("--text")] == pl.String
        assert all(table.schema[column].is_numeric() or table.schema[column].is_nested() for column in named.values())


class Hub(BaseHTTPRequestHandler):
    """As much of a hub as takes and gives a small folder."""

    files: dict[str, bytes]

    def log_message(self, *_: Any) -> None: ...

    def answer(self, content: bytes, **headers: str) -> None:
        self.send_response(200)
        for name, value in {"Content-Length": str(len(content)), "X-Repo-Commit": "0" * 40, **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        here = f"http://{self.headers['Host']}/me/my-model-spanish"
        if self.path.endswith("/preupload/main"):
            asked = json.loads(content)["files"]
            given: Any = {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in asked]}
        elif self.path.endswith("/commit/main"):
            lines = [json.loads(line)["value"] for line in content.splitlines() if b'"file"' in line[:20]]
            self.files.update({line["path"]: base64.b64decode(line["content"]) for line in lines})
            given = {"commitUrl": f"{here}/commit/{'0' * 40}", "commitOid": "0" * 40, "pullRequestUrl": None}
        else:
            given = {"url": here, "id": "1"}
        self.answer(json.dumps(given).encode())

    def do_GET(self) -> None:
        name = unquote(self.path.partition("/resolve/")[2].partition("/")[2].partition("?")[0])
        if name:
            return self.answer(self.files[name], ETag=f'"{hash(self.files[name])}"')
        siblings = [{"rfilename": one} for one in self.files]
        told = {"id": "me/my-model-spanish", "sha": "0" * 40, "siblings": siblings, "private": False}
        tree = [{"type": "file", "path": one, "size": len(self.files[one]), "oid": "0" * 40} for one in self.files]
        return self.answer(json.dumps(tree if "/tree/" in self.path else told).encode())

    do_HEAD = do_GET


@pytest.fixture
def hub():
    served: dict[str, bytes] = {}
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("OneHub", (Hub,), {"files": served}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", served
    server.shutdown()
    server.server_close()


@pytest.mark.timeout(600)
def test_a_redirected_model_goes_to_a_hub_and_comes_back_with_its_switch(hub, tmp_path):
    place, served = hub
    network, tokenizer = tiny("llama"), words()
    model = SwitchedModel(network, tokenizer, *parts(network))
    with pytest.raises(Refused, match="upload_folder"):
        model.push_to_hub("me/my-model-spanish")
    model.save(tmp_path / "runs/spanish/model", network="not-needed", copy=True, card="# card\n")
    (block,) = BLOCK.finditer(HUB)
    asked = f"import nucleate\n{block['text']}print(len(model.switches), model.network.config.model_type)"
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING_FACE"))},
        **{"HF_ENDPOINT": place, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": "played", "HF_HUB_DISABLE_XET": "1"},
        "no_proxy": "127.0.0.1",
    }
    command = [sys.executable, "-c", asked]
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.split() == ["1", "llama"]
    assert {"README.md", "switched.json", "switch.safetensors", "network/model.safetensors"} <= set(served)


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash here")
@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("pr", "pretrain probe"),
        ("probe --de", "--device"),
        ("probe --device ", "auto cpu cuda"),
        ("learn --size s", "small"),
        ("sweep ", "learn pretrain align"),
        ("sweep learn --fa", "--fast"),
        ("probe my-model pro", ""),  # a file
        ("probe a b c d e f g h --li", "--limit"),  # a place of two digits
    ],
)
def test_bash_completes_verbs_options_and_values(typed, offered, capsys):
    (block,) = BLOCK.finditer(SHELL)
    with pytest.raises(SystemExit, match=r"^0$"):
        main(block["text"].split()[1:])
    script = capsys.readouterr().out
    array = " ".join(f"'{word}'" for word in f"nucleate {typed}".split(" "))
    asked = f'{script}COMP_WORDS=({array}); COMP_CWORD={len(typed.split(" "))}; _nucleate; echo "${{COMPREPLY[*]}}"'
    ended = subprocess.run(["bash", "-c", asked], capture_output=True, text=True, check=True)
    assert (ended.stdout.strip(), ended.stderr) == (offered, "")
