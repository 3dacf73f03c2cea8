"""What a cluster of agents is made of, as plain values: no I/O, no clock, no randomness."""
