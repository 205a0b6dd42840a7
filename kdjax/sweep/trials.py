"""The trials of a sweep: an Optuna study in an SQLite file, which can be stopped.

A trial that was interrupted, for whatever reason, is still marked as running in the
file: it continues with the same parameters, and its stages from their checkpoints. Only
`kdjax.sweep` imports this module, and late, because Optuna is an extra.
"""

import contextlib
import fcntl
import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState
from rich.table import Table
from sqlalchemy.exc import DBAPIError

from kdjax.experiment.run import Observer
from kdjax.experiment.stage import Stage
from kdjax.runtime.console import console
from kdjax.runtime.errors import NotFiniteError, UserError
from kdjax.train.metrics import Record

PRUNED = (optuna.TrialPruned, NotFiniteError)
"""Errors that end a trial but not the sweep."""

_SCORE = "test/accuracy/student"  # of the images held out
_IDENTITY, _REASON = "identity", "reason"
_FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)


@contextlib.contextmanager
def opened(
    path: Path, identity: Mapping[str, Any], warmup: int
) -> Iterator[tuple[optuna.Study, optuna.storages.RDBStorage]]:
    """Locks a study for this process, and yields it with its storage.

    Args:
        path: the file's; it is made if it does not exist.
        identity: settings that may not change once a trial is finished.
        warmup: the first epoch after which a trial may be pruned.

    Raises:
        UserError: it belongs to another sweep, is in use by another process, or is
            damaged.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with open(path.with_suffix(".lock"), "w") as lock, contextlib.ExitStack() as stack:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"{path} is in use by another process") from error
        try:
            storage = optuna.storages.RDBStorage(f"sqlite:///{path}")
            stack.callback(storage.engine.dispose)
            stack.callback(storage.remove_session)
            create = functools.partial(
                optuna.create_study,
                storage=storage,
                study_name=path.stem,
                direction="maximize",
                load_if_exists=True,
                pruner=optuna.pruners.MedianPruner(n_warmup_steps=warmup),
            )
            study = create()
            if study.user_attrs.get(_IDENTITY) != identity and not finished(study):
                # A new study, or one of another command that finished no trial.
                optuna.delete_study(study_name=path.stem, storage=storage)
                study = create()
                study.set_user_attr(_IDENTITY, dict(identity))
            for key, value in study.user_attrs[_IDENTITY].items():
                if value != identity[key]:
                    raise UserError(
                        f"{path} is a sweep with {key} {value!r}, not "
                        f"{identity[key]!r}; choose another --workdir"
                    )
            yield study, storage
        except DBAPIError as error:
            raise UserError(f"{path} cannot be used: {error.orig}") from error


def finished(study: optuna.Study) -> list[FrozenTrial]:
    """Returns the trials that are complete or pruned."""
    return study.get_trials(deepcopy=False, states=_FINISHED)


def next_trial(
    study: optuna.Study,
    storage: optuna.storages.RDBStorage,
    ranges: Mapping[str, tuple[float, float]],
    seed: int,
) -> optuna.Trial:
    """Returns a new trial with its parameters, or the one that was stopped.

    Args:
        study: of the trials.
        storage: of the study.
        ranges: least and greatest value by parameter.
        seed: of the search.
    """
    # Seeded by the number of finished trials, so that a stopped study continues with
    # the samples that it would have had without the stop.
    seeds = np.random.SeedSequence([seed, len(finished(study))])
    study.sampler = optuna.samplers.TPESampler(seed=int(seeds.generate_state(1)[0]))
    stopped = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    # Not enqueued as a new trial, which would lose the epochs reported so far.
    trial = _continued(study, storage, stopped[0]) if stopped else study.ask()
    for name, (low, high) in ranges.items():
        trial.suggest_float(name, low, high)
    return trial


def _continued(
    study: optuna.Study, storage: optuna.storages.RDBStorage, stopped: FrozenTrial
) -> optuna.Trial:
    """Returns a trial that is marked as running in a form that takes reports."""
    study_id = storage.get_study_id_from_name(study.study_name)
    number = stopped.number
    trial_id = storage.get_trial_id_from_study_id_trial_number(study_id, number)
    return optuna.Trial(study, trial_id)


def observer(trial: optuna.Trial, student: Stage) -> Observer:
    """Returns a function that reports the student's accuracy or prunes the trial.

    Of several seeds the first is reported.
    """
    reported = set(trial.study.get_trials()[trial.number].intermediate_values)

    def observe(stage: str, seed: int, record: Record) -> None:
        if stage != student.name or seed or _SCORE not in record:
            return
        epoch = int(record["epoch"])
        # A resumed stage repeats the epochs since its last checkpoint.
        if epoch not in reported:
            trial.report(record[_SCORE], epoch)
        # After the last epoch pruning saves no time.
        if epoch < student.epochs and trial.should_prune():
            raise optuna.TrialPruned(f"pruned after epoch {epoch}")

    return observe


def tell(trial: optuna.Trial, outcome: float | BaseException) -> None:
    """Ends a trial with its accuracy or the reason for pruning it; prints a line."""
    if isinstance(outcome, BaseException):
        trial.set_user_attr(_REASON, str(outcome))
        trial.study.tell(trial, state=TrialState.PRUNED)
    else:
        trial.study.tell(trial, outcome)
    ended = trial.study.get_trials()[trial.number]
    params = " ".join(f"{name}={value:.3g}" for name, value in ended.params.items())
    line = f"trial {trial.number}  {params}  {_outcome(ended)}"
    console.print(line, markup=False)


def _outcome(trial: FrozenTrial) -> str:
    if trial.state == TrialState.PRUNED:
        return trial.user_attrs[_REASON]
    return f"{100 * trial.values[0]:.2f} %"


def show(study: optuna.Study, validation: int) -> dict[str, float]:
    """Prints all trials and returns the parameters of the best one.

    Args:
        study: of the trials.
        validation: the number of images they were judged on.

    Raises:
        UserError: all are pruned.
    """
    trials = finished(study)
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    if not complete:
        raise UserError(f"no trial reached the end: {_outcome(trials[-1])}")
    best = max(complete, key=lambda trial: trial.values[0])
    table = Table(title=f"Accuracy on {validation} images held out of training")
    table.add_column("trial", justify="right")
    for name in best.params:
        table.add_column(name, justify="right")
    table.add_column("accuracy")
    for trial in trials:
        cells = [f"{trial.params[name]:.3g}" for name in best.params]
        mark = " (best)" if trial is best else ""
        table.add_row(str(trial.number), *cells, _outcome(trial) + mark)
    console.print(table)
    return best.params
