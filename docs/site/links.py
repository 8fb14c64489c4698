"""What mkdocs needs to show the Markdown of this repository where it stands: pages from outside docs/, and their links.

A link says where a file lies in the repository, so that it works there. On the site it leads to the page of that file;
what is no page is linked to in the repository (`repo_url` of mkdocs.yml), and without one left as its text.
"""

import re
from itertools import pairwise
from os.path import normpath, relpath
from pathlib import Path
from posixpath import dirname, join
from typing import Any

from mkdocs.structure.files import File

_ROOT = Path(__file__).parents[2]
_BESIDE = (
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "results/**/*.md",
    "results/**/*.png",
)  # shown, beside docs/
_LINK = re.compile(r"(?<!!)\[([^][]*)\]\(([^)#:\s]+)(#[^)\s]*)?\)|(?<=\]\()([^)#:\s]+)(?=\))")
_CODE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"`[^`\n]*`")
_LIST = re.compile(r"^(?![ |>]|[-*] |\d+\. )(.*\S.*)\n(?=(?:[-*]|1\.) )", re.MULTILINE)
_AFTER_CODE = re.compile(r"\A\n(?=(?:[-*]|1\.) )")


def on_files(files: Any, config: Any) -> Any:
    for pattern in _BESIDE:
        for path in sorted(_ROOT.glob(pattern)):
            name = path.relative_to(_ROOT).as_posix()
            files.append(File.generated(config, "index.md" if name == "README.md" else name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Outside code: links as the site has them; and where GitHub reads otherwise, a blank line before each list, and
    no backslash before a bar inside `code`."""
    homes = {Path(file.abs_src_path).relative_to(_ROOT).as_posix(): file.src_uri for file in files if _is_ours(file)}
    here = dirname(next(home for home, name in homes.items() if name == page.file.src_uri))

    def led(found: re.Match[str]) -> str:
        label, target, anchor, picture = found.groups()
        home = normpath(join(here, target or picture))
        name = homes.get(home)
        there = name and relpath(name, dirname(page.file.src_uri) or ".")
        if picture:
            return there or picture
        if not there and not config.repo_url:
            return label
        return f"[{label}]({there or f'{config.repo_url}/blob/main/{home}'}{anchor or ''})"

    ends = [0, *(place for code in _CODE.finditer(markdown) for place in code.span()), len(markdown)]
    parts = [markdown[begin:end] for begin, end in pairwise(ends)]
    for number in range(0, len(parts), 2):
        text = _LIST.sub(r"\1\n\n", _AFTER_CODE.sub("\n\n", _LINK.sub(led, parts[number])))
        parts[number] = _SPAN.sub(lambda code: code[0].replace("\\|", "|"), text)
    return "".join(parts)


def _is_ours(file: Any) -> bool:
    return file.abs_src_path is not None and Path(file.abs_src_path).is_relative_to(_ROOT)
