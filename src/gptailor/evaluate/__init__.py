"""Honest numbers: scores with intervals, baselines, calibration."""
