"""Gradients at a second point: the previous iterate, the exchange of weights, the random streams."""
