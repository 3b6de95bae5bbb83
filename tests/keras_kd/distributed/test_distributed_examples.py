"""The scripts of examples/distributed, on one machine."""

import os
import pathlib
import re
import subprocess
import sys

import keras
import numpy as np
import pytest
from test_multi_worker import free_ports

yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
EXAMPLES = pathlib.Path(__file__).resolve().parents[3] / "examples" / "distributed"


def flags_of(script):
    return set(re.findall(r'flags\.DEFINE_\w+\(\s*"(\w+)"', (EXAMPLES / script).read_text()))


@pytest.mark.parametrize("name", ["README.md", "kuberay.yaml", "slurm_label.sh", "slurm_train.sh"])
def test_the_commands_use_flags_that_there_are(name):
    text = re.sub(r"\\\n\s*", "", (EXAMPLES / name).read_text())
    text = re.sub(
        r">-\n(.*?)\n  (?=\w)", lambda part: " ".join(part.group(1).split()) + "\n", text, flags=re.DOTALL
    )
    calls = re.findall(r"python \S*?(label\.py|train\.py)([^\n]*)", text)
    assert calls
    for script, arguments in calls:
        used = set(re.findall(r"--(\w+)", arguments))
        assert used and used <= flags_of(script), (script, used - flags_of(script))


def test_the_job_of_the_operator_is_whole():
    """A RayJob of KubeRay, as far as it can be seen without a cluster."""
    job = yaml.safe_load((EXAMPLES / "kuberay.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    cluster = job["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        # The operator takes these as flags of `ray start`, and refuses numbers and truth values.
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        pod = group["template"]["spec"]
        names = {volume["name"] for volume in pod["volumes"]}
        for container in pod["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} <= names
    assert not {name for group in cluster["workerGroupSpecs"] for name in group} - {
        "groupName",
        "replicas",
        "minReplicas",
        "maxReplicas",
        "rayStartParams",
        "template",
    }


# Stand-ins for two of SLURM's commands: a job of one node, whose tasks run on this machine.
SCONTROL = '#!/usr/bin/env bash\nset -eu\n[ "$1 $2" = "show hostnames" ]\necho "$3"\n'
SRUN = """#!/usr/bin/env bash
set -eu
while [[ "$1" == --* ]]; do shift; done
pids=()
for task in $(seq 0 $((SLURM_NTASKS - 1))); do SLURM_PROCID=$task "$@" & pids+=($!); done
for pid in "${pids[@]}"; do wait "$pid"; done
"""


@pytest.mark.slow
def test_the_training_script_of_slurm_starts_every_worker(tmp_path):
    make_inputs(tmp_path)
    command = [sys.executable, EXAMPLES / "label.py", f"--teacher={tmp_path / 'teacher.keras'}", "--views=2"]
    files = [f"--data={tmp_path / 'train.npz'}", f"--cache={tmp_path / 'cache'}"]
    subprocess.run([*command, *files], check=True, capture_output=True, timeout=200)
    for name, text in (("scontrol", SCONTROL), ("srun", SRUN)):
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    job = {"JOB_ID": "4711", "JOB_NODELIST": "127.0.0.1", "NTASKS": "2", "NTASKS_PER_NODE": "2"}
    environment = {
        **os.environ,
        **{f"SLURM_{name}": value for name, value in job.items()},
        "SLURM_CPUS_PER_TASK": "1",
        "SHARED": str(tmp_path),
        # A link to the interpreter does not find its environment's packages by itself.
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}",
    }
    done = subprocess.run(
        ["bash", EXAMPLES / "slurm_train.sh"],
        cwd=EXAMPLES,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "student.keras written" in done.stdout
    assert keras.models.load_model(tmp_path / "student.keras").output_shape == (None, 10)


@pytest.mark.parametrize("script", ["slurm_label.sh", "slurm_train.sh"])
def test_the_options_of_a_job_are_those_of_sbatch(script):
    assert subprocess.run(["bash", "-n", EXAMPLES / script], check=False).returncode == 0
    options = re.findall(r"^#SBATCH --([\w-]+)", (EXAMPLES / script).read_text(), flags=re.MULTILINE)
    known = {
        "job-name",
        "nodes",
        "ntasks-per-node",
        "cpus-per-task",
        "gpus-per-node",
        "gpus-per-task",
        "time",
    }
    assert set(options) <= known | {"requeue"}  # an option that is srun's only makes sbatch refuse the job


def make_inputs(tmp_path):
    generator = np.random.default_rng(0)
    x = generator.integers(0, 256, (300, 28, 28, 1)).astype("uint8")
    np.savez(tmp_path / "train.npz", x=x, y=generator.integers(0, 10, 300))
    teacher = keras.Sequential([keras.Input((28, 28, 1)), keras.layers.Flatten(), keras.layers.Dense(10)])
    teacher.save(tmp_path / "teacher.keras")
    return x


@pytest.mark.slow
def test_label_on_a_cluster_and_train_on_two_workers(tmp_path):
    pytest.importorskip("ray.data", reason="Ray Data is not installed (pip install 'keras-kd[ray]')")
    x = make_inputs(tmp_path)
    files = [f"--data={tmp_path / 'train.npz'}", f"--cache={tmp_path / 'cache'}"]
    command = [sys.executable, EXAMPLES / "label.py", f"--teacher={tmp_path / 'teacher.keras'}", "--views=2"]
    done = subprocess.run(
        [*command, *files, "--address=local"], capture_output=True, text=True, check=False, timeout=200
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "2 of 2" in done.stdout
    workers = ",".join(f"127.0.0.1:{port}" for port in free_ports(2))
    command = [sys.executable, EXAMPLES / "train.py", *files, f"--output={tmp_path / 'student.keras'}"]
    processes = [
        subprocess.Popen(
            [*command, "--epochs=2", f"--workers={workers}", f"--index={index}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    try:
        texts = [process.communicate(timeout=150) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], texts[0][1][-3000:]
    student = keras.models.load_model(tmp_path / "student.keras")
    assert student.predict(x[:3], verbose=0).shape == (3, 10)
