"""Nothing that only one system has: what the source may name, runs read on a machine without it, locks, memory."""

import ast
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import fake_run
from nucleate import locks, memory
from nucleate.locks import is_locked, locked
from nucleate.refusal import Refused

SOURCE = Path(__file__).parents[1] / "src" / "nucleate"
MISSING_MODULES = {
    *("fcntl", "resource", "pwd", "grp", "termios", "pty", "tty", "syslog", "crypt", "readline", "curses", "posix"),
    *("msvcrt", "winreg", "winsound", "_winapi"),
}
MISSING_FROM_OS = {
    *("sysconf", "pread", "pwrite", "fork", "forkpty", "getuid", "geteuid", "getgid", "killpg", "kill", "getpgid"),
    *("setsid", "nice", "mkfifo", "chown", "wait4", "uname", "statvfs", "sched_getaffinity", "startfile", "symlink"),
}
MISSING_FROM_SIGNAL = {"SIGKILL", "SIGHUP", "SIGALRM", "SIGUSR1", "SIGCHLD", "alarm", "pause", "setitimer"}
GUARDED = {"threads.py": {"os.sched_getaffinity"}, "memory.py": {"/sys/fs/cgroup"}}  # asked for only where it is there


def foreign(source: str) -> set[str]:
    """What a file names that some system lacks, and what would be written or read in another way there."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                found |= {name.name for name in names} & MISSING_MODULES
            case ast.ImportFrom(module=module, names=names):
                barred = {"os": MISSING_FROM_OS, "signal": MISSING_FROM_SIGNAL}.get(module or "", set())
                found |= {module} & MISSING_MODULES | {name.name for name in names} & barred
            case ast.Attribute(value=ast.Name(id="os"), attr=name) if name in MISSING_FROM_OS | {"path", "sep"}:
                found.add(f"os.{name}")
            case ast.Attribute(value=ast.Name(id="signal"), attr=name) if name in MISSING_FROM_SIGNAL:
                found.add(f"signal.{name}")
            case ast.Constant(value=str(text)) if text.startswith(("/proc", "/sys", "/dev", "/tmp", "/etc")):
                found.add(text)
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                found |= {"+ '/'" for one in (left, right) if isinstance(one, ast.Constant) and one.value == "/"}
            case ast.Call(func=ast.Attribute(value=ast.Name(id="os"), attr="open")):  # bytes
                pass
            case ast.Call(func=ast.Name(id="open") | ast.Attribute(attr="read_text" | "write_text" | "open")):
                found |= set() if _names_its_encoding(node) else {ast.unparse(node)}
    return found


def _names_its_encoding(call: ast.Call) -> bool:
    """Or needs none: bytes; the names of `read_text` and `write_text` come with it first or second."""
    name = call.func.id if isinstance(call.func, ast.Name) else call.func.attr
    if any(word.arg == "encoding" for word in call.keywords):
        return True
    if name in ("read_text", "write_text"):
        return len(call.args) == ("read_text", "write_text").index(name) + 1
    return any(
        "b" in one.value for one in ast.walk(call) if isinstance(one, ast.Constant) and isinstance(one.value, str)
    )


@pytest.mark.parametrize("file", sorted(SOURCE.rglob("*.py")), ids=lambda file: file.name)
def test_no_file_names_what_some_system_lacks(file):
    assert foreign(file.read_text(encoding="utf-8")) - GUARDED.get(file.name, set()) == set()


@pytest.mark.parametrize(
    "line",
    [
        "import fcntl",
        "def late():\n    import resource",
        "from os import fork",
        "from pwd import getpwuid",
        "import os\nos.sysconf('SC_PHYS_PAGES')",
        "import os\nos.path.join('a', 'b')",
        "import signal\nsignal.SIGKILL",
        "open('/proc/meminfo', encoding='utf-8')",
        "folder = 'a' + '/' + 'b'",
        "open('a.txt')",
        "open('a.txt', 'w')",
        "path.read_text()",
        "path.write_text('words')",
    ],
)
def test_a_line_that_would_stop_on_some_system_is_found(line):
    assert foreign(line)


@pytest.mark.parametrize("line", ["open(a, 'rb')", "path.read_text('utf-8')", "path.write_text(a, encoding='utf-8')"])
def test_a_line_that_runs_on_every_system_is_not(line):
    assert not foreign(line)


def test_no_file_of_the_package_or_of_the_results_has_a_name_that_windows_refuses():
    for folder in (SOURCE, SOURCE.parents[1] / "results"):
        for path in folder.rglob("*"):
            assert not set(path.name) & set('<>:"\\|?*') and not path.name.endswith((".", " ")), path


# --- a machine without them ------------------------------------------------------------------------------------------

# Python as it is elsewhere: without these modules, functions and places, and with an alphabet of 256 letters.
ELSEWHERE = f"""
import os, signal, sys

def hidden(event, arguments):
    if event == "open" and str(arguments[0]).startswith(("/proc", "/sys")):
        raise FileNotFoundError(2, "No such file or directory", arguments[0])

sys.modules |= dict.fromkeys({sorted(MISSING_MODULES - {"posix"})})
for module, names in ((os, {sorted(MISSING_FROM_OS - {"uname"})}), (signal, {sorted(MISSING_FROM_SIGNAL)})):
    for name in names:
        vars(module).pop(name, None)
