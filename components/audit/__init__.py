"""Which data trained which checkpoint, and whether anything was swapped since."""
