"""The training of one iteration: batches, Trainer, what a killed stage resumes from, and the checkpoint."""
