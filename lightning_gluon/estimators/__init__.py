"""Momentum estimators, which stand in for the gradient, and the buffers they carry between steps."""
