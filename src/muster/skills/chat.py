"""The built-in skill `chat`: asks an OpenAI-compatible provider and streams what it says.

Offered by agents that are configured for it, see `chat_settings`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Final

from muster.skill import AsyncContext, skill

DEFAULT_TIMEOUT_S: Final = 300.0
MAX_TIMEOUT_S: Final = 3_600.0
MAX_MESSAGES: Final = 1_024

_INPUT: Final = {
    "type": "object",
    "properties": {
        "messages": {
            "type": "array",
            "items": {"type": "object", "required": ["role"]},
            "minItems": 1,
            "maxItems": MAX_MESSAGES,
            "description": "As the provider takes them: role and content.",
        },
        "model": {"type": "string", "description": "Instead of the agent's own default."},
        "temperature": {"type": "number"},
        "top_p": {"type": "number"},
        "max_tokens": {"type": "integer", "minimum": 1},
        "max_completion_tokens": {"type": "integer", "minimum": 1},
        "stop": {"type": ["string", "array"]},
        "seed": {"type": "integer"},
        "presence_penalty": {"type": "number"},
        "frequency_penalty": {"type": "number"},
        "response_format": {"type": "object"},
        "tools": {"type": "array"},
        "tool_choice": {"type": ["string", "object"]},
        "timeout_s": {
            "type": "number",
            "exclusiveMinimum": 0,
            "maximum": MAX_TIMEOUT_S,
            "default": DEFAULT_TIMEOUT_S,
            "description": "For all of it, waiting for a busy provider included.",
        },
        "base_url": {
            "type": "string",
            "description": "Another provider, where the agent allows that; it gets no key.",
        },
    },
    "required": ["messages"],
    "additionalProperties": False,
}
_OUTPUT: Final = {
    "type": "object",
    "properties": {
        "content": {"type": "string"},
        "finish_reason": {"type": ["string", "null"]},
        "model": {"type": "string"},
        "usage": {
            "type": ["object", "null"],
            "description": "Token counts as the provider gives them; null when it gives none.",
            "properties": {
                "prompt_tokens": {"type": "integer"},
                "completion_tokens": {"type": "integer"},
                "total_tokens": {"type": "integer"},
            },
        },
        "tool_calls": {"type": "array"},
    },
    "required": ["content", "finish_reason", "model", "usage"],
}


@skill(input_schema=_INPUT, output_schema=_OUTPUT)
async def chat(input: Any, ctx: AsyncContext) -> AsyncGenerator[Any, None]:  # noqa: A002  as `http`
    """Asks a language model; each partial output is a piece of its answer."""
    from muster.skills.chat_call import converse  # noqa: PLC0415  see the package's docstring

    async with aclosing(converse(input, ctx.progress)) as said:
        async for item in said:
            yield item
