"""Evaluate a selection and a run: diversity, confidence intervals, and diagnosis with remedies."""
