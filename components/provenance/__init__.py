"""What each stage made from what: digests, statements, and readers of dvc.yaml and dvc.lock."""
