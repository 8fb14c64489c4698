"""`python -m nucleate` is the command."""

import sys

from nucleate.cli import main

sys.exit(main())
