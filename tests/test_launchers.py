"""What launchers' environments say, without the launchers."""

import http.server
import threading

import pytest

from kdjax.runtime import distributed, launchers

SLURM = {"SLURM_STEP_NODELIST": "node[1-2]", "SLURM_LOCALID": "1", "SLURM_NTASKS": "4"}


@pytest.mark.parametrize(
    ("environment", "found"),
    [
        (SLURM, "slurm"),
        (SLURM | {"SLURM_NTASKS": "1"}, None),
        # The batch script itself, outside srun.
        ({"SLURM_NTASKS": "4", "SLURM_JOB_ID": "1"}, None),
        ({"OMPI_MCA_orte_hnp_uri": "u", "OMPI_COMM_WORLD_SIZE": "2"}, "ompi"),
        ({"OMPI_MCA_orte_hnp_uri": "u", "OMPI_COMM_WORLD_SIZE": "1"}, None),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, "gketpu"),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, None),
        ({"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"}, "gketpu"),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, None),
    ],
)
def test_several_processes_are_detected(monkeypatch, environment, found):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert launchers.detect(environment) == found


@pytest.mark.parametrize(
    ("hosts", "slices", "found"),
    [
        ("a,b,c,d", "", "gcetpu"),
        ("a", "", None),
        ("a", "ZONE: 'z'\nMEGASCALE_NUM_SLICES: '2'\n", "gcetpu"),
    ],
)
def test_a_tpu_vm_asks_its_metadata(monkeypatch, hosts, slices, found):
    told = {"worker-network-endpoints": hosts, "tpu-env": slices}

    class Server(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            assert self.headers["Metadata-Flavor"] == "Google"
            self.send_response(200)
            self.end_headers()
            self.wfile.write(told[self.path.rpartition("/")[2]].encode())

        def log_message(self, *args):
            pass

    monkeypatch.setattr("importlib.util.find_spec", lambda name: "libtpu")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever).start()
        where = {"GCE_METADATA_IP": f"127.0.0.1:{server.server_port}"}
        assert launchers.detect(where) == found
        # No chip: JAX has said so, and nobody is asked.
        assert launchers.detect(where | {"TPU_SKIP_MDS_QUERY": "1"}) is None
        server.shutdown()
    assert launchers.detect(where) is None


@pytest.mark.parametrize(
    ("gpus", "tasks", "node", "rank", "devices"),
    [
        ("0,1,2,3", "4(x2)", 0, 1, [1]),
        ("0,1,2,3", "1(x2)", 1, 0, [0, 1, 2, 3]),
        ("0,1,2,3", "4,2", 1, 1, [2, 3]),
        # Every task is shown its own GPU only.
        ("0", "4(x2)", 0, 3, [0]),
        ("", "4(x2)", 0, 3, None),
    ],
)
def test_the_gpus_of_a_node_are_divided(gpus, tasks, node, rank, devices):
    environment = SLURM | {
        "CUDA_VISIBLE_DEVICES": gpus,
        "SLURM_STEP_TASKS_PER_NODE": tasks,
        "SLURM_NODEID": str(node),
        "SLURM_LOCALID": str(rank),
    }
    assert launchers.local_devices(environment) == devices
    given = environment | {"JAX_LOCAL_DEVICE_IDS": "0"}
    assert launchers.local_devices(given) is None


def test_what_is_detected_reaches_jax(monkeypatch):
    calls = []
    monkeypatch.setattr("jax.distributed.initialize", lambda *a, **k: calls.append(k))
    monkeypatch.setattr("kdjax.runtime.distributed._Abort.install", lambda: None)
    environment = SLURM | {
        "CUDA_VISIBLE_DEVICES": "0,1",
        "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    distributed.start(auto=False)
    assert calls == []
    distributed.start(wait=7)
    (call,) = calls
    assert call["cluster_detection_method"] == "slurm"
    assert call["local_device_ids"] == [1]
    assert call["initialization_timeout"] == 7
