"""What a record is, and the Parquet tables that stages hand to each other."""
