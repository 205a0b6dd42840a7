"""Detects the processes that Slurm, Open MPI or a Cloud TPU slice has started."""

import importlib.util
import re
from collections.abc import Mapping

from kdjax.runtime import private_names
from kdjax.runtime.errors import UserError


def check(coordinator: str, num_processes: int, process_id: int) -> None:
    """Raises UserError unless the three values describe a process of a run."""
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UserError(f"coordinator {coordinator!r} is not HOST:PORT")
    if num_processes < 1:
        raise UserError(f"processes={num_processes} must be at least 1")
    if not 0 <= process_id < num_processes:
        raise UserError(
            f"process={process_id} is not one of {num_processes} processes; "
            f"choices: 0 to {num_processes - 1}"
        )


def detect(environment: Mapping[str, str]) -> str | None:
    """Returns the launcher that started several processes; None for a single process.

    Args:
        environment: the environment variables; JAX itself reads further ones. Open MPI
            up to 4 (mpirun) and Slurm (srun, not the batch script around it) set the
            number of tasks that they started; a TPU slice on GKE lists its hosts; on a
            TPU VM of Compute Engine the metadata server does. In Kubernetes without
            TPUs nothing is detected: use flags, as in launch/kubernetes.yaml.

    Returns:
        JAX's name of the launcher: 'ompi', 'slurm', 'gketpu' or 'gcetpu'.
    """
    if "OMPI_MCA_orte_hnp_uri" in environment:
        return "ompi" if int(environment.get("OMPI_COMM_WORLD_SIZE", 1)) > 1 else None
    if "SLURM_STEP_NODELIST" in environment:
        return "slurm" if int(environment.get("SLURM_NTASKS", 1)) > 1 else None
    slices = int(environment.get("MEGASCALE_NUM_SLICES") or 1)
    hosts = environment.get(
        "TPU_PROCESS_ADDRESSES", environment.get("TPU_WORKER_HOSTNAMES")
    )
    if hosts is not None:
        return "gketpu" if slices * len(hosts.split(",")) > 1 else None
    no_tpu = private_names.jax_met_no_tpu(environment)
    if no_tpu or not importlib.util.find_spec("libtpu"):
        return None
    server = environment.get("GCE_METADATA_IP", "metadata.google.internal")
    hosts = _metadata(server, "worker-network-endpoints")
    tpu = _metadata(server, "tpu-env")
    if of_several := re.search(r"MEGASCALE_NUM_SLICES: *'?(\d+)", tpu):
        slices = int(of_several[1])
    return "gcetpu" if slices * len(hosts.split(",")) > 1 else None


def local_devices(environment: Mapping[str, str]) -> list[int] | None:
    """Returns this task's share of the GPUs that are visible to it on its node.

    JAX alone would give task i of a node its i-th GPU, which is wrong for one task with
    all GPUs of a node, and if only its own GPU is visible to every task.
    """
    visible = environment.get("CUDA_VISIBLE_DEVICES", "").split(",")
    if "SLURM_STEP_NODELIST" in environment:
        node = int(environment.get("SLURM_NODEID", 0))
        each = environment.get("SLURM_STEP_TASKS_PER_NODE", "1")
        counts: list[int] = []
        # As in '4(x2),3': two nodes of four tasks and one of three.
        for tasks, _, times in re.findall(r"(\d+)(\(x(\d+)\))?", each):
            counts += [int(tasks)] * int(times or 1)
        tasks, rank = counts[node], int(environment["SLURM_LOCALID"])
    else:
        tasks = int(environment.get("OMPI_COMM_WORLD_LOCAL_SIZE", 1))
        rank = int(environment.get("OMPI_COMM_WORLD_LOCAL_RANK", 0))
    if visible == [""] or "JAX_LOCAL_DEVICE_IDS" in environment:
        return None
    # Fewer GPUs than tasks: only its own are visible to each task.
    if len(visible) < tasks:
        return list(range(len(visible)))
    share = len(visible) // tasks
    return list(range(rank * share, (rank + 1) * share))


def _metadata(server: str, key: str) -> str:
    """Returns an attribute of this machine, or an empty text if it has none."""
    # Imported here, so that commands start without it.
    import urllib.error
    import urllib.request

    url = f"http://{server}/computeMetadata/v1/instance/attributes/{key}"
    request = urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.read().decode()
    except (urllib.error.URLError, TimeoutError):
        return ""
