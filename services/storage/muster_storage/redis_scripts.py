"""The Lua scripts, read once from the package and called by their SHA-1."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import NamedTuple


class Script(NamedTuple):
    sha1: str
    text: str


@cache
def scripts() -> Mapping[str, Script]:
    """Every script by the name of its file, the prelude put before it."""
    folder = files("muster_storage") / "scripts"
    prelude = (folder / "prelude.lua").read_text("utf-8")
    found = {}
    for file in folder.iterdir():
        name = file.name.removesuffix(".lua")
        if name in (file.name, "prelude"):
            continue
        text = prelude + file.read_text("utf-8")
        # Redis names scripts by SHA-1; nothing is secured by it.
        found[name] = Script(hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest(), text)
    return MappingProxyType(found)
