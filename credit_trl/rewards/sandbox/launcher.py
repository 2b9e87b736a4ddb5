"""Run one Python program in a sandbox: `python -I -S launcher.py FD`, where FD holds the JSON that `_start` writes.

This process stays outside the sandbox and is the only one that a signal from there cannot reach. It ends the program
at the wall-clock limit, on SIGTERM, and when the process that started it dies. The program is process 1 of a PID
namespace, so that the kernel ends all that it ever started together with it, whatever session they hide in.

Exits with 0 where the program did, with 1 where it did not, and with 2 and a message where the sandbox cannot be made.
"""

import contextlib
import ctypes
import errno
import json
import os
import platform
import resource
import signal
import struct
import sys
from typing import Any

NEW_MOUNTS, NEW_HOSTNAME, NEW_IPC, NEW_USERS, NEW_PROCESSES, NEW_NETWORK = (
    0x00020000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000,
)  # fmt: skip
MS_NOSUID, MS_NODEV, MS_BIND, MS_MOVE, MS_REC, MS_PRIVATE = 0x2, 0x4, 0x1000, 0x2000, 0x4000, 0x40000
AT_FDCWD, AT_RECURSIVE, MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID = -100, 0x8000, 0x1, 0x2
SYS_MOUNT_SETATTR = 442  # Linux 5.12, the same number on every architecture
PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 22, 38
SECCOMP_MODE_FILTER = 2
LOAD, JUMP_EQUAL, JUMP_LEAST, JUMP_BITS, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # of the kernel's packet filter
NUMBER, ARCHITECTURE, FIRST_ARGUMENT = 0, 4, 16  # places in `struct seccomp_data`; low half of the argument
ALLOW, REFUSE = 0x7FFF0000, 0x00050000  # to refuse, add the error number
# Audit number of the architecture, and its numbers of the system calls that the filter looks at.
SYSTEM_CALLS = {
    "x86_64": (0xC000003E, dict(
        socket=41, socketpair=53, clone=56, add_key=248, request_key=249, keyctl=250, unshare=272, perf_event_open=298,
        bpf=321, userfaultfd=323, io_uring_setup=425, clone3=435,
    )),
    "aarch64": (0xC00000B7, dict(
        socket=198, socketpair=199, clone=220, add_key=217, request_key=218, keyctl=219, unshare=97,
        perf_event_open=241, bpf=280, userfaultfd=282, io_uring_setup=425, clone3=435,
    )),
}  # fmt: skip
X32 = 0x40000000  # numbers of a second set of calls of x86_64, from here on
SOCKET_FAMILIES = [1, 2, 10]  # Unix, IPv4, IPv6: those that a network namespace holds
NOBODY = 65534
DEVICES = ["/dev/null", "/dev/zero", "/dev/urandom"]

libc = ctypes.CDLL(None, use_errno=True)


def call(function: str, *arguments: Any) -> None:
    """Call a function of libc; raises `OSError` that names it."""
    if getattr(libc, function)(*arguments) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{function}: {os.strerror(error)}")


def mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    call("mount", source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), options.encode())


def enter_namespaces(is_root: bool) -> None:
    """Leave the network, the mounts and the processes of the host (processes: from the next child on)."""
    user, group = os.geteuid(), os.getegid()
    new = NEW_MOUNTS | NEW_HOSTNAME | NEW_IPC | NEW_PROCESSES | NEW_NETWORK
    call("unshare", new if is_root else new | NEW_USERS)
    if not is_root:
        for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)


def enter_root(root: str, readable: list[str], files: dict[str, str], file_bytes: int) -> None:
    """Make `root` the file system: `readable` of the host and `/program/`, read-only, and an empty `/tmp`."""
    mount("none", "/", "", MS_REC | MS_PRIVATE)
    mount("tmpfs", root, "tmpfs", MS_NOSUID | MS_NODEV, "mode=755")
    for path in readable:
        if os.path.islink(path):  # /lib of a merged /usr
            os.symlink(os.readlink(path), root + path)
        elif os.path.isdir(path):
            os.makedirs(root + path)
            mount(path, root + path, "", MS_BIND | MS_REC)
    os.mkdir(root + "/dev")
    for path in DEVICES:
        open(root + path, "w").close()
        mount(path, root + path, "", MS_BIND)
    os.makedirs(root + "/program")
    for name, text in files.items():
        with open(f"{root}/program/{name}", "w", encoding="utf-8", errors="surrogatepass") as file:
            file.write(text)
    os.mkdir(root + "/tmp")  # of the sandbox, not of the host  # nosec B108
    attributes = (ctypes.c_uint64 * 4)(MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID, 0, 0, 0)
    arguments = (AT_FDCWD, root.encode(), AT_RECURSIVE, attributes, ctypes.sizeof(attributes))
    call("syscall", SYS_MOUNT_SETATTR, *arguments[:3], ctypes.byref(attributes), ctypes.c_size_t(arguments[4]))
    options = f"size={file_bytes},nr_inodes=1000,mode=1777"
    mount("tmpfs", root + "/tmp", "tmpfs", MS_NOSUID | MS_NODEV, options)  # nosec B108
    os.chdir(root)
    mount(".", "/", "", MS_MOVE)  # as switch_root does; pivot_root cannot leave an initial RAM file system
    os.chroot(".")
    os.chdir("/tmp")  # nosec B108


