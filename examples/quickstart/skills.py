"""Small skills: two plain functions, and one that reports progress and logs while it runs.

`muster up --agents 2 --skills examples.quickstart.skills`
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Generator
from typing import Any

from muster.skill import Context, skill


@skill
def greet(name: str, loudly: bool = False) -> str:
    """A greeting."""
    text = f"Hello, {name}!"
    return text.upper() if loudly else text


@skill
def count_words(text: str, top: int = 3) -> dict[str, Any]:
    """How often the most frequent words of a text occur."""
    words = Counter(text.lower().split())
    return {"words": words.total(), "top": dict(words.most_common(top))}


@skill
def count_down(ctx: Context, start: int = 5) -> Generator[int, None, str]:
    """Counts to zero, one number each half second; every yield is a partial output."""
    for number in range(start, 0, -1):
        ctx.progress(1 - number / start, f"{number} left")
        ctx.log(f"counting: {number}")
        yield number
        time.sleep(0.5)
    return "done"
