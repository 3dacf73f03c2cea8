"""What the runtime tells the zygote at its start, as JSON in its arguments."""

from __future__ import annotations

import msgspec


class ZygoteSettings(msgspec.Struct, frozen=True):
    """`address_space_bytes` 0 = no limit; `search_path` is added to where modules are found."""

    sources: list[str]
    builtin: bool
    max_result_bytes: int
    max_files: int
    address_space_bytes: int
    search_path: str = ""
