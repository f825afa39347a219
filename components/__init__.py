"""The stages of dvc.yaml, one module each; every folder beside them is a room named by what it is about."""
