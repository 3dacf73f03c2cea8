"""A picture of a replay: how responses are spread, and how long the queue was."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from muster.domain.errors import InvalidInput, MissingDependency
from muster_scheduler.replay.simulator import Run
from muster_scheduler.replay.trace import Trace

FORMATS = (".png", ".svg", ".pdf")


def check_plot(path: Path) -> None:
    """Before the work: raises InvalidInput for a name that says no format, MissingDependency."""
    if path.suffix.lower() not in FORMATS:
        raise InvalidInput("--plot", str(path), "must end in " + ", ".join(FORMATS))
    try:
        import matplotlib  # noqa: F401, PLC0415
    except ImportError:
        advice = "pip install 'muster-cluster[plot]' brings it"
        raise MissingDependency("matplotlib", advice) from None


def save_plot(trace: Trace, runs: Sequence[Run], path: Path) -> None:
    """Raises InvalidInput where the file cannot be written."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    shares, queue = figure.subplots(1, 2)
    arrival = np.array([task.arrival_s for task in trace.tasks])
    for run in runs:
        response = np.sort((run.end_s - arrival)[~np.isnan(run.end_s)])
        if response.size:
            share = np.arange(1, response.size + 1) / response.size
            shares.step(response, share, where="post", label=run.strategy)
        queue.plot(run.look_s, run.waiting, label=run.strategy)
    shares.set(xscale="log", xlabel="response, s", ylabel="share of tasks", title="Response")
    queue.set(xlabel="time, s", ylabel="tasks", title="Waiting", ylim=(0, None))
    for axes in (shares, queue):
        axes.grid(visible=True, alpha=0.3)
        axes.legend()
    try:
        figure.savefig(path)
    except OSError as error:
        raise InvalidInput("--plot", str(path), f"cannot be written: {error.strerror}") from None
