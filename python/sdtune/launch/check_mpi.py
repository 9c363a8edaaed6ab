"""Check MPI itself, without torch: all ranks exchange their host names in one all-reduce, and rank 0 prints them.

mpirun -hosts node1,node2 -n 2 -ppn 1 python -m sdtune.launch.check_mpi
"""

import ctypes
import os
import platform
import sys
from pathlib import Path

# constants of the MPICH ABI, which Intel MPI follows
WORLD, DOUBLE, SUM = 0x44000000, 0x4C00080B, 0x58000003


def main() -> None:
    """Exchange the host names; exit code 1 when one is missing. MPI itself ends the job on its errors."""
    mpi = ctypes.CDLL(str(Path(os.environ.get("I_MPI_ROOT", sys.prefix)) / "lib" / "libmpi.so"))
    mpi.MPI_Init(None, None)
    rank, ranks = ctypes.c_int(), ctypes.c_int()
    mpi.MPI_Comm_rank(WORLD, ctypes.byref(rank))
    mpi.MPI_Comm_size(WORLD, ctypes.byref(ranks))
    # each rank writes its name to its own slot, one byte per number; the sum over all ranks has all names
    slot = 64
    numbers = (ctypes.c_double * (slot * ranks.value))()
    for i, byte in enumerate(platform.node().encode()[:slot]):
        numbers[slot * rank.value + i] = byte
    total = (ctypes.c_double * len(numbers))()
    mpi.MPI_Allreduce(numbers, total, len(numbers), DOUBLE, SUM, WORLD)
    names = [bytes(int(x) for x in total[slot * r : slot * (r + 1)] if x).decode() for r in range(ranks.value)]
    mpi.MPI_Finalize()
    if not all(names):
        sys.exit(f"error: {platform.node()}: rank {rank.value} heard of {names}, which is not {ranks.value} hosts")
    if rank.value == 0:
        print(f"{ranks.value} ranks: {' '.join(names)}")


if __name__ == "__main__":
    main()
