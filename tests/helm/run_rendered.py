"""Runs what the chart renders: the command, arguments, variables and files of each pod, as local processes.

Each container becomes a process in a root of its own that has the program, the system's libraries and the mounted
volumes, and is otherwise read-only; all are in a network of their own, in which the names of the Services lead to this
host. So ports and paths are those of the chart. There is no image, no kubelet and no Kubernetes in it.

Needs STEPFLEET_PROGRAM, STEPFLEET_TEST_SERVER (a Valkey or Redis), HELM4, HELM3 and Linux namespaces (`unshare`).
"""

import base64
import contextlib
import ctypes
import fcntl
import hashlib
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

# What a distribution has that the programs are linked with, its certificates, and a shell for the chart's own Valkey.
SYSTEM = ["/usr", "/bin", "/lib", "/lib64", "/dev", "/proc", "/etc/ssl"]
TOKEN = "sf_0123456789abcdef0123456789abcdef"
START_SECONDS = 60
# The exit code of the command line for it.
NOT_ALLOWED = 6


def fail(text):
    sys.exit(f"run-rendered: {text}")


def in_namespaces():
    """Begins again with mounts and a network of its own."""
    if os.environ.get("STEPFLEET_IN_NAMESPACES"):
        return
    os.environ["STEPFLEET_IN_NAMESPACES"] = "1"
    unshare = ["unshare", "--mount", "--net"] + ([] if os.geteuid() == 0 else ["--map-root-user"])
    if subprocess.run([*unshare, "true"], check=False, capture_output=True).returncode != 0:
        fail("this system gives no namespaces; hint: run it as root, or allow user namespaces")
    os.execvp(unshare[0], [*unshare, sys.executable, "-B", *sys.argv])


def loopback_up():
    with socket.socket() as any_socket:
        fcntl.ioctl(any_socket, 0x8914, struct.pack("16sh14s", b"lo", 0x1 | 0x40, b""))


def mount(source, target, kind="", options=""):
    command = ["mount"] + (["-t", kind] if kind else []) + (["-o", options] if options else [])
    subprocess.run([*command, source, str(target)], check=True)


class Pod:
    """One container as a process."""

    def __init__(self, folder, thing, secrets, configs, names):
        self.name = thing["metadata"]["name"]
        self.spec = thing["spec"].get("template", {}).get("spec") or thing["spec"]
        self.claims = thing["spec"].get("volumeClaimTemplates", [])
        self.container = self.spec["containers"][0]
        self.secrets, self.configs = secrets, configs
        self.root = folder / self.name
        self.process = None
        self.log = open(folder / f"{self.name}.log", "w+", encoding="utf-8")
        self.build(names)

    def build(self, names):
        self.root.mkdir()
        mount("none", self.root, "tmpfs")
        for path in map(pathlib.Path, SYSTEM):
            inside = self.root / path.relative_to("/")
            if path.is_symlink():
                inside.symlink_to(os.readlink(path))
            elif path.exists():
                inside.mkdir(parents=True)
                mount(path, inside, options="rbind")
        (self.root / "etc").mkdir(exist_ok=True)
        (self.root / "etc/hosts").write_text("".join(f"127.0.0.1 {name}\n" for name in ["localhost", *names]))
        (self.root / "etc/nsswitch.conf").write_text("hosts: files\n")
        (self.root / "opt").mkdir()
        for name, path in (("stepfleet", "STEPFLEET_PROGRAM"), ("valkey-server", "STEPFLEET_TEST_SERVER")):
            shutil.copy(os.environ[path], self.root / "opt" / name)
        client = shutil.which("valkey-cli") or shutil.which("redis-cli")
        if client:
            (self.root / "opt/valkey-cli").symlink_to(client)
        mounts = self.container["volumeMounts"]
        for mounted in mounts:
            (self.root / mounted["mountPath"].lstrip("/")).mkdir(parents=True, exist_ok=True)
        for mounted in mounts:
            self.fill(mounted["name"], self.root / mounted["mountPath"].lstrip("/"), mounted.get("readOnly", False))
        assert self.container["securityContext"]["readOnlyRootFilesystem"]
        subprocess.run(["mount", "-o", "remount,ro", str(self.root)], check=True)

    def fill(self, name, path, read_only):
        mount("none", path, "tmpfs")
        if not any(claim["metadata"]["name"] == name for claim in self.claims):
            volume = next(volume for volume in self.spec["volumes"] if volume["name"] == name)
            for file, content in self.files(volume).items():
                (path / file).write_bytes(content)
                os.chown(path / file, self.uid(), self.uid())
                os.chmod(path / file, 0o440)
        os.chown(path, self.uid(), self.uid())
        if read_only:
            subprocess.run(["mount", "-o", "remount,ro", str(path)], check=True)

    def files(self, volume):
        if "configMap" in volume:
            return {name: text.encode() for name, text in self.configs[volume["configMap"]["name"]].items()}
        if "secret" in volume:
            secret = self.secrets[volume["secret"]["secretName"]]
            return {item["path"]: secret[item["key"]].encode() for item in volume["secret"]["items"]}
        assert "emptyDir" in volume, volume
        return {}

    def uid(self):
        return self.spec["securityContext"]["runAsUser"] if os.environ.get("STEPFLEET_IS_ROOT") else 0

    def environment(self):
        """As the kubelet makes it: in order, `$(NAME)` standing for what came before."""
        known = {"PATH": "/opt:/usr/local/bin:/usr/bin:/bin"}
        for given in self.container.get("env", []):
            source = given.get("valueFrom", {})
            if "secretKeyRef" in source:
                value = self.secrets[source["secretKeyRef"]["name"]][source["secretKeyRef"]["key"]]
            elif "fieldRef" in source:
                value = f"{self.name}-0"
            else:
                value = re.sub(r"\$\((\w+)\)", lambda found: known.get(found[1], found[0]), given["value"])
            known[given["name"]] = value
        return known

    def enter(self):
        os.chroot(self.root)
        os.chdir("/")
        if self.uid():
            os.setgroups([])
            os.setgid(self.uid())
            os.setuid(self.uid())
        # No process outlives this one.
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)

    def run(self, command, **options):
        program = f"/opt/{command[0]}" if (self.root / "opt" / command[0]).exists() else command[0]
        return subprocess.Popen([program, *command[1:]], env=self.environment(), preexec_fn=self.enter, **options)

    def start(self):
        command = self.container.get("command", ["stepfleet"]) + self.container.get("args", [])
        self.process = self.run(command, stdout=self.log, stderr=self.log)

    def said(self):
        self.log.flush()
        self.log.seek(0)
        return self.log.read()[-4000:]

    def probe(self, what):
        probe = self.container[what]
        ports = {port["name"]: port["containerPort"] for port in self.container["ports"]}
        if "exec" in probe:
            return self.run(probe["exec"]["command"], stdout=self.log, stderr=self.log).wait(10) == 0
        try:
            if "tcpSocket" in probe:
                socket.create_connection(("127.0.0.1", ports[probe["tcpSocket"]["port"]]), 2).close()
                return True
            get = probe["httpGet"]
            with urllib.request.urlopen(f"http://127.0.0.1:{ports[get['port']]}{get['path']}", timeout=5) as answer:
                return answer.status == 200
        except (OSError, urllib.error.URLError):
            return False

    def wait(self):
        for what in ("startupProbe", "readinessProbe", "livenessProbe"):
            until = time.monotonic() + START_SECONDS
            while not self.probe(what):
                if self.process.poll() is not None or time.monotonic() > until:
                    fail(f"{self.name}: {what} did not pass; it said:\n{self.said()}")
                time.sleep(0.2)

    def stop(self):
        """As the kubelet does, with the grace of the pod; the exit code must be 0."""
        self.process.send_signal(signal.SIGTERM)
        grace = self.spec["terminationGracePeriodSeconds"]
        try:
            code = self.process.wait(grace)
        except subprocess.TimeoutExpired:
            fail(f"{self.name} did not leave within {grace} s; it said:\n{self.said()}")
        if code != 0:
            fail(f"{self.name} left with {code}; it said:\n{self.said()}")


