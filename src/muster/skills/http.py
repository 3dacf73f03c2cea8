"""The built-in skill `http`: one request to an address that the task names."""

from __future__ import annotations

from typing import Any, Final

from muster.skill import AsyncContext, skill

DEFAULT_TIMEOUT_S: Final = 30.0
MAX_TIMEOUT_S: Final = 3_600.0
DEFAULT_MAX_BYTES: Final = 1024 * 1024
# All of it is held in memory once.
MAX_MAX_BYTES: Final = 64 * 1024 * 1024
# Larger bodies go to the blob store, so that the result itself stays with the task's record.
MAX_INLINE_BYTES: Final = 32 * 1024

_INPUT: Final = {
    "type": "object",
    "properties": {
        "method": {
            "enum": ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"],
            "default": "GET",
        },
        "url": {"type": "string", "description": "http:// or https://, without a user name."},
        "headers": {"type": "object", "additionalProperties": {"type": "string"}},
        "body": {"type": "string", "description": "Sent as UTF-8."},
        "body_base64": {"type": "string", "description": "Sent as the bytes that it encodes."},
        "json": {"description": "Sent as JSON. At most one of the three bodies."},
        "timeout_s": {
            "type": "number",
            "exclusiveMinimum": 0,
            "maximum": MAX_TIMEOUT_S,
            "default": DEFAULT_TIMEOUT_S,
        },
        "max_bytes": {
            "type": "integer",
            "minimum": 0,
            "maximum": MAX_MAX_BYTES,
            "default": DEFAULT_MAX_BYTES,
            "description": "A longer answer fails the task.",
        },
        "redirects": {
            "type": "integer",
            "minimum": 0,
            "maximum": 3,
            "default": 3,
            "description": "How many are followed, on the same host; 0 gives them back.",
        },
    },
    "required": ["url"],
    "additionalProperties": False,
}
_OUTPUT: Final = {
    "type": "object",
    "properties": {
        "status": {"type": "integer"},
        "url": {"type": "string", "description": "After redirects."},
        "headers": {"type": "object", "additionalProperties": {"type": "string"}},
        "size": {"type": "integer", "description": "Bytes of the body."},
        "text": {"type": "string"},
        "base64": {"type": "string"},
        "blob": {"type": "string", "description": "SHA-256 of a body over 32 KiB."},
    },
    "required": ["status", "url", "headers", "size"],
}


@skill(input_schema=_INPUT, output_schema=_OUTPUT)
async def http(input: Any, ctx: AsyncContext) -> Any:  # noqa: A002  it takes the whole input
    """Sends one HTTP request and gives status, headers and body."""
    from muster.skills.http_call import fetch  # noqa: PLC0415  see the package's docstring

    return await fetch(input, ctx.blobs.put)
