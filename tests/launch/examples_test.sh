#!/bin/bash
# examples_test.sh FOLDER: the examples of launchers are what their readers take: shell, YAML with an MPIJob's fields, a
# hostfile.
set -eu
folder=$1

bash -n "$folder/slurm.sbatch"
grep -q '^#SBATCH --nodes=' "$folder/slurm.sbatch"
# A directive behind the first command is silently ignored by sbatch.
awk '/^#SBATCH/ && seen { print "line " NR ": #SBATCH after a command"; bad = 1 } !/^#/ && NF { seen = 1 } END { exit bad }' \
  "$folder/slurm.sbatch"

if bad=$(grep -vE '^[[:space:]]*(#|$)' "$folder/hostfile" | grep -vE '^[A-Za-z0-9][A-Za-z0-9.-]*( slots=[0-9]+)?( max[_-]slots=[0-9]+)?$'); then
  echo "hostfile: $bad"
  exit 1
fi

python3 -c 'import yaml' 2>/dev/null || { echo "SKIPPED the YAML: there is no python3 with yaml here (package python3-yaml)"; exit 77; }
python3 - "$folder/kubernetes-mpijob.yaml" <<'PYTHON'
import sys
import yaml

(job,) = list(yaml.safe_load_all(open(sys.argv[1])))
assert job["apiVersion"] == "kubeflow.org/v2beta1" and job["kind"] == "MPIJob", job
spec = job["spec"]
replicas = spec["mpiReplicaSpecs"]
assert set(replicas) == {"Launcher", "Worker"}
(launcher,) = replicas["Launcher"]["template"]["spec"]["containers"]
worker_spec = replicas["Worker"]["template"]["spec"]
(worker,) = worker_spec["containers"]
arguments = launcher["args"]
assert all(isinstance(a, str) for a in arguments), "arguments of a container are strings"
assert launcher["command"] == ["quire-serve-group"] and "--" in arguments
grace = replicas["Launcher"]["template"]["spec"]["terminationGracePeriodSeconds"]
assert grace > int(arguments[arguments.index("--shutdown-timeout") + 1]), "the drain must end before the pod is killed"
ranks = int(arguments[arguments.index("-n") + 1])
assert ranks == spec["slotsPerWorker"] * replicas["Worker"]["replicas"], "as many ranks as the workers have slots"
assert {m["name"] for m in worker["volumeMounts"]} == {v["name"] for v in worker_spec["volumes"]}
assert launcher["image"] == worker["image"]
PYTHON
