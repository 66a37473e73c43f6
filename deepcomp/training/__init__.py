"""Training: how kernels are parametrized, the loop, prediction and evaluation (TensorFlow)."""
