"""Spoiled records for experiments: what a strategy picks when part of the pool is bad."""
