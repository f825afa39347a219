"""Where a base model comes from: one module a kind."""
