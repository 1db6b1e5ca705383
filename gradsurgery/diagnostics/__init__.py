"""See the conflict: how losses stand to each other, while a model trains or before it does."""

from . import similarity

__all__ = ["similarity"]
