"""From a DataFrame to tensors: what the columns hold, how they are written, how they are scaled."""
