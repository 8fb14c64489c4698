"""One behaviour of a frozen model redirected, and what everything else lost."""
