#!/usr/bin/env python3
"""Submits one run straight to the log and waits for it: docs/protocol.md in practice. `worker.py` must be beside it.

    python submit.py redis://127.0.0.1:6379 '{"workflow": "hello", "steps": {"a": {"handler": "echo", "with": "hi"}}}'

Nothing checks the workflow here. Ordinary clients use the HTTP API, which does.
"""
import hashlib, json, secrets, sys, time, uuid
import lz4.block, msgpack, redis
from worker import PREFIX, encode, key

STATES = "created queued processing waiting completed failed retrying suspended cancelled skipped".split()


def run_id(partition):
    """A UUIDv7 whose 12 bits of rand_a are the partition."""
    high = int(time.time() * 1000) << 16 | 0x7000 | partition
    return uuid.UUID(int=high << 64 | 0x8 << 60 | secrets.randbits(62))


def submit(r, workflow, value=None, run=None, again=False):
    partition = run.int >> 64 & 0xfff if run else secrets.randbelow(int(r.hget(PREFIX + "meta", "partitions")))
    run, command, plain = run or run_id(partition), uuid.uuid4(), msgpack.packb(workflow)
    plan = hashlib.sha256(plain).hexdigest()[:32]
    new = {"run": run.bytes, "plan": plan}
    if value is not None: new["input"] = {"inline": msgpack.packb(value)}  # above 8 KiB: a reference
    body = {"id": command.bytes, "actor": "example", "runs": [new], **({"again": True} if again else {})}
    (field, data), = encode({"v": 1, "body": {"submit": body}}).items()
    pipe = r.pipeline(transaction=True)
    pipe.set(key(partition, f"plan:{plan}"), lz4.block.compress(plain), nx=True)
    pipe.xadd(key(partition, "log"), {field: data})
    pipe.execute()
    until = time.monotonic() + 5
    while time.monotonic() < until:  # or SSUBSCRIBE to the partition's `replies` channel
        if reply := r.get(key(partition, f"reply:{command}")):
            return run, partition, msgpack.unpackb(reply)["answers"][0]
        time.sleep(0.01)
    return run, partition, None  # in the log all the same


if __name__ == "__main__":
    r = redis.Redis.from_url(sys.argv[1], protocol=2)
    run, partition, answer = submit(r, json.loads(sys.argv[2]), json.loads(sys.argv[3]) if len(sys.argv) > 3 else None)
    print(run, answer)
    while True:  # byte 1 of the record is the state
        record = r.hget(key(partition, f"run:{run}"), "r")
        if record and STATES[record[1]] in ("completed", "failed", "suspended", "cancelled"):
            sys.exit(print(STATES[record[1]]) or STATES[record[1]] != "completed")
        time.sleep(0.02)
