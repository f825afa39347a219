"""Sources of records: docstrings, files and hub datasets, and the record shapes that occur in them."""
