"""Stands in for the five services: answers /readyz and a list of agents, obeys orders.

`MUSTER_FAKE_<NAME>`: `exit:<code>:<last words>` ends it at once, `unready:<why>` never is ready,
`await:<path>` listens once that file is there.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path


def main(name: str) -> None:
    order = os.environ.get(f"MUSTER_FAKE_{name.upper()}", "")
    if order.startswith("exit:"):
        _, code, words = order.split(":", 2)
        print(words, file=sys.stderr)
        raise SystemExit(int(code))
    if order.startswith("await:"):
        while not Path(order.removeprefix("await:")).exists():
            time.sleep(0.01)
    why = order.removeprefix("unready:") if order.startswith("unready:") else ""

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            items: dict[str, object] = {"items": [], "next": None}
            if self.path == "/readyz":
                self.send_response(503 if why else 200)
                body = why.encode()
            else:
                self.send_response(200)
                body = json.dumps(items).encode()
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            return

    key = "MUSTER_HTTP_LISTEN" if name == "gateway" else "MUSTER_METRICS_LISTEN"
    host, port = os.environ[key].split(":")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    HTTPServer((host, int(port)), Answers).serve_forever()
