"""Three small skills: a plain function, one that reports progress, one that keeps a count.

`muster up --agents 2 --skills examples.quickstart.skills`
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from muster.skill import skill


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
