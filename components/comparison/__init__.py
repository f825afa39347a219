"""Does the choice pay: arms x seeds x budgets x noise on one pool, and how sure their differences are."""
