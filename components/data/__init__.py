"""Records, and the Parquet tables in which stages pass them on."""
