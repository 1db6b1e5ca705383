"""Pictures of conflicts and of what became of them, from tensors and names; needs the extra ``plots``."""

from .canvas import COLOURS
from .files import save_figure
from .front import draw_front
from .layers import draw_layers
from .pairs import draw_pairs
from .time import draw_time
from .trade_off import draw_trade_off
from .weights import draw_weights

__all__ = [
    "COLOURS",
    "draw_front",
    "draw_layers",
    "draw_pairs",
    "draw_time",
    "draw_trade_off",
    "draw_weights",
    "save_figure",
]
