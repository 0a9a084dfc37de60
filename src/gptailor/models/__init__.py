"""From names to weights: load a base, choose what may change, save a bundle."""
