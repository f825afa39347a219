"""What texts share: similar sets of word n-grams, and runs of words, the measure of contamination."""
