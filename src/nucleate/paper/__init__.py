"""The experiments of the paper, on networks that are trained here."""
