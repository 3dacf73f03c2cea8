"""Readers of public data sets; files are given by path."""
