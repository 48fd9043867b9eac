"""API: the handlers, one file for each family of routes. Each takes a Visit and answers it, or raises an ApiError."""
