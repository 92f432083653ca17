#!/usr/bin/env python3
"""A minimal Stepfleet worker: docs/protocol.md in practice, for one server (no Cluster).

    pip install redis msgpack lz4
    python worker.py redis://127.0.0.1:6379 default
"""
import binascii, os, secrets, signal, socket, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
import lz4.block, msgpack, redis

PREFIX, GROUP, SLOTS, INLINE_MAX = "sf:", "workers", 8, 8192
RECENT = []  # (monotonic time, partition, commands, job ids) of what was written in the last minute


class Failure(Exception):
    """What a handler raises to choose the category: transient, rate_limited, system, data or permanent."""
    def __init__(self, category, message, **more):
        super().__init__(message)
        self.wire = {"category": category, "message": message[:4096], **more}


# Handlers: (input, job) -> output. `job["stop"]` is a threading.Event: set when the attempt should stop.
HANDLERS = {"noop": lambda _, job: None, "echo": lambda value, job: value,
            "sleep": lambda value, job: job["stop"].wait(value["seconds"]) and None}


def tags():
    by_slot, number, left = [None] * 4096, 0, 4096
    while left:
        text, rest = "", number
        while True:
            text, rest = "0123456789abcdefghijklmnopqrstuvwxyz"[rest % 36] + text, rest // 36
            if rest == 0: break
        number, slot = number + 1, binascii.crc_hqx(text.encode(), 0) % 16384
        if slot % 4 == 0 and by_slot[slot // 4] is None:
            by_slot[slot // 4], left = text, left - 1
    return [by_slot[int(f"{p:012b}"[::-1], 2)] for p in range(4096)]


TAGS = tags()
key = lambda p, rest: f"{PREFIX}{{{TAGS[p]}}}:{rest}"


def encode(message):
    plain = msgpack.packb(message)
    packed = lz4.block.compress(plain) if len(plain) > 1024 else plain  # the length, u32 little-endian, comes first
    return {"z": packed} if len(packed) < len(plain) else {"m": plain}


def decode(fields):
    plain = lz4.block.decompress(fields[b"z"]) if b"z" in fields else fields[b"m"]
    return msgpack.unpackb(plain)


class Worker:
    def __init__(self, url, queues):
        self.redis, self.queues = redis.Redis.from_url(url, protocol=2), queues
        self.id = f"{socket.gethostname()[:40]}@{secrets.token_hex(6)}"
        self.held, self.cancelled, self.streams, self.partitions = {}, set(), {}, 0
        self.beats, self.since, self.run_id, self.read_at = 0, 0, None, time.monotonic()
        self.free, self.drain, self.pool = threading.Semaphore(SLOTS), threading.Event(), ThreadPoolExecutor(SLOTS)

    def follow_partitions(self):
        """Makes the streams and groups of partitions that are new, and tells their owners of the queues."""
        count = int(self.redis.hget(PREFIX + "meta", "partitions") or 0)
        for p in range(self.partitions, count):
            for queue in self.queues:
                pipe = self.redis.pipeline(transaction=True)
                pipe.sadd(key(p, "queues"), queue).xgroup_create(key(p, f"jobs:{queue}"), GROUP, id="0", mkstream=True)
                replies = pipe.execute(raise_on_error=False)
                if isinstance(replies[1], Exception) and "BUSYGROUP" not in str(replies[1]): raise replies[1]
                self.streams[key(p, f"jobs:{queue}").encode()] = (p, queue)
        new, self.partitions = count > self.partitions, max(count, self.partitions)
        return new

    def write(self, p, commands, jobs=()):
        """One MULTI on the server of the log, again and again until it is acknowledged: the owner ignores doubles."""
        while True:
            try:
                pipe = self.redis.pipeline(transaction=True)
                for command in commands: pipe.execute_command(*command)
                pipe.execute()
                break
            except redis.RedisError as error:
                print("not written, trying again:", error, file=sys.stderr)
                time.sleep(0.5)
        if jobs: RECENT.append((time.monotonic(), p, commands, jobs))

    def log(self, p, kind, body, values=(), jobs=()):
        (field, data), = encode({"v": 1, "body": {kind: {"worker": self.id, **body}}}).items()
        sets = [("SET", key(p, f"value:{i}"), value) for i, value in values]
        self.write(p, sets + [("XADD", key(p, "log"), "*", field, data)], jobs)

    def report(self, p, of, outcome, run_ms=0):
        values, (kind, content) = [], next(iter(outcome.items())) if isinstance(outcome, dict) else (outcome, None)
        if kind == "completed" and content is not None:
            data = msgpack.packb(content)
            outcome = {"completed": {"inline": data}}
            if len(data) > INLINE_MAX:
                values, outcome = [(of["job"], data)], {"completed": {"ref": {"id": of["job"], "bytes": len(data)}}}
        self.log(p, "results", {"results": [{"of": of, "run_ms": run_ms, "outcome": outcome}]}, values, [of["job"]])
        self.held.pop(of["job"], None)

    def run(self, p, job, of):
        begun, cause, timers = time.monotonic(), job["cause"], []
        job["begun"] = begun
        def stop(why):
            cause.append(why)
            job["stop"].set()
        def started():
            if of["job"] in self.held and job["begun"]: self.log(p, "started", {"jobs": [[of, 1000]]})
        if job["timeout_ms"]: timers.append(threading.Timer(job["timeout_ms"] / 1000, stop, ["timeout"]))
        timers.append(threading.Timer(1.0, started))
        for timer in timers: timer.start()
        try:
            value, given = None, job.get("input", "none")
            if given != "none":
                payload = given["whole"]
                data = payload["inline"] if "inline" in payload else self.redis.get(key(p, f"value:{payload['ref']['id']}"))
                if data is None: raise Failure("data", "the input is gone", code="input_missing")
                value = msgpack.unpackb(data)
            outcome = {"completed": HANDLERS[job["handler"]](value, job)}
        except Failure as failure:
            outcome = {"failed": failure.wire}
        except Exception as error:
            outcome = {"failed": {"category": "transient", "message": f"{type(error).__name__}: {error}"[:4096]}}
        if cause:  # what a handler returns after it was told to stop is not used
            outcome = {"cancelled": "cancelled", "drain": {"returned": "drain"}, "timeout":
                       {"failed": {"category": "timeout", "code": "timeout", "message": "ran past its limit"}}}[cause[0]]
        for timer in timers: timer.cancel()
        self.report(p, of, outcome, int((time.monotonic() - begun) * 1000))
        self.free.release()

    def take(self, stream, entry, fields, slot):
        """Runs a job, or hands it back. True if it uses the slot."""
        (p, queue), job = self.streams[stream], decode(fields)
        of = {"job": job["id"], "run": job["run"], "index": job["index"], "queue": queue, "entry": entry.decode()}
        if job["id"] in self.held: return False
        job.update(stop=threading.Event(), cause=[], begun=None)
        self.held[job["id"]] = {"p": p, "of": of, "job": job}
        outcome = None
        if job["id"] in self.cancelled: outcome = "cancelled"
        elif job["v"] > 1 or job["handler"] not in HANDLERS: outcome = {"returned": "no_handler"}
        elif self.drain.is_set(): outcome = {"returned": "drain"}
        elif not slot: outcome = {"returned": "surplus"}
        if outcome is None:
            self.pool.submit(self.run, p, job, of)
            return True
        # Without the wait a job that nobody here can do would come back at once.
        threading.Timer(1.0 if outcome == {"returned": "no_handler"} else 0, self.report, [p, of, outcome]).start()
        return False

    def cancel(self, jobs):
        self.cancelled.update(jobs)
        for held in [self.held[j] for j in jobs if j in self.held]:
            held["job"]["cause"].append("cancelled")
            held["job"]["stop"].set()

    def beat(self):
        if time.monotonic() - self.read_at > 15: return  # a worker that cannot read must not seem alive
        now, names = time.monotonic(), list(self.held.items())
        held = [{"job": j, "partition": h["p"], "queue": h["of"]["queue"], "entry": h["of"]["entry"],
                 **({"running_ms": int((now - h["job"]["begun"]) * 1000)} if h["job"]["begun"] else {})} for j, h in names]
        beat = {"v": 1, "read_age_ms": int((now - self.read_at) * 1000), "phase": "draining" if self.drain.is_set() else "running",
                "slots": SLOTS, "queues": self.queues, "handlers": sorted(HANDLERS), "version": "example",
                "host": socket.gethostname(), "pid": os.getpid(), "held": held}
        self.beats, self.since = self.beats + 1, self.since or int(time.time() * 1000)
        own = PREFIX + "worker:" + self.id
        self.redis.pipeline().hset(own, mapping={"n": self.beats, "beat": msgpack.packb(beat)}).pexpire(own, 86_400_000).execute()
        self.redis.zadd(PREFIX + "workers", {self.id: self.since})
        for p in {h["p"] for _, h in names}:  # a message on a channel may be lost
            mine = [j for j, h in names if h["p"] == p]
            flags = self.redis.execute_command("SMISMEMBER", key(p, "cancels"), *mine)
            self.cancel([j for j, flag in zip(mine, flags) if flag])
        RECENT[:] = [r for r in RECENT if now - r[0] < 60]
        run_id = self.redis.info("server")["run_id"]
        if self.run_id not in (None, run_id):  # another server: it may lack what was written lately
            for _, p, commands, jobs in list(RECENT): self.write(p, commands)
        self.run_id = run_id

    def background(self):
        """Beats every ten seconds, and hears control messages in between."""
        ears, heard, next_beat = None, 0, 0
        while True:
            try:
                if time.monotonic() >= next_beat:
                    self.beat()
                    next_beat = time.monotonic() + 10
                if ears is None or heard < self.partitions:
                    ears, heard = ears or self.redis.pubsub(), self.partitions
                    ears.ssubscribe(PREFIX + "control:" + self.id, *[key(p, "control") for p in range(heard)])
                message = ears.get_message(timeout=0.5)
                if message and message["type"] == "smessage":
                    control = msgpack.unpackb(message["data"])
                    if control == "drain": self.drain.set()
                    elif "cancel" in control: self.cancel(control["cancel"])
            except redis.RedisError as error:
                ears, heard = None, 0
                print("beat:", error, file=sys.stderr)
                time.sleep(0.5)

    def work(self):
        pending, looked = True, -10
        while not self.drain.is_set():
            try:
                if time.monotonic() - looked > 10:
                    pending, looked = self.follow_partitions() or pending, time.monotonic()
                if not self.streams:
                    looked = time.sleep(0.5) or -10
                    continue
                if pending:  # jobs whose reply was lost with a connection
                    written = {j for r in RECENT for j in r[3]}
                    for stream in self.streams:
                        for _, entries in self.redis.xreadgroup(GROUP, self.id, {stream: "0"}, count=1000):
                            for entry, fields in entries:
                                if fields and decode(fields)["id"] not in written and decode(fields)["id"] not in self.held:
                                    slot = self.free.acquire(blocking=False)
                                    if not self.take(stream, entry, fields, slot) and slot: self.free.release()
                    pending = False
                if not self.free.acquire(timeout=5):  # all slots are busy: prove that reading works
                    self.redis.xreadgroup(GROUP, self.id, {next(iter(self.streams)): "0"}, count=1)
                    self.read_at = time.monotonic()
                    continue
                slots = 1
                while slots < SLOTS and self.free.acquire(blocking=False): slots += 1
                try:  # COUNT is for each stream
                    found = self.redis.xreadgroup(GROUP, self.id, {s: ">" for s in self.streams},
                                                  count=max(1, slots // len(self.streams)), block=1000)
                    self.read_at = time.monotonic()
                    for stream, entries in found:
                        for entry, fields in entries:
                            slots -= self.take(stream, entry, fields, slots > 0)
                finally:
                    for _ in range(slots): self.free.release()
            except redis.RedisError as error:
                pending = True
                if "NOGROUP" in str(error): self.partitions, looked = 0, -10
                print("read:", error, file=sys.stderr)
                time.sleep(0.5)

    def leave(self):
        """Lets running jobs finish, hands back what does not, and leaves the registry."""
        until = time.monotonic() + 25
        while self.held and time.monotonic() < until: time.sleep(0.05)
        for held in list(self.held.values()):
            held["job"]["cause"].append("drain")
            held["job"]["stop"].set()
        self.pool.shutdown()
        while self.held: time.sleep(0.05)
        self.redis.zrem(PREFIX + "workers", self.id)
        self.redis.delete(PREFIX + "worker:" + self.id)


if __name__ == "__main__":
    worker = Worker(sys.argv[1], sys.argv[2:] or ["default"])
    signal.signal(signal.SIGTERM, lambda *_: worker.drain.set())
    signal.signal(signal.SIGINT, lambda *_: worker.drain.set())
    threading.Thread(target=worker.background, daemon=True).start()
    worker.work()
    worker.leave()
