"""Which chunks lookups ask for, counted beside them: how many, and how many of these are new."""
