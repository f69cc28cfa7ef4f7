"""How fast sampling is here, what of this machine's limits that is, and how another implementation does beside it."""
