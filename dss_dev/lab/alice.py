"""The client alice of the lesson about fencing: a process that can be paused. It uses the standard library only.

It reads lines from its parent, and answers each with one line. It ends when its input ends; on Linux it also ends with its parent while
it is paused.
"""

from __future__ import annotations

import ctypes
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))
    print("ready", flush=True)
    token = balance = "0"
    for line in sys.stdin:
        words = line.split()
        if words[0] == "token":
            token, balance = words[1], words[3]
            print("computed", flush=True)
        else:
            print(f"writes balance {int(balance) + 10} token {token}", flush=True)


if __name__ == "__main__":
    main()
