"""The complexity of a record: its formula, how texts are read fast, and the store of known losses."""
