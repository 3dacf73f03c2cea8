"""The agent: a supervisor, its runtime, and the warm processes that run skills."""
