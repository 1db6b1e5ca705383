"""The generative models, each for itself."""
