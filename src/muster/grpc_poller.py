"""How gRPC waits for its sockets in Muster's processes. Imported before gRPC is, for its effect.

By default gRPC's core reads sockets on threads of its own and hands each message over to the
thread that wakes asyncio. Told otherwise, that thread reads the sockets itself: one hand-over less
for every message (figures: docs/adr/0015). A gRPC that no longer knows the names ignores them.
"""

import os
from typing import Final

VARIABLE: Final = "GRPC_EXPERIMENTS"
OURS: Final = "-event_engine_client,-event_engine_listener"

# Whoever runs Muster may have reasons to choose otherwise.
os.environ.setdefault(VARIABLE, OURS)
