"""hessprobe: how sharp is a minimum, with the error and the cost of every number."""
