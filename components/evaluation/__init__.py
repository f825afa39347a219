"""How good a model is: its losses on the holdout, and sample responses."""
