"""Submits Celery's jobs, chains and chords, and measures them on an idle system."""
from celery import chain, chord
from celery.canvas import Signature
from celery_app import app, last, noop, stamp
from drive import CHAIN, PAYLOAD, WIDTH, run


def ten_steps() -> Signature:
    return chain(*([noop.si(PAYLOAD)] * (CHAIN - 1)), last.si(PAYLOAD))


def jobs(count: int) -> None:
    with app.producer_pool.acquire(block=True) as producer:
        for _ in range(count):
            noop.apply_async((PAYLOAD,), producer=producer)


def chains(count: int) -> None:
    for _ in range(count):
        ten_steps().apply_async()


def fanouts(count: int) -> None:
    for _ in range(count):
        chain(noop.si(PAYLOAD), chord([noop.si(PAYLOAD)] * WIDTH, last.si(PAYLOAD))).apply_async()


def one_job() -> int:
    return stamp.delay(PAYLOAD).get(timeout=10)


def one_chain() -> None:
    ten_steps().apply_async().get(timeout=20)


run({"jobs": jobs, "chains": chains, "fanouts": fanouts}, {"jobs": one_job, "chains": one_chain})
