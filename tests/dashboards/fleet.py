"""A real fleet on this machine, and a load in which everything happens that dashboards show.

One server, two coordinators, three workers (one is killed in the middle), and workflows that succeed, fail, are tried
again, run out of time, give up, are parked behind an open breaker, a limit and a paused queue, and wait for a worker
that nobody starts. Everything listens on loopback and is stopped at the end.
"""

import contextlib
import http.server
import json
import os
import pathlib
import re
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request

POLICIES = """
retry: {backoff: {base: 200ms, cap: 1s}}
targets:
  "bank": {failures: 3, break_for: 20s}
  "shop": {failures: 50, break_for: 5s}
limits:
  "handler:sleep": {concurrency: 6}
"""

WORKFLOWS = """
workflow: good
steps:
  fetch: {handler: sleep, with: {duration: 40ms}}
  left: {handler: noop, needs: [fetch]}
  right: {handler: noop, needs: [fetch], queue: bulk}
  store: {handler: sleep, needs: [left, right], with: {duration: 20ms}}
---
workflow: called
steps:
  call: {handler: http, with: {method: POST, url: "${{ input.url }}", idempotency: two-phase}}
---
workflow: recovers
steps:
  try: {handler: fail, with: {times: 1}}
---
workflow: exhausted
steps:
  try: {handler: fail, queue: bulk, retry: {max_attempts: 2}}
---
workflow: refused
steps:
  try: {handler: fail, with: {category: permanent, message: no}}
---
workflow: bad-input
steps:
  try: {handler: fail, with: {category: data, message: unreadable}}
---
workflow: slow-step
steps:
  wait: {handler: sleep, timeout: 300ms, retry: {max_attempts: 2}, with: {duration: 1h}}
---
workflow: slow-run
timeout: 2s
steps:
  wait: {handler: sleep, with: {duration: 1h}}
---
workflow: too-late
steps:
  wait: {handler: noop, queue: nobody, start_within: 1s}
---
workflow: unserved
steps:
  wait: {handler: noop, queue: nobody}
---
workflow: held
steps:
  wait: {handler: noop, queue: paused}
---
workflow: bank
steps:
  pay: {handler: fail, breaker: bank, retry: {max_attempts: 10}}
---
workflow: long
steps:
  wait: {handler: exec, with: {command: [sleep, "3"]}}
---
workflow: borne
steps:
  try: {handler: fail, on_failure: skip_dependents, with: {category: permanent}}
  skipped: {handler: noop, needs: [try]}
"""

# What an escalation is told to: it takes most of them and refuses those of one workflow for good.
ESCALATION = """#!/bin/sh
! grep -q '"workflow":"refused"'
"""


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class _Answer(http.server.BaseHTTPRequestHandler):
    def do_POST(self):  # noqa: N802, the name is given
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_):
        """Says nothing: what is asked here is told by the workers."""


