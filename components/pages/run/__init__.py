"""The page of a run: what was trained, whether it is better, what was picked, what it cost, how to make it again."""
