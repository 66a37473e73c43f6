"""Pruning and sharing by the curvature of the loss (TensorFlow)."""
