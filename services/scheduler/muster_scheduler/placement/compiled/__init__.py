"""Loops that numba compiles; imported only when a strategy first needs them, for numba is heavy."""
