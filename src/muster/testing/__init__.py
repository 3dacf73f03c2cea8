"""Runs a skill without a cluster, as an agent's runner would.

    from muster.testing import Sandbox, run_skill

    assert run_skill(translate, {"text": "hello"}) == "hallo"

    box = Sandbox(skills={"translate": {"text": "hallo"}}, kv={"model": "small"})
    run_skill(summarise, {"url": "…"}, sandbox=box)
    assert [child.skill for child in box.children] == ["translate"]

The input goes through the skill's JSON schema and type hints, the result through JSON and the
limits of an agent: what fails here with InputRejected or ResultRejected fails there, too.
Exceptions of the skill come out as they are.
"""

from muster.testing.running import ResultRejected, run_skill, run_skill_async
from muster.testing.sandbox import ChildTask, LogEntry, Sandbox

__all__ = ["ChildTask", "LogEntry", "ResultRejected", "Sandbox", "run_skill", "run_skill_async"]
