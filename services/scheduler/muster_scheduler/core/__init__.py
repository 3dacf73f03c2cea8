"""The leader's decisions: events in, commands out; no clock, no randomness, no I/O in here."""