class Fleet:
    """`targets` are the endpoints of the metrics as pairs of a job and `host:port`."""

    def __init__(self, folder, program, server):
        self.folder = pathlib.Path(folder)
        self.program = program
        self.server = server
        self.processes = []
        self.targets = []

    def _start(self, name, *command):
        with (self.folder / f"{name}.log").open("w") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        self.processes.append(process)
        return process

    def start(self):
        redis = free_port()
        data = self.folder / "server"
        data.mkdir()
        self._start(
            "server", self.server, "--port", str(redis), "--bind", "127.0.0.1", "--dir", str(data),
            "--appendonly", "yes", "--save", "", "--maxmemory", "256mb", "--maxmemory-policy", "noeviction",
        )
        wait_for(lambda: socket.create_connection(("127.0.0.1", redis), 1).close(), "the server")
        url = f"redis://127.0.0.1:{redis}"
        escalation = self.folder / "escalation"
        escalation.write_text(ESCALATION)
        escalation.chmod(0o755)
        for name in ("c1", "c2"):
            api, metrics = free_port(), free_port()
            self._start(
                name, self.program, "coordinator", "--redis", url, "--name", name, "--partitions", "4",
                "--listen", f"127.0.0.1:{api}", "--metrics-listen", f"127.0.0.1:{metrics}",
                "--escalation-command", str(escalation),
            )
            self.targets.append(("stepfleet-coordinator", f"127.0.0.1:{metrics}"))
            self.api = f"http://127.0.0.1:{api}/api/v1"
            wait_for(lambda address=metrics: ask(f"http://127.0.0.1:{address}/livez"), name)
        for name in ("w1", "w2", "w3"):
            health = free_port()
            worker = self._start(
                name, self.program, "worker", "--redis", url, "--name", name, "--queue", "default", "--queue", "bulk",
                "--queue", "paused", "--concurrency", "8", "--health-listen", f"127.0.0.1:{health}",
                "--drain-timeout", "2s",
            )
            if name == "w3":
                self.victim = worker
            else:
                self.targets.append(("stepfleet-worker", f"127.0.0.1:{health}"))
        wait_for(lambda: ask(f"http://{self.targets[0][1]}/readyz"), "an owner of every partition")

    def stop(self):
        """In the order in which it was not started, each by its own id."""
        for process in reversed(self.processes):
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def call(self, method, path, body=None):
        """A call of the API that must succeed, unless the state forbids it; the documents of the answer, one a line."""
        data = body.encode() if isinstance(body, str) else json.dumps(body or {}).encode()
        request = urllib.request.Request(self.api + path, data if method != "GET" else None, method=method)
        request.add_header("Content-Type", "application/yaml" if isinstance(body, str) else "application/json")
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return [json.loads(line) for line in answer.read().splitlines()]
        except urllib.error.HTTPError as error:
            if error.code == 409:
                return []
            raise SystemExit(f"{method} {path}: {error.code} {error.read().decode()}") from None

    def _submit(self, workflows, url):
        """A run of each, in one request; the id of the last."""
        lines = [json.dumps({"workflow": name, "input": {"url": url}}) for name in workflows]
        answers = self.call("POST", "/runs/bulk", "\n".join(lines))
        if refused := [answer["error"] for answer in answers if "run" not in answer]:
            raise SystemExit(f"a run was not taken: {refused[0]}")
        return answers[-1]["run"]["id"]

    def load(self, seconds):
        """About fifty runs a second with everything in them, for so long."""
        self.call("PUT", "/policies", POLICIES)
        for text in WORKFLOWS.split("---\n"):
            self.call("POST", "/workflows", text)
        self.call("POST", "/queues/paused/pause", {"reason": "to be seen"})
        partner = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Answer)
        threading.Thread(target=partner.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{partner.server_address[1]}/"
        names = [part.split("workflow: ")[1].split()[0] for part in WORKFLOWS.split("---\n")]
        replay = {"kind": "replay", "filter": {"cause": "exhausted"}, "rate": 20}
        events = [
            (seconds / 4, lambda: self.call("POST", f"/runs/{self._submit(['unserved'], url)}/suspend", {})),
            (seconds / 3, lambda: self._submit(["long"] * 24, url)),
            (seconds / 3 + 1, self.victim.kill),
            (seconds / 2, lambda: self.call("POST", "/campaigns", replay)),
        ]
        begin = time.monotonic()
        while (elapsed := time.monotonic() - begin) < seconds:
            self._submit(["good"] * 30 + ["called"] * 3 + ["recovers"] * 3 + names, url)
            while events and events[0][0] <= elapsed:
                events.pop(0)[1]()
            time.sleep(max(0, begin + elapsed + 1 - time.monotonic()))
        partner.shutdown()
        wait_for(self._loss_is_told, "the jobs of the killed worker", 60)

    def _loss_is_told(self):
        texts = [ask(f"http://{address}/metrics") for job, address in self.targets if job == "stepfleet-coordinator"]
        if not any(re.search(r"^stepfleet_jobs_lost_total [1-9]", text, re.MULTILINE) for text in texts):
            raise OSError("no coordinator has counted a lost job")


def ask(url):
    with urllib.request.urlopen(url, timeout=10) as answer:
        return answer.read().decode()


def wait_for(attempt, what, seconds=30):
    """Until `attempt` raises no error."""
    end = time.monotonic() + seconds
    while True:
        try:
            return attempt()
        except OSError as error:
            if time.monotonic() > end:
                raise SystemExit(f"waited {seconds} s for {what}: {error}") from None
            time.sleep(0.1)


@contextlib.contextmanager
def running(folder):
    """A fleet that is stopped at the end, whatever happens. Its logs are in the folder."""
    settings = {}
    for name, hint in (("STEPFLEET_PROGRAM", "cargo build"), ("STEPFLEET_TEST_SERVER", "make setup")):
        settings[name] = os.environ.get(name, "")
        if not os.access(settings[name], os.X_OK):
            raise SystemExit(f"{name} is `{settings[name]}` and must name a program; hint: {hint}")
    fleet = Fleet(folder, os.path.abspath(settings["STEPFLEET_PROGRAM"]), settings["STEPFLEET_TEST_SERVER"])
    try:
        fleet.start()
        yield fleet
    finally:
        fleet.stop()
