"""Makes a child die with its parent, then becomes the program it guards.

Run as ``python -I -S guard.py PARENT PROGRAM ARG…`` by ``supervisor.spawn``, so it imports nothing
of ours and starts in some 20 ms. It is a program and no ``preexec_fn``, because code between fork
and exec may deadlock as soon as the parent has a second thread. Only Linux offers the death
signal; elsewhere children outlive a parent that was killed with SIGKILL.
"""

import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    parent, program = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # It died before the signal was asked for.
        sys.exit(1)
    os.execv(program[0], program)  # noqa: S606  it came as a list, from ourselves


if __name__ == "__main__":
    main()
