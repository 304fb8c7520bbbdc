"""A real one-node Slurm from Debian's packages, unpacked and started in a folder of its own.

Without munge (auth/none), on the loopback, without accounting: for tests, never for a cluster.
"""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PACKAGES = ("slurmctld", "slurmd", "slurm-client", "slurm-wlm-basic-plugins", "libhwloc15",
            "libmunge2")  # fmt: skip


def unpacked(folder: Path) -> Path:
    """Download and unpack the packages; return the root of their files."""
    root = folder / "root"
    debs = folder / "debs"
    debs.mkdir(parents=True)
    subprocess.run(["apt-get", "download", *PACKAGES], cwd=debs, check=True, capture_output=True)
    for package in sorted(debs.glob("*.deb")):
        subprocess.run(["dpkg", "-x", package, root], check=True)
    return root


@contextmanager
def running(folder: Path) -> Iterator[dict[str, str]]:
    """Start Slurm; yield the environment in which its commands work."""
    root = unpacked(folder)
    libraries = root / "usr/lib/x86_64-linux-gnu"
    environment = dict(os.environ) | {
        "PATH": f"{root / 'usr/bin'}:{root / 'usr/sbin'}:{os.environ['PATH']}",
        "LD_LIBRARY_PATH": f"{libraries}:{libraries / 'slurm-wlm'}",
        "SLURM_CONF": str(folder / "slurm.conf"),
    }
    for name in ("state", "spool"):
        (folder / name).mkdir()
    (folder / "slurm.conf").write_text(_configuration(folder, libraries / "slurm-wlm"))
    sbin = root / "usr/sbin"
    daemons = [
        [sbin / "slurmctld-wlm", "-D", "-c", "-L", folder / "slurmctld.log"],
        [sbin / "slurmd-wlm", "-D", "-c", "-d", sbin / "slurmstepd-wlm", "-L",
         folder / "slurmd.log"],
    ]  # fmt: skip
    started = [
        subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        for command in daemons
    ]
    try:
        _wait_until_idle(environment, folder)
        yield environment
    finally:
        for process in reversed(started):
            process.terminate()
            process.wait(timeout=20)


def _configuration(folder: Path, plugins: Path) -> str:
    host = socket.gethostname().split(".")[0]
    ports = _free_ports(2)
    return f"""
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/none
CredType=cred/none
PluginDir={plugins}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
StateSaveLocation={folder / "state"}
SlurmdSpoolDir={folder / "spool"}
SlurmctldPidFile={folder / "slurmctld.pid"}
SlurmdPidFile={folder / "slurmd.pid"}
NodeName={host} NodeAddr=127.0.0.1 CPUs={os.cpu_count()} RealMemory=4000 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def _free_ports(count: int) -> list[int]:
    with_ports = [socket.socket() for _ in range(count)]
    for bound in with_ports:
        bound.bind(("127.0.0.1", 0))
    numbers = [int(bound.getsockname()[1]) for bound in with_ports]
    for bound in with_ports:
        bound.close()
    return numbers


def _wait_until_idle(environment: dict[str, str], folder: Path) -> None:
    sinfo = shutil.which("sinfo", path=environment["PATH"])
    assert sinfo is not None
    for _ in range(300):
        states = subprocess.run(
            [sinfo, "-h", "-o", "%t"], env=environment, capture_output=True, text=True, check=False
        )
        if states.stdout.strip() == "idle":
            return
        time.sleep(0.1)
    logs = "".join(path.read_text() for path in folder.glob("*.log"))
    raise AssertionError(f"Slurm did not start: {states.stdout}{states.stderr}\n{logs[-3000:]}")
