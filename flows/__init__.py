"""What runs, when, and with which retries. Prefect is imported in this package and nowhere else."""
