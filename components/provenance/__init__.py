"""What each stage made of what: digests, statements, and the readers of dvc.yaml and dvc.lock."""
