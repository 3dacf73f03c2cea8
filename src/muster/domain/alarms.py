"""Names of the alarms that a leader raises about the cluster as a whole."""

from __future__ import annotations

from typing import Final

STORE_ROLLED_BACK: Final = "store_rolled_back"
STORE_LOST_WRITES: Final = "store_lost_writes"
ETCD_REFUSES: Final = "etcd_refuses_writes"
MASS_FAILURE: Final = "mass_failure"
ALARMS: Final = (STORE_ROLLED_BACK, STORE_LOST_WRITES, ETCD_REFUSES, MASS_FAILURE)
