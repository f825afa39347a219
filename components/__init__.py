"""What each stage does: plain functions on plain data. Prefect and DVC are not known here."""