def main():
    import chart

    if pathlib.Path("/proc/self/uid_map").read_text(encoding="ascii").split()[2] != "1":
        os.environ["STEPFLEET_IS_ROOT"] = "1"  # And so there are other users to become.
    loopback_up()
    values = {
        "redis": {"existingSecret": ""},
        "valkey": {"enabled": True},
        "api": {"enabled": True, "tokensSecret": "tokens", "testTokenSecret": "test-token"},
        "workers": {"default": {"drainTimeoutSeconds": 5}},
    }
    things = chart.render(values)
    digest = hashlib.sha256(TOKEN.encode()).hexdigest()
    tokens = {"tokens": [{"name": "helm-test", "role": "operator", "sha256": digest}]}
    secrets = {"tokens": {"tokens.yaml": json.dumps(tokens)}, "test-token": {"token": TOKEN}}
    for thing in (thing for thing in things if thing["kind"] == "Secret"):
        data = {key: base64.b64decode(value).decode() for key, value in thing["data"].items()}
        secrets[thing["metadata"]["name"]] = data
    configs = {thing["metadata"]["name"]: thing["data"] for thing in things if thing["kind"] == "ConfigMap"}
    names = [thing["metadata"]["name"] for thing in things if thing["kind"] == "Service"]
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        top = pathlib.Path(folder)
        mount("none", top, "tmpfs")
        stack.callback(subprocess.run, ["umount", "-R", "-l", str(top)], check=False)

        def pod(kind, name):
            return Pod(top, chart.of(things, kind, name), secrets, configs, names)

        pods = [pod("StatefulSet", "valkey"), pod("Deployment", "coordinator"), pod("Deployment", "worker-default")]
        for each in pods:
            each.start()
            each.wait()
            print(f"run-rendered: {each.name} is ready")
        test = pod("Pod", "-test")
        test.start()
        if test.process.wait(180) != 0:
            fail(f"helm test failed:\n{test.said()}\n{pods[1].said()}")
        print("run-rendered: helm test passes")
        secrets["test-token"] = {"token": f"{TOKEN}0"}
        (top / "stranger").mkdir()
        stranger = Pod(top / "stranger", chart.of(things, "Pod", "-test"), secrets, configs, names)
        stranger.start()
        if stranger.process.wait(180) != NOT_ALLOWED:
            fail(f"the API let a token in that nobody has:\n{stranger.said()}")
        print("run-rendered: helm test fails with the token of a stranger")
        for each in reversed(pods):
            each.stop()
            print(f"run-rendered: {each.name} left with 0 after SIGTERM")


if __name__ == "__main__":
    in_namespaces()
    main()
