"""Imports the modules that an agent was given, and collects their skills."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from muster.agent.builtin import COMMAND_SKILL, builtin_skills
from muster.agent.schema import BoundSkill
from muster.domain.agent import MAX_SKILLS
from muster.domain.errors import SkillImportError
from muster.skill import SKILL_ATTRIBUTE, Skill


def load_skills(sources: Sequence[str], *, builtin: bool) -> dict[str, BoundSkill]:
    """The skills of all modules, by name.

    A source is a module's dotted name or the path of a file that ends in .py. Raises
    SkillImportError with one sentence that names the source.
    """
    found: dict[str, Skill] = {}
    if builtin:
        for function in builtin_skills(os.environ):
            mark: Skill = getattr(function, SKILL_ATTRIBUTE)
            found[mark.name] = mark
        found[COMMAND_SKILL.name] = COMMAND_SKILL
    for source in sources:
        module = _import(source)
        own = [m for v in vars(module).values() if isinstance(m := _mark_of(v), Skill)]
        if not own:
            raise SkillImportError(f"skills {source!r}: the module holds no @skill function")
        for candidate in own:
            present = found.setdefault(candidate.name, candidate)
            if present.function is not candidate.function:
                raise SkillImportError(
                    f"skills {source!r}: there is another skill called {candidate.name!r}"
                )
    if len(found) > MAX_SKILLS:
        raise SkillImportError(f"skills: {len(found)} skills, at most {MAX_SKILLS} are accepted")
    return {name: BoundSkill(skill) for name, skill in found.items()}


def _mark_of(value: object) -> object:
    # Through the class's __dict__ chain only: a mock or proxy would answer to any attribute.
    return getattr(value, "__dict__", {}).get(SKILL_ATTRIBUTE) if callable(value) else None


def _import(source: str) -> ModuleType:
    try:
        if source.endswith(".py") or os.sep in source:
            return _import_file(Path(source))
        return importlib.import_module(source)
    except SkillImportError:
        raise
    except BaseException as error:
        # Whatever the module does at import, SystemExit included, it becomes one sentence.
        if isinstance(error, KeyboardInterrupt):
            raise
        where = _last_place(error)
        raise SkillImportError(
            f"skills {source!r}: the module does not import: {type(error).__name__}: {error}{where}"
        ) from error


def _import_file(path: Path) -> ModuleType:
    path = path.resolve()
    if not path.is_file():
        raise SkillImportError(f"skills {str(path)!r}: there is no such file")
    name = path.stem
    if not name.isidentifier():
        raise SkillImportError(f"skills {str(path)!r}: {name!r} cannot be a module's name")
    if name in sys.modules:
        raise SkillImportError(f"skills {str(path)!r}: a module called {name!r} exists already")
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _last_place(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if not f.filename.startswith("<frozen") and f.filename != __file__]
    return f" ({own[-1].filename}:{own[-1].lineno})" if own else ""
