"""Learning while a leader leads: notes become attempts, attempts a model, choices experience.

All of it is beside the work: it begins some seconds after the leader, a training runs in a process
of its own (`trainer`), and when any of it fails the declared estimates serve as before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import structlog

from muster.domain.errors import MusterError
from muster.rpc.channels import full_jitter
from muster.rpc.clock import boot_s, wall_ms
from muster_scheduler import metrics
from muster_scheduler.core.choices import Judged
from muster_scheduler.core.foretelling import features_of_agent, foresees
from muster_scheduler.core.notes import MAX_NOTES, NOTED_PER_S, Note
from muster_scheduler.core.stragglers import Straggler, Stragglers
from muster_scheduler.errors import passes
from muster_scheduler.keeping import Archive
from muster_scheduler.leader import Leader
from muster_scheduler.learning.attempts import MAX_ATTEMPTS_KEPT, Attempt, task_features
from muster_scheduler.learning.evaluation import UNKNOWN_S
from muster_scheduler.learning.model import RuntimeModel
from muster_scheduler.learning.records import Record
from muster_scheduler.placement import strategy as strategies
from muster_scheduler.placement.auto import Auto
from muster_scheduler.placement.classes import TaskBatch
from muster_scheduler.placement.objective import evaluate
from muster_scheduler.trainer import train_elsewhere

_LOG = structlog.get_logger("muster.scheduler")

# A cluster's first seconds belong to its agents and tasks.
_FIRST_PAUSE_S = 10.0
_TURN_S = 1.0
_WRITE_EVERY_S = 5.0
# Notes made into attempts at once: some milliseconds, then others have their turn.
_AT_ONCE = 100
# Attempts that storage was not there to take; a minute's worth.
MAX_UNWRITTEN = 3 * MAX_NOTES


class Learner:
    """One leader's. `every_s` is the least time between two trainings."""

    def __init__(self, leader: Leader, every_s: float) -> None:
        self._leader = leader
        self._state = leader.state
        self._every_s = every_s
        self._archive = Archive(leader.storage, leader.term)
        self._unwritten: list[Record] = []
        self._stragglers = Stragglers()
        self._choices_changed = False

    async def run(self) -> None:
        """Learns until cancelled. What fails for good ends the learning, never the leader."""
        await self._leader.ready.wait()
        self._state.notes.per_s = NOTED_PER_S
        try:
            await asyncio.sleep(min(_FIRST_PAUSE_S, self._every_s))
            await self._load()
            async with asyncio.TaskGroup() as group:
                group.create_task(self._turns(), name="learner's turns")
                group.create_task(self._trainings(), name="trainings")
        except Exception:  # noqa: BLE001  said with its traceback; the cluster goes on
            self._state.notes.per_s = 0
            _LOG.exception(
                "learning has stopped; placement goes on with what is known",
                do="report this with the traceback; the next leader begins anew",
            )

    # ------------------------------------------------------------------- load

    async def _load(self) -> None:
        failures = 0
        while True:
            try:
                model = await self._archive.load_model()
                records = await self._archive.load_attempts(MAX_ATTEMPTS_KEPT)
                choices = await self._archive.load_choices()
                break
            except MusterError as error:
                if failures == 0:
                    _LOG.warning("what was learned cannot be read yet", reason=str(error))
                failures += 1
                await asyncio.sleep(full_jitter(failures, last_s=10.0))
        foresight = self._state.foresight
        lessons = [a for r in records if (a := r.lesson()) is not None]
        await self._correct(foresight.resume(lessons, model))
        if choices:
            why = _auto().bandit.load_json(choices)
            if why is not None:
                _LOG.error(
                    "what `auto` had learned is corrupt",
                    why=why,
                    do="nothing: it begins to learn anew",
                )
        version = 0 if foresight.model is None else foresight.model.version
        metrics.MODEL_VERSION.set(version)
        if records or version:
            _LOG.info("what was learned is loaded", attempts=len(records), model=version)

    # ------------------------------------------------------------------ turns

    async def _turns(self) -> None:
        written_s = boot_s()
        while True:
            await asyncio.sleep(_TURN_S)
            await self._take_notes()
            for late in self._stragglers.look(self._state, self._leader.now()):
                self._tell(late)
            self._judge_choices()
            if foresees(self._state) and len(self._state.queue):
                # Who waits for an agent that is late should be asked again.
                self._state.place_again = True
                self._leader.wake()
            if boot_s() - written_s >= _WRITE_EVERY_S:
                written_s = boot_s()
                await self._write()

    async def _take_notes(self) -> None:
        notes = self._state.notes.take()
        for start in range(0, len(notes), _AT_ONCE):
            records = self._records_of(notes[start : start + _AT_ONCE])
            self._state.foresight.observe([a for r in records if (a := r.lesson()) is not None])
            self._unwritten += records
            metrics.ATTEMPTS_NOTED.inc(len(records))
            await asyncio.sleep(0)
        if len(self._unwritten) > MAX_UNWRITTEN:
            metrics.ATTEMPTS_FORGOTTEN.inc(len(self._unwritten) - MAX_UNWRITTEN)
            del self._unwritten[:-MAX_UNWRITTEN]
        dropped, self._state.notes.dropped = self._state.notes.dropped, 0
        metrics.ATTEMPTS_FORGOTTEN.inc(dropped)

    def _records_of(self, notes: Sequence[Note]) -> list[Record]:
        state = self._state
        about = []
        for note in notes:
            # An input too large to be kept is known by its size; the model is asked the same way.
            task = task_features(note.skill, note.input_json, note.estimate_ms / 1000)
            if not note.input_json:
                task = type(task)(note.skill, note.estimate_ms / 1000, note.input_bytes)
            agent = features_of_agent(state.agents.get(note.agent), note.agent, note.load)
            about.append(Attempt(task, agent, UNKNOWN_S))
        predicted = state.foresight.medians_s(about)
        records = []
        for note, attempt, predicted_s in zip(notes, about, predicted, strict=True):
            started = note.started_at_ms > 0
            run_s = max(0, note.ended_at_ms - note.started_at_ms) / 1000 if started else 0.0
            response_s = max(0, note.since_created_ms) / 1000
            arm, propensity = "", 0.0
            followed = state.choices.of(note.choice)
            if followed is not None:
                arm = followed.choice.arm
                propensity = followed.choice.propensities.get(arm, 0.0)
                state.choices.ended(note.choice, response_s, note.reference_s or run_s)
            records.append(
                Record(
                    note.task_id,
                    note.tenant,
                    note.attempt,
                    note.outcome,
                    note.ended_at_ms,
                    run_s,
                    response_s,
                    attempt.task,
                    attempt.agent,
                    predicted_s,
                    arm,
                    propensity,
                )
            )
        return records

    def _tell(self, late: Straggler) -> None:
        metrics.STRAGGLERS.inc()
        why = (
            f"it has run {late.elapsed_s:.1f} s on agent {late.agent}; "
            f"{late.expected_s:.1f} s were expected, {late.bound_s:.1f} s are the bound"
        )
        self._leader.publisher.straggler(late, why)
        _LOG.warning(
            "straggler",
            task=late.task.id,
            attempt=late.attempt,
            why=why,
            source=late.source,
        )

    # ---------------------------------------------------------------- choices

    def _judge_choices(self) -> None:
        state = self._state
        if not len(state.choices):
            return
        view = state.table.view()
        nothing = TaskBatch.of(state.classes, [])
        score = evaluate(view, nothing, nothing.class_id, state.policy)
        for judged in state.choices.judged(state.policy, score.U, score.B, self._leader.now()):
            self._learn_choice(judged)

    def _learn_choice(self, judged: Judged) -> None:
        choice = judged.choice
        _auto().bandit.learn(choice, -judged.j)
        self._choices_changed = True
        _LOG.info(
            "a choice is judged",
            strategy=choice.arm,
            propensities=choice.propensities,
            context=choice.context,
            guarded=judged.guarded,
            tasks=judged.tasks,
            reward=-judged.j,
        )

    # ------------------------------------------------------------------ write

    async def _write(self) -> None:
        try:
            if self._unwritten:
                count = len(self._unwritten)
                await self._archive.add(self._unwritten[:count])
                del self._unwritten[:count]
            if self._choices_changed:
                self._choices_changed = False
                await self._archive.save_choices(_auto().bandit.to_json())
        except MusterError as error:
            if not passes(error):
                self._unwritten.clear()
                _LOG.error(
                    "attempts are refused by storage and are not kept",
                    reason=str(error),
                    do="report this; what was learned before stays",
                )
                return
            _LOG.warning("attempts cannot be written yet", reason=str(error))

    # --------------------------------------------------------------- training

    async def _trainings(self) -> None:
        foresight = self._state.foresight
        while True:
            await asyncio.sleep(self._every_s)
            if not foresight.training_due():
                continue
            foresight.training_began()
            began_s = boot_s()
            window = foresight.history.window()
            version = 0 if foresight.model is None else foresight.model.version
            try:
                training = await train_elsewhere(window, foresight.model, seed=version)
            except (MusterError, OSError) as error:
                _LOG.error(
                    "a training failed",
                    reason=str(error),
                    do="nothing: the model in use stays and the next training tries again; if all "
                    "fail, look for a full disk or little memory on this machine",
                )
                continue
            said = {"attempts": len(window), "seconds": round(boot_s() - began_s, 1)}
            if training.model is None:
                _LOG.info("no new run-time model", why=training.why, **said)
                continue
            await self._correct(foresight.adopt(training.model))
            metrics.MODEL_VERSION.set(training.model.version)
            evaluation = training.model.evaluation
            _LOG.info(
                "a run-time model is installed",
                version=training.model.version,
                kind=training.model.kind,
                loss=round(evaluation.loss, 4),
                error=round(evaluation.error, 4),
                why=training.why,
                **said,
            )
            await self._save(training.model)

    async def _correct(self, news: Sequence[Attempt]) -> None:
        for start in range(0, len(news), _AT_ONCE):
            self._state.foresight.correct(news[start : start + _AT_ONCE])
            await asyncio.sleep(0)

    async def _save(self, model: RuntimeModel) -> None:
        try:
            if not await self._archive.save_model(model, wall_ms()):
                _LOG.warning("a run-time model is not kept: another leader has written one")
        except MusterError as error:
            _LOG.warning("a run-time model cannot be kept; it serves here", reason=str(error))


def _auto() -> Auto:
    found = strategies.get("auto")
    assert isinstance(found, Auto)
    return found
