"""What runs, when, and with what retry. Prefect lives here and nowhere else."""
