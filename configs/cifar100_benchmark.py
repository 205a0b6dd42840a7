"""The public CIFAR-100 benchmark as one graph that trains every teacher once.

The pairs are those of CRD's tables (Tian et al., *Contrastive Representation
Distillation*, 2020), which include those of the DGKD paper's Table 8; recipe and
weights are those of `configs/kd.py`.

    python -m kdjax.main --config configs/cifar100_benchmark.py:same --workdir runs/c100
    python -m kdjax.main --config configs/cifar100_benchmark.py:cross,methods=kd/at/crd

    table8   WRN-40-2 -> WRN-16-2, ResNet56 -> ResNet20, VGG13 -> VGG8, taught by the
             methods of Table 8, TAKD and stochastic DGKD on the paper's paths too
    same     table8's and WRN-40-2 -> WRN-40-1, ResNet110 -> ResNet20 and ResNet32,
             ResNet32x4 -> ResNet8x4
    cross    VGG13 and ResNet50 -> MobileNetV2, ResNet50 -> VGG8, ResNet32x4 ->
             ShuffleNetV1 and ShuffleNetV2, WRN-40-2 -> ShuffleNetV1
    all      same and cross

A network from labels alone is a stage of its model's name; a student's is
METHOD-TEACHER-STUDENT. `methods=A/B` chooses methods, `--stages` stages. The DGKD
paper's accuracies (%) in Table 8, of WRN-16-2, ResNet20 and VGG8; for most of them it
quotes the benchmark:

    teacher  76.46  73.44  75.38        pkt      76.01  71.44  73.37
    student  73.64  69.63  70.68        ab       68.89  71.49  74.27
    kd       74.92  70.66  72.98        ft       75.15  71.52  73.42
    fitnet   75.75  71.60  73.54        crd      76.04  71.68  74.06
    at       75.28  71.78  73.62        sskd     76.04  71.49  75.33
    sp       75.34  71.48  73.44        takd     75.04  70.77  73.67
    vid      74.79  71.71  73.96        dgkd     76.24  71.92  74.40
    rkd      75.40  71.48  73.72

Hardware: a GPU or TPU. Arguments shrink it as in `configs/kd.py`.
"""

from ml_collections import ConfigDict

from configs import dgkd, kd
from kdjax.experiment import builders, chains
from kdjax.experiment.builders import StageConfig
from kdjax.methods import METHODS
from kdjax.runtime.errors import unknown

TABLE8 = (
    *("kd", "fitnet", "at", "sp", "vid", "rkd", "pkt"),
    *("ab", "ft", "crd", "sskd", "takd", "dgkd_stochastic"),
)
"""The methods of the DGKD paper's Table 8."""
_FURTHER = ("cc", "nst", "crd+kd", "dkd", "dist", "reviewkd", "ofd", "simkd")
_CHAINS = ("takd", "dgkd", "dgkd_stochastic")
_PATHS = {
    ("wrn-40-2", "wrn-16-2"): "cifar100-wrn",
    ("resnet-56", "resnet-20"): "cifar100-resnet",
    ("vgg-13", "vgg-8"): "cifar100-vgg",
}
"""The DGKD paper's paths, as variants of `configs/dgkd.py`."""
_SAME = (
    *_PATHS,
    ("wrn-40-2", "wrn-40-1"),
    ("resnet-110", "resnet-20"),
    ("resnet-110", "resnet-32"),
    ("resnet-32x4", "resnet-8x4"),
)
_CROSS = (
    ("vgg-13", "mobilenetv2-0.5"),
    ("bottleneck_resnet-50", "mobilenetv2-0.5"),
    ("bottleneck_resnet-50", "vgg-8"),
    ("resnet-32x4", "shufflenetv1"),
    ("resnet-32x4", "shufflenetv2"),
    ("wrn-40-2", "shufflenetv1"),
)
PAIRS = {
    "table8": tuple(_PATHS),
    "same": _SAME,
    "cross": _CROSS,
    "all": (*_SAME, *_CROSS),
}
"""Teacher and student by variant."""

ARGUMENTS = {**builders.SHRINK, "methods": str}


def _name(*words: str) -> str:
    # A config's key has no dot, and a stage's name omits the initialisation.
    return "-".join(words).replace("-fan_out", "").replace(".", "_")


def _chain(pair: tuple[str, str], method: str) -> dict[str, StageConfig]:
    """Returns a chain's stages without the teacher; equal assistants are shared."""
    path = chains.networks(dgkd.SETTINGS[_PATHS[pair]][0])
    models = tuple(kd.network(model) for model in path)
    teacher = models[0]

    def name(path: tuple[str, ...], last: bool) -> str:
        if len(path) == 1:
            return _name(teacher)
        taught = method if last or method != "dgkd_stochastic" else "dgkd"
        return _name(taught, *path) if len(path) > 2 else _name("dgkd-kd", *path)

    return chains.chain(models, method, dgkd.teaching({}), 0.75, name)


def get_config(arg: str = "") -> ConfigDict:
    """Returns the config of some pairs and methods, changed by the arguments."""
    variant, values = builders.parse_arg(arg, tuple(PAIRS), ARGUMENTS)
    known = (*METHODS, *_CHAINS)
    methods = TABLE8 if variant == "table8" else (*TABLE8, *_FURTHER)
    if "methods" in values:
        methods = tuple(values["methods"].split("/"))
    setting = kd.setting("cifar100")
    epochs = values.get("epochs", setting.recipe.epochs)
    steps = builders.steps_per_epoch(setting, values)
    stages: dict[str, StageConfig] = {}
    for pair in PAIRS[variant]:
        teacher, student = map(kd.network, pair)
        frozen = {_name(teacher): teacher}
        stages |= {_name(teacher): builders.stage(teacher)}
        stages |= {_name(student): kd.stage("supervised", {}, student, epochs, steps)}
        for method in methods:
            if method not in known and "+" not in method:
                raise unknown("method", method, known)
            if method not in _CHAINS:
                made = kd.stage(method, frozen, student, epochs, steps)
                stages[_name(method, teacher, student)] = made
            elif pair in _PATHS:
                stages |= _chain(pair, method)
    return builders.experiment(setting, values, stages)
