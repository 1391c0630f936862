"""Runs a node as long as the process that asked for it lives: `guard.py PARENT COMMAND…`. It prints the process id of the node.

pytest may be killed with SIGKILL, and then nothing in it can stop the node. This process notices that it has another parent.
"""

import os
import signal
import subprocess
import sys

CHECK_S = 0.25


def _end_with_parent() -> None:
    """In the node, before it starts: on Linux, the node ends with this process, whatever happens to it."""
    try:
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    except (ImportError, OSError, AttributeError):
        pass


def main() -> int:
    parent, *command = sys.argv[1:]
    node = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=_end_with_parent)
    # The caller closes its end after it has read the line.
    os.write(sys.stdout.fileno(), b"%d\n" % node.pid)
    os.close(sys.stdout.fileno())
    while True:
        try:
            return node.wait(CHECK_S)
        except subprocess.TimeoutExpired:
            if os.getppid() != int(parent):
                node.kill()


if __name__ == "__main__":
    os._exit(main() & 0xFF)
