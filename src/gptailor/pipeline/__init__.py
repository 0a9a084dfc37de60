"""The straight line from a file to a bundle: `fit.py` first, the rest are its steps."""
