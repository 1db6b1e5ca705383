"""What was recorded of losses, weights and gradients, step by step."""

from .history import History

__all__ = ["History"]
