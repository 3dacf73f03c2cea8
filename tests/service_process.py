"""A Muster service as a process of its own, to be killed, paused and started again."""

from __future__ import annotations

import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from tests.real_servers import RealServer, free_port

# Long enough for the checks of channels and servers, known to every test.
SECRET = "a-secret-for-tests-only"


class ServiceProcess(RealServer):
    """`python -m muster_<name>` with this environment; counts as started when it listens."""

    def __init__(self, name: str, folder: Path, env: Mapping[str, str]) -> None:
        self.name = name
        super().__init__(folder)
        self._env = dict(env)
        self._metrics_port = 0

    def get(self, path: str) -> tuple[int, str]:
        """Status and body of /metrics, /healthz or /readyz; 0 when it does not answer."""
        url = f"http://127.0.0.1:{self._metrics_port}{path}"
        try:
            with urllib.request.urlopen(url, timeout=20) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def restart_orderly(self) -> None:
        """SIGTERM, then start on the same ports."""
        self.stop()
        self.start()

    def _choose_ports(self) -> None:
        self.port, self._metrics_port = free_port(), free_port()

    def _command(self) -> list[str]:
        env = {
            "MUSTER_JOIN_SECRET": SECRET,
            "MUSTER_STATE_DIR": str(self.folder),
            **self._env,
            "MUSTER_LISTEN": self.endpoint,
            "MUSTER_METRICS_LISTEN": f"127.0.0.1:{self._metrics_port}",
        }
        settings = [f"{key}={value}" for key, value in env.items()]
        return ["/usr/bin/env", *settings, sys.executable, "-m", f"muster_{self.name}"]

    def _answers(self) -> bool:
        return self.get("/healthz")[0] == 200
