"""Where a base model comes from: one module per kind."""
