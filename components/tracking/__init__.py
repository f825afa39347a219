"""MLflow, which is imported in this room and nowhere else: runs, stages, artifacts, the model registry."""
