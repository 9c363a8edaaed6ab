"""A lab with a batch system: Slurm of the distribution, a login node, compute nodes, a shared folder, a plain user.

node1 is the login node and has the controller; the other hosts compute. All hosts see one folder of the lab at
/shared, in place of NFS, with the home of the user, who has no sudo, and no way from the login node to the others but
Slurm. There are no control groups: a rank is bound to nothing, and may use all cores of this machine.
"""

import hashlib
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from hosts import Host, Lab
from system import MARK, PLAIN, LabError

# The batch system, and what its administrators have installed for users, who cannot.
PACKAGES = (
    *("libpmi2-0", "munge", "slurm-client", "slurmctld", "slurmd"),
    *("acl", "libtcmalloc-minimal4", "openssh-client", "python3-venv", "rsync"),
)
USER = "user"
SHARED = "/shared"
_SCRIPT = Path(__file__).with_name("slurm.sh")

# slurmctld notices a lost node within seconds, and ends a job that does not obey within ten.
_CONFIGURATION = """\
ClusterName=lab
SlurmctldHost=node1
SlurmUser=slurm
AuthType=auth/munge
StateSaveLocation=/var/spool/slurmctld
SlurmdSpoolDir=/var/spool/slurmd
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.pid
SlurmctldLogFile=/var/log/slurmctld.log
SlurmdLogFile=/var/log/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
SlurmdTimeout=20
SlurmctldTimeout=20
KillWait=10
ReturnToService=2
SchedulerParameters=bf_interval=5,sched_interval=5,default_queue_depth=100
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
NodeName={nodes} CPUs=2 Boards=1 SocketsPerBoard=1 CoresPerSocket=2 ThreadsPerCore=1 RealMemory=6000 State=UNKNOWN
PartitionName=cpu Nodes={nodes} Default=YES MaxTime=60 DefMemPerNode=2000 State=UP
PartitionName=small Nodes={first} MaxTime=5 MaxNodes=1 DefMemPerNode=2000 State=UP
PartitionName=closed Nodes={nodes} State=DOWN
PartitionName=physics Nodes={nodes} AllowAccounts=physics State=UP
"""


def configuration(lab: Lab) -> str:
    """slurm.conf of the lab's hosts."""
    names = [host.name for host in lab.hosts[1:]]
    return _CONFIGURATION.format(nodes=",".join(names), first=names[0])


def settings(lab: Lab) -> dict[str, str]:
    """Variables of the inventory, which has the login node alone."""
    return {
        "work_dir": f"{SHARED}/{USER}/sdtune",
        "launch_config_launcher": "slurm",
        "launch_config_ranks_per_node": "1",  # the nodes share the cores of this machine
        "launch_config_threads_per_rank": "1",
        "slurm_nodes": str(len(lab.hosts) - 1),
        "slurm_time_limit": '"30"',
    }


def start(lab: Lab, hosts: Sequence[Host]) -> None:
    """Configure Slurm on these hosts and start what does not run yet; repeated, it starts what has ended."""
    if len(lab.hosts) < 2:
        raise LabError(f"a lab with Slurm needs a login node and a compute node; type: lab.py up {lab.name} --hosts 3")
    secret = hashlib.sha512((lab.folder / "admin_key").read_bytes()).hexdigest()
    environment = {
        **PLAIN,
        "SLURM_CONF_TEXT": configuration(lab),
        "MUNGE_SECRET": secret,
        "PLAIN_USER": USER,
        "LOGIN_KEY": (lab.folder / "admin_key.pub").read_text(),
    }
    for host in hosts:
        part = "slurmctld" if host.number == 1 else "slurmd"
        done = subprocess.run(
            host.enter("sh", "-s", part),
            input=_SCRIPT.read_text(),
            env={**environment, MARK: host.mark},
            capture_output=True,
            text=True,
            check=False,
            cwd=os.sep,
        )
        if done.returncode:
            raise LabError(f"{host.name}: {part} does not start: {done.stderr.strip() or done.stdout.strip()}")
