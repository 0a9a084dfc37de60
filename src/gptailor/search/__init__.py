"""Hyper-parameter search: which settings to try, how they are compared, and what is told of it."""
