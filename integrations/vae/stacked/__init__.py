"""Several seeds of a training at once: one tensor a layer, one call for all blocks."""
