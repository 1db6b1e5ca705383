"""Self-contained HTML pages: a skeleton for sections of words, tables and pictures."""

from .document import Section, page, save_page
from .picture import picture
from .style import colours
from .table import table
from .text import escaped

__all__ = ["Section", "colours", "escaped", "page", "picture", "save_page", "table"]