def filter_calls() -> None:
    """Refuse what namespaces do not separate, and what most holes of the kernel take.

    A socket of a virtual machine (`AF_VSOCK`) reaches its host from every network namespace, io_uring opens sockets
    past this filter, and key rings are the host's. `clone3` hides its flags, so that it "does not exist": the C library
    then falls back to `clone`, which may not make a user namespace.
    """
    if platform.machine() not in SYSTEM_CALLS:
        raise OSError(errno.ENOSYS, f"no filter of system calls for {platform.machine()}")
    architecture, numbers = SYSTEM_CALLS[platform.machine()]
    code: list[tuple[int, int, int, int]] = []  # operation, how many to jump over if true and if false, operand

    def refuse(error: int) -> tuple[int, int, int, int]:
        return RETURN, 0, 0, REFUSE | error

    code += [(LOAD, 0, 0, ARCHITECTURE), (JUMP_EQUAL, 1, 0, architecture), refuse(errno.EPERM)]
    code += [(LOAD, 0, 0, NUMBER), (JUMP_LEAST, 0, 1, X32), refuse(errno.EPERM)]
    for name, number in numbers.items():
        if name in ("socket", "socketpair"):
            rule = [(LOAD, 0, 0, FIRST_ARGUMENT)]
            rule += [(JUMP_EQUAL, len(SOCKET_FAMILIES) - i, 0, family) for i, family in enumerate(SOCKET_FAMILIES)]
            rule += [refuse(errno.EPERM), (RETURN, 0, 0, ALLOW)]
        elif name == "clone":
            rule = [(LOAD, 0, 0, FIRST_ARGUMENT), (JUMP_BITS, 0, 1, NEW_USERS)]
            rule += [refuse(errno.EPERM), (RETURN, 0, 0, ALLOW)]
        else:
            rule = [refuse(errno.ENOSYS if name == "clone3" else errno.EPERM)]
        code += [(JUMP_EQUAL, 0, len(rule), number), *rule]
    code.append((RETURN, 0, 0, ALLOW))
    instructions = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in code))
    program = struct.pack("@HP", len(code), ctypes.addressof(instructions))
    call("prctl", PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program, 0, 0)


def become_harmless(is_root: bool, limits: dict[str, int]) -> None:
    """Give up every privilege and set the limits of this process and of those that it starts."""
    os.setsid()  # kill(0, ...) must not reach the launcher
    if is_root:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        call("unshare", NEW_USERS)  # RLIMIT_NPROC counts per user and user namespace: each sandbox has its own count
    for name, value in limits.items():
        resource.setrlimit(getattr(resource, name), (value, value))
    call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # after the change of user, which clears it
    call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    filter_calls()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def main() -> int:
    # Ended between the fork and the handler, the launcher would leave a program behind that no one ends.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    call("prctl", PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    with open(int(sys.argv[1])) as file:
        config = json.load(file)
    is_root = os.geteuid() == 0
    enter_namespaces(is_root)
    enter_root(config["root"], config["readable"], config["files"], config["file_bytes"])
    failure, report = os.pipe()  # closed by a successful exec
    program = os.fork()
    if program == 0:
        try:
            become_harmless(is_root, config["limits"])
            os.dup2(os.open("/dev/null", os.O_WRONLY), 2)
            os.execve(config["command"][0], config["command"], {})  # as `_start` wrote it  # nosec B606
        except OSError as error:
            os.write(report, str(error).encode())
        os._exit(2)
    os.close(report)
    handle = os.pidfd_open(program)  # a number alone may belong to another process once the program has ended

    def end(*_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(handle, signal.SIGKILL)

    signal.signal(signal.SIGTERM, end)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, config["timeout"])
    message = os.read(failure, 1000).decode()
    _, status = os.waitpid(program, 0)
    if message:
        raise OSError(message)
    return int(status != 0)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except OSError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
