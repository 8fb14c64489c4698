"""Completion of verbs, options and their values by bash, and by zsh in bash's way: a script made from the parser."""

import argparse
from typing import Any

_SCRIPT = """\
_nucleate() {{
  local here=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} words= chosen=
  case "$COMP_CWORD ${{COMP_WORDS[1]}}" in
    "1 "*) chosen="{verbs}" ;;
{options}
  esac
  case "${{COMP_WORDS[1]}} $before" in
{values}
  esac
  if [ -n "$chosen" ]; then COMPREPLY=($(compgen -W "$chosen" -- "$here"))
  elif [[ $here == -* ]]; then COMPREPLY=($(compgen -W "$words" -- "$here"))
  fi
}}
complete -o default -F _nucleate nucleate
"""


class PrintCompletion(argparse.Action):
    """Print the script, and end."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        print(completion(parser), end="")
        parser.exit()


def completion(parser: argparse.ArgumentParser) -> str:
    """The script. Where it has nothing to say, names of files are completed."""
    (verbs,) = (one.choices for one in parser._actions if isinstance(one, argparse._SubParsersAction))
    options, values = [], []
    for verb, own in verbs.items():
        actions = [*own._actions, *(one for swept in getattr(own, "passes_on", {}).values() for one in swept._actions)]
        names = {name: one for one in actions for name in one.option_strings if name.startswith("--")}
        options.append(f'    *" {verb}") words="{" ".join(sorted(names))}" ;;')
        first = [(verb, one) for one in own._actions if one.choices and not one.option_strings]  # what a sweep runs
        for name, one in (*names.items(), *first):
            if found := one.choices or ("|" in str(one.metavar) and one.metavar.split("|")):
                values.append(f'    "{verb} {name}") chosen="{" ".join(found)}" ;;')
    return _SCRIPT.format(values="\n".join(values), options="\n".join(options), verbs=" ".join(verbs))
