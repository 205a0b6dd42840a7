"""The tables and figures of the DGKD paper as graphs that share their stages.

Son et al., *Densely Guided Knowledge Distillation using Multiple Teacher Assistants*.

    python -m kdjax.main --config configs/dgkd_tables.py:table1 --workdir runs/dgkd

A stage's name is how it was taught and the path of networks to it: T10 and S2 learned
from labels alone, kd-10-8 from T10, dgkd-10-8-6 from T10 and kd-10-8, takd-10-8-6 from
kd-10-8 alone. The paper's accuracies (%) of the last network of each path:

    table1          plain CNNs, CIFAR-100: T10 56.15  S2 41.06
                    dgkd: 10-8 56.72  10-8-6 60.15  10-8-6-4 57.63  10-8-6-4-2 48.92
                    takd:      56.75         57.53           52.87             45.14
    table2          ResNet, CIFAR-10: T26 92.44  S8 86.56
                    dgkd: 26-20 92.57  26-20-14 92.15  26-20-14-8 89.02
                    takd:         -             91.23             88.01
    table3          ImageNet, top-1 / top-5: T34 73.3 / 91.42  S18 69.75 / 89.07
                    cc 69.96 / 89.17  sp 70.62 / 89.8  one 70.55 / 89.59
                    kd 70.66 / 89.88  at 70.7 / 90  crd 71.38 / 90.49
                    sskd 71.62 / 90.67  takd 71.37 / 90.27  dgkd 71.73 / 90.82
    table4          kd 42.56  takd 45.14  four T10s 42.57  T10, T8, T6, T4 43.25
                    dgkd 48.92
    table5          paths 10-6-2, 10-8-6-4-2 and 10-9-8-7-6-5-4-3-2
                    takd 44.57 45.14 44.07  dgkd 45.85 48.92 49.56
    table6-plain    takd 45.14  dgkd 48.92  stochastic 50.15
    table6-resnet   takd 88.01  dgkd 89.02  stochastic 89.66
    table7          ResNet26 -> ResNet8 and ResNet14, CIFAR-10: S8 86.02, S14 89.11
                    kd 86.66 89.75  fitnet 86.73 89.82  at 86.86 89.84
                    fsp 87.07 89.92  bss 87.32 90.34  dml 87.71 90.54
                    takd 88.01 91.23  'Ours', which is stochastic, 89.66 92.34
    table8          WRN, ResNet and VGG, CIFAR-100: `configs/cifar100_benchmark.py`
                    has the figures; here with this paper's recipe
    figure6         the eight paths through subsets of A8, A6 and A4, takd and dgkd
    figure7         survival 1, 0.75, 0.5 and 0.25: a plot; best at 0.75
    methods         plain CNNs: supervised, kd, takd, dgkd and stochastic
    digits          the same with ResNet 26-20-14-8 on digits; not the paper's

Arguments as in `configs/dgkd.py`, without path, method and survival; `ensemble=sum`
adds the ensembles' KL terms instead of averaging their probabilities. Methods of other
papers have the weights of `configs/kd.py`; Table 7's Mutual is taken as learning beside
the teacher's network, Table 3's Online KD as ONE.

Hardware: a GPU or TPU, but for digits.
"""

import dataclasses
import itertools

from ml_collections import ConfigDict

from configs import dgkd, kd
from kdjax.experiment import builders, chains
from kdjax.experiment.builders import StageConfig


def _plain(sizes: str) -> str:
    """Returns a path of plain CNNs."""
    return "/".join(f"plain-{size}" for size in sizes.split("/"))


_PLAIN = _plain("10/8/6/4/2")
_COMPARED = ("supervised", "kd", "takd", "dgkd", "dgkd_stochastic")
_SUBSETS = tuple(
    _plain("/".join(("10", *(s for s in ("8", "6", "4") if s in subset), "2")))
    for count in range(4)
    for subset in itertools.combinations(("8", "6", "4"), count)
)
_LONGEST = _plain("10/9/8/7/6/5/4/3/2")
_TABLE8 = tuple(
    dgkd.SETTINGS[f"cifar100-{name}"][0] for name in ("wrn", "resnet", "vgg")
)


@dataclasses.dataclass(frozen=True)
class Table:
    """What one table or figure compares.

    Attributes:
        variant: of `dgkd.SETTINGS`.
        methods: on every path.
        paths: from teacher to student; empty means the variant's own path.
        others: methods of other papers, by which the teacher teaches the student.
        survivals: of stochastic guidance.
        ensembles: whether the two ensembles of Table 4 teach the student too.
    """

    variant: str
    methods: tuple[str, ...]
    paths: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    survivals: tuple[float, ...] = (0.75,)
    ensembles: bool = False


