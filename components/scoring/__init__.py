"""How hard records are for a model: the complexity formula, fast losses, and the store of those already computed."""
