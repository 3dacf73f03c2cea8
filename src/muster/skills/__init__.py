"""The built-in skills that call other services, `http` and `chat`.

Their modules are imported by every agent before it is asked for anything, so what a call needs
(httpx above all) is imported by the first call.
"""
