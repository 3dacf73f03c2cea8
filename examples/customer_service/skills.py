"""A service desk: routes a message, answers from the knowledge base, or passes it on.

`muster up --agents 2 --skills examples.customer_service.skills`
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Final

from examples.customer_service.intents import router
from examples.customer_service.knowledge import (
    INDEX_KEY,
    TICKET_KEY,
    Entry,
    closest,
    ranked,
    read_articles,
)
from muster.domain.errors import PreconditionFailed
from muster.skill import AsyncContext, Context, InputRejected, PermanentFailure, skill

# Below it the model is wrong too often; chosen by cross-validation within the training sentences.
LEAST_CONFIDENCE: Final = 0.4
# They want a person, however sure the model is.
ALWAYS_ESCALATED: Final = frozenset({"complaint"})
MAX_MESSAGE_CHARS: Final = 2_000
_FOUND: Final = 3
# Articles that this process has read. A blob is named by its content, so it never changes.
_TEXTS: dict[str, str] = {}
_NOT_PUBLISHED: Final = "the knowledge base is empty; run the skill publish_knowledge first"


@dataclass(frozen=True, slots=True)
class Answer:
    """What the customer gets. `article` and `ticket` are "" when there is none."""

    text: str
    intent: str
    confidence: float
    escalated: bool
    article: str = ""
    ticket: str = ""


@dataclass(frozen=True, slots=True)
class Escalation:
    """What the second line gives back."""

    text: str
    ticket: str


@skill
def publish_knowledge(ctx: Context) -> int:
    """Puts the articles into shared storage and gives their number; safe to repeat."""
    entries = []
    for article in read_articles():
        blob = ctx.blobs.put(article.text.encode())
        entries.append(Entry(article.id, article.intent, article.title, article.about, blob))
    ctx.kv.put(INDEX_KEY, [asdict(entry) for entry in entries])
    return len(entries)


@skill
async def answer(message: str, ctx: AsyncContext) -> Answer:
    """Answers a customer's message."""
    if not message.strip() or len(message) > MAX_MESSAGE_CHARS:
        limit = f"1 to {MAX_MESSAGE_CHARS} characters"
        raise InputRejected("message", message, limit)
    (route,) = router().routes([message])
    if route.intent not in ALWAYS_ESCALATED and route.confidence >= LEAST_CONFIDENCE:
        index = await ctx.kv.get(INDEX_KEY)
        if index is None:
            raise PermanentFailure(_NOT_PUBLISHED)
        entry = closest(message, [Entry(**fields) for fields in index.value], route.intent)
        if entry is not None:
            if entry.blob not in _TEXTS:
                _TEXTS[entry.blob] = (await ctx.blobs.get(entry.blob)).decode()
            text = _TEXTS[entry.blob]
            return Answer(text, route.intent, route.confidence, False, article=entry.id)
    # Meanwhile this task's slot serves others.
    child = await ctx.submit("escalate", {"message": message, "intent": route.intent})
    passed_on = Escalation(**await child.result())
    return Answer(passed_on.text, route.intent, route.confidence, True, ticket=passed_on.ticket)


@skill
async def escalate(message: str, intent: str, ctx: AsyncContext) -> Escalation:
    """The second line: opens a ticket for a person, and says what may help until then."""
    # A task keeps its id when it is tried again, so a message has one ticket.
    ticket = ctx.task_id
    content = {"message": message, "intent": intent, "state": "open"}
    try:
        await ctx.kv.put(TICKET_KEY + ticket, content, if_absent=True)
    except PreconditionFailed:
        ctx.log(f"ticket {ticket} was opened by an earlier attempt")
    search = await ctx.submit("find_articles", {"message": message})
    titles = await search.result()
    text = f"A colleague answers you today. Until then this may help: {'; '.join(titles)}."
    return Escalation(text, ticket)


@skill
def find_articles(message: str, ctx: Context) -> list[str]:
    """Searches all that is written in the knowledge base; titles, the best first."""
    index = ctx.kv.get(INDEX_KEY)
    if index is None:
        raise PermanentFailure(_NOT_PUBLISHED)
    entries = [Entry(**fields) for fields in index.value]
    for entry in entries:
        if entry.blob not in _TEXTS:
            _TEXTS[entry.blob] = ctx.blobs.get(entry.blob).decode()
    articles = [(entry, _TEXTS[entry.blob]) for entry in entries]
    return [entry.title for entry in ranked(message, articles, _FOUND)]


# Runners are forked from a process that has imported this module: trained once, shared by all.
router()
