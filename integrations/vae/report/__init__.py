"""One self-contained HTML page: what a model learns of each column of a table, with and without surgery."""

from .comparison import Arm, Comparison, compare
from .model_page import model_page
from .page import comparison_page

__all__ = ["Arm", "Comparison", "compare", "comparison_page", "model_page"]
