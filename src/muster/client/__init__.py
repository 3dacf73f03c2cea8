"""The Python SDK: `Client` and `AsyncClient` over REST, reached as `from muster import Client`.

What a call does is written once, as generators of steps (`exchange`, `calls`, `gathering`,
`following`); the two clients only perform the steps.
"""
