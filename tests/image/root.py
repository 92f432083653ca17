"""A root with the files of an image, and programs that run in it as PID 1 of their own, with nothing but what the image has."""

import os
import pathlib
import re
import shutil
import subprocess

# What gcr.io/distroless/cc-debian12 has: glibc, libgcc, and these two more.
LIBRARIES = {
    "libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0", "librt.so.1", "libresolv.so.2", "libgcc_s.so.1",
    "libstdc++.so.6", "libgomp.so.1", "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1",
}
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
# Makes the root read-only but for `data`, and becomes PID 1 there. $1 is the root, $2 the user, $3 a folder or nothing.
ENTER = """
set -e
mount --bind "$1" "$1"
[ -z "$3" ] || mount -t tmpfs -o mode=1777 tmpfs "$1$3"
mount -t proc proc "$1/proc"
for device in null urandom; do mount --bind /dev/$device "$1/dev/$device"; done
mount -o remount,ro,bind "$1"
root="$1" user="$2"; shift 3
exec chroot --userspec="$user" "$root" "$@"
"""


def libraries(program):
    """Shared libraries of a program: name and place."""
    told = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    found = {}
    for line in told.splitlines():
        if match := re.match(r"\s*(?:(\S+) => )?(/\S+) \(0x", line):
            found[pathlib.Path(match[1] or match[2]).name] = match[2]
    return found


class Root:
    def __init__(self, folder, programs, more_libraries=()):
        self.folder = pathlib.Path(folder)
        for name in ("proc", "dev", "tmp", "data", "etc/ssl/certs", "usr/local/bin"):
            (self.folder / name).mkdir(parents=True)
        for name in ("dev/null", "dev/urandom"):
            (self.folder / name).touch()
        (self.folder / "etc/passwd").write_text("nonroot:x:65532:65532:nonroot:/home/nonroot:/sbin/nologin\n")
        if os.path.exists(CERTIFICATES):
            shutil.copy(CERTIFICATES, self.folder / "etc/ssl/certs")
        for name, source in programs.items():
            shutil.copy(source, self.folder / "usr/local/bin" / name)
            for library, place in libraries(source).items():
                assert library in LIBRARIES | set(more_libraries), f"{name} needs {library}, which the image has not"
                target = self.folder / place.lstrip("/")
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(place, target)

    def start(self, user, env, command, writable="", **options):
        """Starts a command; the returned process is its parent outside, which ends as it does."""
        enter = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", ENTER, "sh"]
        words = [*enter, str(self.folder), user, writable, *command]
        path = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
        return subprocess.Popen(words, env=path | env, text=True, **options)

    def run(self, user, env, command):
        process = self.start(user, env, command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        told, _ = process.communicate(timeout=60)
        return process.returncode, told


def children(process):
    return [int(child) for child in pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def inside(process):
    """The process that is PID 1 in there, by its id out here."""
    return children(process)[0]
