"""Gradients of the losses of samples that do not mix, told apart after one backward pass of their sum."""
