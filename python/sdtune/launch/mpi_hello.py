"""Greet the other ranks over MPI itself, without torch: rank 0 prints who was there, once the sum over all is right.

mpirun -hosts node1,node2 -n 2 -ppn 1 python -m sdtune.launch.mpi_hello
"""

import ctypes
import os
import platform
import sys
from pathlib import Path

# of the MPICH ABI, which Intel MPI keeps
WORLD, DOUBLE, SUM = 0x44000000, 0x4C00080B, 0x58000003


def main() -> None:
    """Sum ranks and exchange names; exit with 1 if the sum is wrong. MPI ends the job on its own errors."""
    mpi = ctypes.CDLL(str(Path(os.environ.get("I_MPI_ROOT", sys.prefix)) / "lib" / "libmpi.so"))
    mpi.MPI_Init(None, None)
    rank, ranks = ctypes.c_int(), ctypes.c_int()
    mpi.MPI_Comm_rank(WORLD, ctypes.byref(rank))
    mpi.MPI_Comm_size(WORLD, ctypes.byref(ranks))
    # each rank fills its own slot with its name, a byte a number, and all slots are summed
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
