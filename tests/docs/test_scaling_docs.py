"""The commands of docs/scaling.md run as they are written, as far as this machine has what they name."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from conftest import contents, paint

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "scaling.md").read_text()
PART = PAGE.partition("## Object stores")[0]
BLOCKS = re.findall(r"^```sh\n(.*?)^```", PART, re.MULTILINE | re.DOTALL)
(MANIFEST,) = re.findall(r"^```yaml\n(.*?)^```", PART, re.MULTILINE | re.DOTALL)
SMALL = "--size 16 --unit-size 2 --quiet"

# What srun does for one machine of two tasks.
SRUN = """
srun() {
    for task in 0 1; do
        SLURM_PROCID=$task SLURM_LOCALID=$task SLURM_STEP_NUM_TASKS=2 SLURM_STEP_TASKS_PER_NODE=2 "$@" &
    done
    wait
}
"""


@pytest.fixture
def folder(tmp_path):
    for number in range(6):
        paint(tmp_path / "photos" / f"{number}.png", number, (20, 18))
    return tmp_path


def fitted(text):
    """A command for this machine: two processes without GPUs, a small autoencoder and small images."""
    text = text.replace("--autoencoder stabilityai/sdxl-vae", f"--autoencoder dct-f8c16 {SMALL}")
    text = re.sub(r"(--nproc-per-node|--num_processes|--workers) 8", r"\1 2", text)
    return text.replace("--gpus-per-worker 1 --cpus-per-worker 12", "--gpus-per-worker 0 --cpus-per-worker 1")


def run(script, folder, **variables):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, **variables}
    done = subprocess.run(
        ["bash", "-e", "-c", script], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def units_of_ranks(stdout):
    return sorted(int(count) for count in re.findall(r"; (\d+) images? in", stdout))


@pytest.mark.long
@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
def test_launchers_of_one_machine(folder, launcher):
    (line,) = (line for block in BLOCKS for line in block.splitlines() if line.startswith(f"{launcher} "))
    assert units_of_ranks(run(fitted(line), folder)) == [2, 4]


@pytest.mark.long
def test_batch_script(folder):
    (script,) = (block for block in BLOCKS if "srun " in block)
    assert units_of_ranks(run(SRUN + fitted(script), folder, SLURM_JOB_ID="1", SLURM_NTASKS="2")) == [2, 4]


@pytest.mark.long
def test_array_of_jobs(folder):
    (script,) = (block for block in BLOCKS if "SLURM_ARRAY" in block)
    tasks = [
        run(fitted(script), folder, SLURM_ARRAY_TASK_ID=task, SLURM_ARRAY_TASK_COUNT="2", SLURM_PROCID="0")
        for task in "01"
    ]
    assert units_of_ranks("".join(tasks)) == [2, 4]


@pytest.mark.long
def test_commands_on_ray(folder):
    """Each starts a cluster of this machine, in which a job's command runs too."""
    commands = [line for block in BLOCKS for line in block.splitlines() if " --ray" in line]
    assert [line.partition(" ")[0] for line in commands] == ["latentq", "ray"]
    commands[1] = commands[1].partition(" -- ")[2]
    commands.append(yaml.safe_load(MANIFEST)["spec"]["entrypoint"].replace("/data/", f"{folder}/"))
    made = []
    for number, command in enumerate(commands):
        run(fitted(command).replace("--ray", "--ray local"), folder)
        (folder / "out").rename(folder / f"out{number}")
        made.append(contents(folder / f"out{number}"))
    assert made[0] == made[1] == made[2]


# Fields of KubeRay's RayJob, version ray.io/v1, that the manifest may use; pods are Kubernetes' own.
JOB = {"entrypoint", "shutdownAfterJobFinishes", "backoffLimit", "rayClusterSpec"}
CLUSTER = {"rayVersion", "enableInTreeAutoscaling", "headGroupSpec", "workerGroupSpecs"}
HEAD = {"rayStartParams", "template"}
GROUP = {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"}


def test_manifest_is_a_ray_job():
    manifest = yaml.safe_load(MANIFEST)
    assert (manifest["apiVersion"], manifest["kind"]) == ("ray.io/v1", "RayJob")
    spec = manifest["spec"]
    cluster = spec["rayClusterSpec"]
    (group,) = cluster["workerGroupSpecs"]
    assert [set(part) for part in (spec, cluster, cluster["headGroupSpec"], group)] == [JOB, CLUSTER, HEAD, GROUP]
    assert all(isinstance(value, str) for value in cluster["headGroupSpec"]["rayStartParams"].values())
    for pod in (cluster["headGroupSpec"]["template"]["spec"], group["template"]["spec"]):
        (container,) = pod["containers"]
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
        assert all(isinstance(value, str) for value in container["resources"]["limits"].values())
    words = shlex.split(spec["entrypoint"])
    assert group["maxReplicas"] == int(words[words.index("--workers") + 1])
