"""Many runs, on many workers."""
