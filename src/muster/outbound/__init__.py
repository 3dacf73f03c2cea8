"""Calls that Muster makes to addresses which a task, or a webhook, has named.

`addresses` and `requests` decide, pure and without I/O, what may be called and followed;
`exchange` does it. httpx is imported by the first call, not with these modules.
"""
