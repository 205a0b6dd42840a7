"""The programs of an experiment's stages, and whether all that they need fits.

What can be known before training is known here, for a run and a dry run alike.
"""

from collections.abc import Iterable, Mapping

import jax

from kdjax.data import device_feed
from kdjax.data.device_feed import DeviceDataset
from kdjax.data.sources import Dataset, Source
from kdjax.data.streaming.dataset import Images, Streamed
from kdjax.experiment.bank_plan import plan
from kdjax.experiment.build import make_feed, make_steps, naming
from kdjax.experiment.config import Experiment
from kdjax.experiment.stage import Stage
from kdjax.experiment.store import Store
from kdjax.runtime import parallel
from kdjax.runtime.errors import UserError
from kdjax.runtime.signals import Interrupt
from kdjax.train import recordings
from kdjax.train.program import Program


class StagePrograms:
    """The programs of an experiment's stages, made when they are first needed.

    Attributes:
        steps: by stage.
        plan: what is read from the bank.
    """

    def __init__(
        self,
        experiment: Experiment,
        images: Images | Source,
        data: DeviceDataset | Streamed | None,
        store: Store | None,
    ):
        """Makes the steps.

        Args:
            experiment: the graph of stages, as it sees the images.
            images: the data set, or what is known of it beforehand.
            data: it on the devices or its shapes; None where it is streamed, and not
                there.
            store: tells which replicas are finished; None: none is.

        Raises:
            UserError: a network that does not fit the images.
        """
        self._experiment, self._data, self._store = experiment, data, store
        streamed = not isinstance(images, Dataset) and (
            isinstance(images, Streamed) or not images.in_memory
        )
        # Every seed has a stream of its own, and the workers of one are all busy.
        self.devices = 1 if streamed else jax.device_count()
        self.steps = make_steps(experiment, images)
        self.plan = plan(experiment, self.steps, images.train_size)
        self._made: dict[tuple[str, int], Program] = {}

    def check(
        self, stages: Mapping[str, Stage], interrupt: Interrupt | None = None
    ) -> None:
        """Makes the programs of what would be trained first, without compiling them.

        What does not fit is an error now, and not after the hours that the stages
        before take.

        Args:
            stages: to which a run is confined.
            interrupt: asked between stages.

        Raises:
            UserError: parts that do not fit, a batch that does not divide over the
                devices, or a finished stage without the recording that is wanted.
            Interrupted: after a signal.
        """
        self._check_recordings(stages)
        for name, stage in stages.items():
            missing = self.missing(name, range(stage.seeds))
            if not missing or stage.given:
                continue
            if interrupt is not None:
                interrupt.raise_if_set()
            width = self.width(len(missing))
            if self._data is not None:
                self.program(stage, width)
                continue
            with naming(stage):
                mesh = parallel.make_mesh(replicas=width)
                recipe = stage.recipe
                parallel.check_batch(mesh, recipe.batch_size, recipe.accumulate)

    def width(self, seeds: int) -> int:
        """Returns how many of so many seeds are trained side by side."""
        return parallel.side_by_side(seeds, self.devices)

    def missing(self, name: str, seeds: Iterable[int]) -> list[int]:
        """Returns the seeds of a stage that are not finished."""
        store = self._store
        return [seed for seed in seeds if not (store and store.result(name, seed))]

    def program(self, stage: Stage, width: int) -> Program:
        """Returns the programs of a stage for so many replicas side by side.

        Raises:
            UserError: parts that do not fit.
        """
        assert self._data is not None
        if (stage.name, width) not in self._made:
            with naming(stage):
                mesh = parallel.make_mesh(replicas=width)
                self._made[stage.name, width] = Program(
                    self.steps[stage.name],
                    make_feed(self._experiment, stage, self._data, mesh),
                    self.plan.banked[stage.name],
                    record=stage.name in self._experiment.recorded,
                )
        return self._made[stage.name, width]

    def _check_recordings(self, stages: Mapping[str, Stage]) -> None:
        """Raises UserError if a finished stage has no recording that is wanted."""
        store = self._store
        if store is None:
            return
        for name, stage in stages.items():
            if not stage.method.replays:
                continue
            for seed in self.missing(name, range(stage.seeds)):
                for teacher in stage.teachers:
                    folder = store.folder(teacher, seed)
                    last = recordings.path(folder, stage.epochs - 1)
                    if store.result(teacher, seed) and not last.exists():
                        raise UserError(
                            f"stage {name!r} cannot replay {teacher!r}: {folder} was "
                            "trained without a recording; use scratch=joint, or "
                            "another workdir"
                        )


def shapes_of(images: Images | Source) -> DeviceDataset | Streamed | None:
    """Returns what programs are made with that are not run; see `StagePrograms`."""
    if isinstance(images, Streamed):
        return images
    if isinstance(images, Source) and not images.in_memory:
        return None
    return device_feed.shapes(images, parallel.make_mesh())
