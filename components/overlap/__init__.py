"""Runs of words that texts share: the measure of contamination."""
