"""Layout of parameters over the ranks of a run, and the exchange that lends whole matrices to one rank each."""
