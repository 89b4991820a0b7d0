"""How many of the CPU cores other processes leave free while a script starts.

Two threads beside a busy core are slower than one. Each parallel operation waits for the thread that shares its core,
which the scheduler lets run once in some milliseconds, and a training step has hundreds of such operations. Shorter
waits of OpenMP (`GOMP_SPINCOUNT`, `OMP_WAIT_POLICY`) do not cure it: see docs/benchmarks.md.
"""

from __future__ import annotations

import os
import time

SHORTEST = 0.3  # seconds; in less the kernel's hundredths of a second say too little
CpuTimes = tuple[float, float, float]  # now; CPU seconds of all processes on these cores so far; of this one


def allowed() -> set[int]:
    """Returns the numbers of the cores that this process may use; none where the system does not say."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()


def cpu_times(statistics: str = "/proc/stat") -> CpuTimes | None:
    """Returns the CPU times up to now, or None where the system has no such file."""
    cores, busy = {f"cpu{number}" for number in allowed()}, 0
    try:
        with open(statistics, encoding="ascii") as file:
            for line in file:
                name, *fields = line.split()
                if name in cores:
                    user, nice, system, _idle, _waiting, interrupts, soft_interrupts, stolen = map(int, fields[:8])
                    busy += user + nice + system + interrupts + soft_interrupts + stolen
    except (OSError, ValueError):
        return None
    own = os.times()
    seconds = busy / os.sysconf("SC_CLK_TCK")
    return time.monotonic(), seconds, own.user + own.system + own.children_user + own.children_system


_AT_START = cpu_times()  # of the first import of `common`, seconds before a script needs the answer


def free(before: CpuTimes | None = _AT_START, now: CpuTimes | None = None) -> float | None:
    """Returns how many cores the other processes left free, on average, since this one started; None if not known."""
    now = now or cpu_times()
    if before is None or now is None or now[0] - before[0] < SHORTEST:
        return None
    of_others = (now[1] - before[1]) - (now[2] - before[2])
    return len(allowed()) - max(0.0, of_others) / (now[0] - before[0])