TABLES = {
    "table1": Table("cifar100-plain", ("supervised", "takd", "dgkd")),
    "table2": Table("cifar10-resnet", ("supervised", "takd", "dgkd")),
    "table3": Table(
        "imagenet",
        ("supervised", "kd", "takd", "dgkd"),
        others=("cc", "sp", "one", "at", "crd", "sskd"),
    ),
    "table4": Table(
        "cifar100-plain", ("supervised", "kd", "takd", "dgkd"), ensembles=True
    ),
    "table5": Table(
        "cifar100-plain",
        ("supervised", "takd", "dgkd"),
        (_plain("10/6/2"), _PLAIN, _LONGEST),
    ),
    "table6-plain": Table("cifar100-plain", ("takd", "dgkd", "dgkd_stochastic")),
    "table6-resnet": Table("cifar10-resnet", ("takd", "dgkd", "dgkd_stochastic")),
    "table7": Table(
        "cifar10-resnet",
        ("supervised", "kd", "takd", "dgkd_stochastic"),
        ("resnet-26/resnet-20/resnet-14/resnet-8", "resnet-26/resnet-20/resnet-14"),
        others=("fitnet", "at", "fsp", "bss", "dml"),
    ),
    "table8": Table(
        "cifar100-wrn",
        ("supervised", "kd", "takd", "dgkd_stochastic"),
        _TABLE8,
        others=("fitnet", "at", "sp", "vid", "rkd", "pkt", "ab", "ft", "crd", "sskd"),
    ),
    "figure6": Table("cifar100-plain", ("takd", "dgkd"), _SUBSETS),
    "figure7": Table(
        "cifar100-plain", ("dgkd", "dgkd_stochastic"), survivals=(0.75, 0.5, 0.25)
    ),
    "methods": Table("cifar100-plain", _COMPARED),
    "digits": Table("digits", _COMPARED),
}

ARGUMENTS = {
    key: kind
    for key, kind in dgkd.ARGUMENTS.items()
    if key not in ("path", "method", "survival")
} | {"ensemble": str}


def _name(method: str, path: tuple[str, ...], student: str) -> str:
    if len(path) == 1:
        return f"{'S' if path[0] == student else 'T'}{chains.size(path[0])}"
    return "-".join(("kd" if len(path) == 2 else method, *map(chains.size, path)))


def _ensembles(
    teacher: str, student: str, teaching: chains.Teaching, form: str
) -> dict[str, StageConfig]:
    """Returns the students of Table 4's two ensembles, and the ensembles."""
    options = {
        "alpha": teaching.alpha,
        "temperature": teaching.temperature,
        "form": form,
    }
    large = chains.size(teacher)
    equal = {f"T{large}": builders.stage(teacher)}
    for index in (1, 2, 3):  # of different seeds
        equal[f"T{large}-copy{index}"] = builders.stage(teacher) | {"copy": index}
    falling = {
        f"T{chains.size(model)}": builders.stage(model)
        for model in (teacher, "plain-8", "plain-6", "plain-4")
    }
    taught = {
        f"ensemble-{name}": builders.stage(
            student, "ensemble", tuple(teachers), ensemble=options
        )
        for name, teachers in (("equal", equal), ("falling", falling))
    }
    return {**equal, **falling, **taught}


def get_config(arg: str = "") -> ConfigDict:
    """Returns the config of a table or figure, changed by the arguments."""
    chosen, values = builders.parse_arg(arg, tuple(TABLES), ARGUMENTS)
    table, teaching = TABLES[chosen], dgkd.teaching(values)
    stages: dict[str, StageConfig] = {}
    own = dgkd.SETTINGS[table.variant][0]
    setting = dgkd.setting(table.variant, values)
    epochs = values.get("epochs", setting.recipe.epochs)
    steps = builders.steps_per_epoch(setting, values)
    for path in table.paths or (own,):
        models = chains.networks(path)
        teacher, student = models[0], models[-1]
        for method in table.methods:
            stochastic = method == "dgkd_stochastic"
            for survival in table.survivals if stochastic else (1.0,):

                def name(
                    prefix: tuple[str, ...],
                    last: bool,
                    method: str = method,
                    survival: float = survival,
                    student: str = student,
                ) -> str:
                    taught = method
                    if method == "dgkd_stochastic":
                        # In per cent: a config's key has no dot.
                        taught = f"stochastic{100 * survival:g}" if last else "dgkd"
                    return _name(taught, prefix, student)

                stages |= chains.chain(models, method, teaching, survival, name)
        frozen = {_name("", models[:1], student): teacher}
        for method in table.others:
            taught = "-".join((method, chains.size(teacher), chains.size(student)))
            stages[taught] = kd.stage(method, frozen, student, epochs, steps)
    if table.ensembles:
        form = values.get("ensemble", "mean")
        stages |= _ensembles(teacher, student, teaching, form)
    if "chain_seeds" in values:
        for stage in stages.values():
            if stage["model"] != student:
                stage["seeds"] = values["chain_seeds"]
    return builders.experiment(setting, values, stages)
