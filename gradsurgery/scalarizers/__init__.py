"""The scalarizers: losses in, one scalar to differentiate out. One file each."""

from .base import Scalarizer

__all__ = ["Scalarizer"]
