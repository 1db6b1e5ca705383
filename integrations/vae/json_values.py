"""Numbers as JSON has them."""

from __future__ import annotations

import math
from typing import Any


def as_json(value: Any) -> Any:
    """JSON has no NaN and no infinity: ``None`` instead.

    Example:
        >>> as_json({"errors": [0.5, float("inf")]})
        {'errors': [0.5, None]}
    """
    if isinstance(value, dict):
        return {key: as_json(own) for key, own in value.items()}
    if isinstance(value, list):
        return [as_json(own) for own in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
