"""The experiment on heterogeneous tables: several models and methods, several seeds, one protocol.

``python -m gradsurgery.integrations.vae.experiment --data FOLDER --model vae --method sum lossbalancer`` splits each
table 70/10/20 by seed, trains, keeps the epoch with the smallest validation error, and tells the median test error
over the seeds and whether it differs from that of the plain sum.
"""

from .hidden_cells import hide_cells, imputation_errors
from .t_test import TTest, corrected_t_test

__all__ = ["TTest", "corrected_t_test", "hide_cells", "imputation_errors"]
