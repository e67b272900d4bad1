"""Runs a program that dies with its parent: `python -I -S leash.py SIGNAL USER PROGRAM ARGUMENT...`.

On Linux the kernel sends SIGNAL (a number) to the program when the process that started it ends, however it ends: a
`kill -9` of the supervisor then leaves nothing behind. Elsewhere the program is simply run.

USER is `-`, or the name of an account to become. PostgreSQL refuses to run as root, so under root it becomes `nobody`,
keeping the one capability (CAP_DAC_OVERRIDE) that lets it reach a data directory below root's own; nobody's permissions
on the machine need no change for that. See prctl(2), capabilities(7).

A file of its own rather than a hook between fork and exec: such a hook would fork the supervisor with its gRPC threads.
It imports nothing but the standard library, since `-I -S` keeps its start at some ten milliseconds.
"""

import ctypes
import os
import sys

_PR_SET_PDEATHSIG = 1
_PR_SET_KEEPCAPS = 8
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_RAISE = 2
_CAP_DAC_OVERRIDE = 1
_CAPABILITY_VERSION_3 = 0x20080522


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Sets(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


def _become(user: str, libc: ctypes.CDLL | None) -> None:
    import pwd

    account = pwd.getpwnam(user)
    if libc is not None:
        libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0)
    os.setgroups([])
    os.setgid(account.pw_gid)
    os.setuid(account.pw_uid)
    if libc is None:
        return
    bit = 1 << _CAP_DAC_OVERRIDE
    # Two 32-bit halves; ours lies in the first. Where the machine withholds the capability both calls fail, and the
    # program runs without it and says itself what it cannot read.
    sets = (_Sets * 2)(_Sets(bit, bit, bit), _Sets(0, 0, 0))
    if libc.capset(ctypes.byref(_Header(_CAPABILITY_VERSION_3, 0)), sets) == 0:
        libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, _CAP_DAC_OVERRIDE, 0, 0)


def _main(signal_number: int, user: str, program: list[str]) -> None:
    libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
    parent = os.getppid()
    if user != "-":
        _become(user, libc)
    if libc is not None:
        # After the change of user, which would clear it.
        libc.prctl(_PR_SET_PDEATHSIG, signal_number, 0, 0, 0)
        if os.getppid() != parent:
            sys.exit("the supervisor ended meanwhile")
    os.execvp(program[0], program)  # noqa: S606 -- to become the program is the point


if __name__ == "__main__":
    _main(int(sys.argv[1]), sys.argv[2], sys.argv[3:])
