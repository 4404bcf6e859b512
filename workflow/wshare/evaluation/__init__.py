"""Prediction, intervals and the verdict."""
