"""Runs the files of both images as deploy/Dockerfile says: by a numeric user, as PID 1, on a read-only root, with the libraries of
the base image alone. Usage: check.py PROGRAM"""

import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

from dockerfile import Image
from root import Root, children, inside, libraries

TOP = pathlib.Path(__file__).resolve().parents[2]
DOCKERFILE = TOP / "deploy/Dockerfile"
SERVER = os.environ["STEPFLEET_TEST_SERVER"]
SIZE_MAX = 40_000_000
SOON = 60
WORKFLOW = {"workflow": "image", "steps": {
    "first": {"handler": "noop"},
    "second": {"handler": "sleep", "with": {"duration": "50ms"}, "needs": ["first"]},
}}


def say(text):
    print(f"check-image: {text}", flush=True)


def port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def until(what, look):
    """Waits until `look` returns something."""
    end = time.monotonic() + SOON
    why = None
    while time.monotonic() < end:
        try:
            if found := look():
                return found
        except OSError as error:
            why = error
        time.sleep(0.1)
    raise AssertionError(f"waited {SOON} s in vain for {what}: {why}")


def ask(url, body=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)


def completes(api):
    """A workflow of two steps is done."""
    run = until("the API", lambda: ask(f"{api}/api/v1/runs", {"definition": WORKFLOW}))["id"]
    until("the run to complete", lambda: ask(f"{api}/api/v1/runs/{run}")["state"] == "completed")


def ends(process, name):
    """SIGTERM ends it, with code 0, though it is PID 1."""
    os.kill(inside(process), signal.SIGTERM)
    code = process.wait(timeout=SOON)
    assert code == 0, f"{name} ended with {code} after SIGTERM"


def kill(process):
    """A change of the user takes from a program that it dies with its parent: it is killed first."""
    if process.poll() is None:
        for inner in children(process):
            os.kill(inner, signal.SIGKILL)
        process.kill()
        process.wait()


def stripped(program, folder):
    small = folder / "stepfleet"
    subprocess.run(["strip", "-o", small, program], check=True)
    return small


def check_size(program, built):
    size = sum(os.path.getsize(os.path.realpath(path)) for path in [program, *libraries(program).values()])
    text = f"program and libraries have {size / 1e6:.1f} MB; allowed are {SIZE_MAX / 1e6:.0f}"
    if "image" in pathlib.Path(built).parts:
        assert size < SIZE_MAX, text
        say(text)
    else:
        say(f"{text} of a build with the profile `image`, which this is not: `make check-image-size`")


def check_build():
    """The image and `make check-image-size` build the same program."""
    (command,) = re.findall(r"^IMAGE_PROGRAM = (.+)$", (TOP / "Makefile").read_text(), re.MULTILINE)
    assert f" {command} &&" in " ".join(DOCKERFILE.read_text().split()), f"deploy/Dockerfile does not say `{command}`"


def check_plain(root, image, started):
    code, told = root.run(image.user(), image.env(), image.command())
    assert code == 0 and "Usage: stepfleet" in told, told
    code, told = root.run(image.user(), image.env() | {"STEPFLEET_LISTEN": f"127.0.0.1:{port()}"}, image.probe())
    assert code != 0 and "no answer from" in told, f"the health check passes though nothing runs: {told}"
    redis, api, metrics, health = port(), port(), port(), port()
    with tempfile.TemporaryDirectory() as data:
        server = [SERVER, "--port", str(redis), "--bind", "127.0.0.1", "--dir", data, "--appendonly", "yes", "--save", ""]
        started.append(subprocess.Popen([*server, "--maxmemory-policy", "noeviction"], stdout=subprocess.DEVNULL))
        until("the server", lambda: socket.create_connection(("127.0.0.1", redis)).close() or True)
        env = image.env() | {"STEPFLEET_REDIS_URL": f"redis://127.0.0.1:{redis}"}
        of_coordinator = env | {"STEPFLEET_LISTEN": f"127.0.0.1:{api}", "STEPFLEET_METRICS_LISTEN": f"0.0.0.0:{metrics}"}
        of_worker = env | {"STEPFLEET_HEALTH_LISTEN": f"0.0.0.0:{health}"}
        coordinator = root.start(image.user(), of_coordinator, [*image.entrypoint(), "coordinator"])
        worker = root.start(image.user(), of_worker, [*image.entrypoint(), "worker"])
        started.extend([coordinator, worker])
        completes(f"http://127.0.0.1:{api}")
        for name, given, process in (("worker", of_worker, worker), ("coordinator", of_coordinator, coordinator)):
            status = pathlib.Path(f"/proc/{inside(process)}/status").read_text()
            assert "\nUid:\t65532\t65532\t65532\t65532\n" in status and "\t1\n" in status.split("NSpid:")[1][:40], status
            code, told = root.run(image.user(), given, image.probe())
            assert code == 0, f"the health check of the {name} fails: {told}"
            ends(process, name)
            code, told = root.run(image.user(), given, image.probe())
            assert code != 0, f"the health check of the {name} passes though it is gone"
    say("coordinator and worker ran a workflow on a read-only root as PID 1 and user 65532, and ended at SIGTERM")


def check_lite(root, image, started):
    api = port()
    env = image.env() | {"STEPFLEET_PORT": str(api), "STEPFLEET_LISTEN": f"127.0.0.1:{api}"}
    dev = root.start(image.user(), env, image.command(), writable="/data")
    started.append(dev)
    completes(f"http://127.0.0.1:{api}")
    code, told = root.run(image.user(), env, image.probe())
    assert code == 0, told
    ends(dev, "dev")
    say("dev ran a workflow with the server of the lite image")


def check_that_a_missing_library_is_found(folder, small, image):
    root = Root(folder, {"stepfleet": small})
    next(root.folder.rglob("libgcc_s.so.1")).unlink()
    code, told = root.run(image.user(), image.env(), image.command())
    assert code != 0 and "libgcc_s.so.1" in told, told


def main(program):
    image, lite = Image(DOCKERFILE, "final"), Image(DOCKERFILE, "lite")
    assert image.base == lite.base == "gcr.io/distroless/cc-debian12:nonroot" and image.user() == "65532:65532"
    check_build()
    started = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch)
        small = stripped(program, folder)
        check_size(small, program)
        try:
            check_plain(Root(folder / "plain", {"stepfleet": small}), image, started)
            check_that_a_missing_library_is_found(folder / "broken", small, image)
            # What the Dockerfile copies beside the program; the server here may be another build than that of the image.
            programs = {"stepfleet": small, "valkey-server": SERVER}
            copied = {pathlib.Path(path).name for path in lite.copied()}
            assert "valkey-server" in copied, copied
            check_lite(Root(folder / "lite", programs, copied), lite, started)
        finally:
            for process in started:
                kill(process)


if __name__ == "__main__":
    main(sys.argv[1])
