"""How many threads compute on a CPU: as many as help the model, and a word where the machine has fewer cores to spare.

A step of a small model is over before a second thread has been woken for it, and beside a busy core every step waits for
whichever thread that core holds up. Waiting threads leave their core (OMP_WAIT_POLICY, which the command line sets before
torch is imported). OMP_NUM_THREADS decides where it is set, as it is by torchrun.

Left out on purpose: trying two counts in the first seconds of sampling. Decoding's products had the same bits with one
thread and with two on the processor that was tried (an EPYC, bf16 and fp32, widths of 64 to 4,864). But nothing promises that
of another one, of a prompt's shapes or of three threads, and what wins in the first seconds depends on who else works then.
"""

import logging
import os
from pathlib import Path

import torch

log = logging.getLogger(__name__)

SMALL = 20e6  # weights of a model that one thread computes
CGROUP = Path("/sys/fs/cgroup/cpu.max")  # "200000 100000": two cores of the machine's; "max 100000": all


def choose_threads(weights: int, device: torch.device) -> None:
    """Compute a small model in one thread, and warn where more threads run than cores are free."""
    if device.type != "cpu":
        return
    if weights <= SMALL and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
    threads, cores, free = torch.get_num_threads(), cores_here(), cores_free()
    if threads > free:
        log.warning(
            "%d threads compute, and about %d of %d cores are free; OMP_NUM_THREADS=%d may be faster",
            *(threads, free, cores, free),
        )


def cores_here() -> int:
    """The cores that this process may use, a container's limit among them."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = CGROUP.read_text().split()
        return max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError):  # no limit
        return cores


def cores_free() -> int:
    """About how many of them were idle over the last minute, and never less than one."""
    idle = len(os.sched_getaffinity(0)) - round(os.getloadavg()[0])
    return max(1, min(cores_here(), idle))