sys.addaudithook(hidden)
"""


def elsewhere(script: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", ELSEWHERE + script, *map(str, arguments)]
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252"}
    return subprocess.run(command, env=environment, capture_output=True, encoding="cp1252", check=False)


def test_that_machine_lacks_what_it_should():
    for line in ("import fcntl", "import os; os.fork()", "open('/proc/self/status')", "print('\\u03b3')"):
        assert elsewhere(line).returncode == 1, line


def test_the_command_says_what_it_can_and_lists_settings():
    assert "usage: nucleate" in elsewhere("from nucleate.cli import main; main(['--help'])").stdout
    listed = elsewhere("from nucleate.cli import main; sys.exit(main(['settings', '--size', 'micro']))")
    assert (listed.returncode, listed.stderr) == (0, "")


def test_a_run_is_read_reported_and_judged(tmp_path):
    run = fake_run.build(tmp_path / "γ run", epochs=4, layers=1)
    script = """
from nucleate.cli import main
from nucleate.runs import load_run
run = load_run(sys.argv[1])
assert run.state == "done" and run.metrics.height and run.dataset.height and run.layout(4).height
for verb in ("runs", "report", "claims"):
    assert main([verb, sys.argv[1]]) == 0
"""
    done = elsewhere(script, run)
    assert done.returncode == 0, done.stderr
    assert "? run" in done.stdout, "a letter that the terminal lacks stops nothing"
    assert "</html>" in (run / "page.html").read_text(encoding="utf-8")
    assert len(json.loads((run / "claims.json").read_text(encoding="utf-8"))) > 10
    assert list((run / "figures").glob("*.svg"))


# --- locks -----------------------------------------------------------------------------------------------------------

HOLDS = """
import sys, time
from pathlib import Path
from nucleate.locks import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@contextmanager
def holder(folder: Path, script: str = HOLDS) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the folder."""
    command = [sys.executable, "-c", script, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def test_a_held_folder_is_refused_at_once_and_free_as_soon_as_its_holder_is_killed(tmp_path):
    with holder(tmp_path) as process:
        began = time.monotonic()
        with pytest.raises(Refused, match="is in use by another sweep; wait for it"), locked(tmp_path, "sweep"):
            pass
        assert time.monotonic() - began < 5, "it does not wait"
        assert is_locked(tmp_path)
        process.kill()
        process.wait()
        assert not is_locked(tmp_path)
        with locked(tmp_path):
            assert is_locked(tmp_path)
    assert not is_locked(tmp_path)


def test_the_file_of_a_lock_stays_so_that_no_two_can_hold_one_of_that_name(tmp_path):
    with locked(tmp_path):
        before = (tmp_path / locks.LOCK).stat().st_ino
        with pytest.raises(Refused, match="in use"), locked(tmp_path):
            pass
        assert is_locked(tmp_path), "a refused one has taken nothing away"
    assert [path.name for path in tmp_path.iterdir()] == [locks.LOCK]
    with locked(tmp_path):
        assert (tmp_path / locks.LOCK).stat().st_ino == before


def test_a_lock_ends_with_an_error_inside(tmp_path):
    with pytest.raises(ValueError, match="mine"), locked(tmp_path):
        raise ValueError("mine")
    with locked(tmp_path):
        pass


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system forks no processes")
def test_a_forked_child_does_not_keep_the_lock_of_its_dead_parent(tmp_path):
    # The child says that it is there, once it has let go of what it was born with.
    fork = "    import os\n    if os.fork():\n        time.sleep(600)\n"
    forks = HOLDS.replace("time.sleep(600)", "sys.stdin.read()").replace("    print(", f"{fork}    print(")
    with holder(tmp_path, forks) as process:
        process.kill()
        process.wait()
        assert not is_locked(tmp_path)
        with locked(tmp_path):
            pass


def test_a_look_at_a_lock_writes_nothing_and_needs_no_right_to_write(tmp_path, monkeypatch):
    assert not is_locked(tmp_path) and not list(tmp_path.iterdir())
    with holder(tmp_path):
        monkeypatch.setattr(os, "access", lambda *_: False)
        assert is_locked(tmp_path)
    assert not is_locked(tmp_path)
    monkeypatch.setattr("builtins.open", lambda *_: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    assert not is_locked(tmp_path), "not ours to read"


def test_a_folder_that_cannot_be_locked_is_refused_with_the_reason(tmp_path):
    (tmp_path / locks.LOCK).mkdir()
    with pytest.raises(Refused, match=r"cannot be locked \(.+\); name another folder"), locked(tmp_path):
        pass


# --- memory ----------------------------------------------------------------------------------------------------------


def test_memory_is_that_of_the_machine_and_of_a_process():
    assert 2**26 < memory.free_memory() <= memory.total_memory() < 2**50
    assert 2**20 < memory.memory_of() <= memory.total_memory()
    assert memory.memory_of(os.getpid()) > 2**20
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    assert memory.memory_of(process.pid) == 0


def test_a_container_has_no_more_than_it_is_given(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "_CONTAINER", tmp_path)
    whole = memory.total_memory()
    for name, text in (("max", "3000000\n"), ("current", "2000000\n"), ("stat", "anon 7\ninactive_file 500000\n")):
        (tmp_path / f"memory.{name}").write_text(text, encoding="utf-8")
    assert (memory.total_memory(), memory.free_memory()) == (3_000_000, 1_500_000)
    (tmp_path / "memory.max").write_text("max\n", encoding="utf-8")
    assert memory.total_memory() == whole
