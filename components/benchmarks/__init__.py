"""Benchmarks: which tasks are named, their data, and running them on a model with lm-evaluation-harness."""
