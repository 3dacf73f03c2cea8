"""The knowledge base: articles as blobs, and under one shared key the list of them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sklearn.feature_extraction.text import TfidfVectorizer

ARTICLES: Final = Path(__file__).with_name("knowledge.json")
INDEX_KEY: Final = "customer-service/articles"
TICKET_KEY: Final = "customer-service/tickets/"
_WORD: Final = re.compile(r"[a-z0-9]+")


@dataclass(frozen=True, slots=True)
class Article:
    """`about` has the words that customers use when this is what they need."""

    id: str
    intent: str
    title: str
    about: str
    text: str


@dataclass(frozen=True, slots=True)
class Entry:
    """An article in the index; `blob` names its text."""

    id: str
    intent: str
    title: str
    about: str
    blob: str


def read_articles(path: Path = ARTICLES) -> list[Article]:
    """The articles that come with the example."""
    return [Article(**fields) for fields in json.loads(path.read_text(encoding="utf-8"))]


def closest(message: str, entries: Iterable[Entry], intent: str) -> Entry | None:
    """Of the intent's articles the one that shares most words with the message; ties: the first."""
    words = set(_WORD.findall(message.lower()))
    of_intent = [entry for entry in entries if entry.intent == intent]
    if not of_intent:
        return None
    return max(of_intent, key=lambda entry: len(words & set(_WORD.findall(entry.about))))


def ranked(message: str, articles: Sequence[tuple[Entry, str]], count: int) -> list[Entry]:
    """The best `count` articles by the cosine of TF-IDF over all that is written in them."""
    vectors = TfidfVectorizer(sublinear_tf=True, stop_words="english")
    written = [f"{entry.title} {entry.about} {text}" for entry, text in articles]
    scores = (vectors.fit_transform(written) @ vectors.transform([message]).T).toarray()[:, 0]
    best = sorted(range(len(articles)), key=lambda place: (-scores[place], place))
    return [articles[place][0] for place in best[:count]]
