"""Which data trained which checkpoint: find, describe, trace, verify, replay and compare."""
