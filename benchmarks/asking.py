"""What the benchmarks of real models ask of a command line: models, sets of prompts, a folder for tables."""

import argparse
import sys
from pathlib import Path


def parser_of(doc: str) -> argparse.ArgumentParser:
    """Of a script's own description, which is all that is shown where nothing is asked, as `make bench` does."""
    if len(sys.argv) == 1:
        print(doc)
        sys.exit(0)
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", required=True)
    parser.add_argument("--sets", nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True)
    return parser
