"""Metrics that are on no dashboard and in no alert, each with the reason."""

REASONS = {}
