"""What a customer wants: the sentences, their split, and a small model that is trained on them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import Pipeline, make_pipeline

SENTENCES: Final = Path(__file__).with_name("sentences.jsonl")
# Fixes which quarter is held out, so that agents and the report mean the same sentences.
SPLIT_SEED: Final = 7
HELD_OUT_SHARE: Final = 0.25


@dataclass(frozen=True, slots=True)
class Sentence:
    """What a customer wrote and what it is about."""

    text: str
    intent: str


@dataclass(frozen=True, slots=True)
class Route:
    """What the model makes of a message; `confidence` from 0 to 1."""

    intent: str
    confidence: float


def read_sentences(path: Path = SENTENCES) -> list[Sentence]:
    """All of them, in the order of the file."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [Sentence(**json.loads(line)) for line in lines if line.strip()]


def split(sentences: list[Sentence]) -> tuple[list[Sentence], list[Sentence]]:
    """What is trained on, and what is held out: a quarter of each intent."""
    trained, held_out = train_test_split(
        sentences,
        test_size=HELD_OUT_SHARE,
        random_state=SPLIT_SEED,
        stratify=[s.intent for s in sentences],
    )
    return trained, held_out


class Router:
    """TF-IDF of pieces of words, so that "refunded" resembles "refund", and a linear model."""

    def __init__(self, sentences: list[Sentence]) -> None:
        # Both numbers were chosen by cross-validation within the training sentences.
        self._model: Pipeline = make_pipeline(
            TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True),
            LogisticRegression(C=30.0, max_iter=2000),
        )
        self._model.fit([s.text for s in sentences], [s.intent for s in sentences])

    def routes(self, texts: list[str]) -> list[Route]:
        """One for each text."""
        chances = self._model.predict_proba(texts)
        best = np.argmax(chances, axis=1)
        names = self._model.classes_
        return [Route(str(names[i]), float(row[i])) for i, row in zip(best, chances, strict=True)]

    def accuracy(self, sentences: list[Sentence]) -> float:
        """The share of right intents."""
        routes = self.routes([s.text for s in sentences])
        return float(
            np.mean([r.intent == s.intent for r, s in zip(routes, sentences, strict=True)])
        )


@cache
def router() -> Router:
    """The model of every agent: data, split and method are fixed, so all train the same one."""
    return Router(split(read_sentences())[0])
