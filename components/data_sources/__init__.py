"""Where records come from: docstrings, files, datasets of a hub, and the shapes that they have there."""
