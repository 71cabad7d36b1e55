"""The study: one figure each, `python -m experiments` lists them."""
