"""Celery with Redis as broker and result backend; no events, no remote control."""
import redis
from celery import Celery
from drive import DONE, URL, now_ns

app = Celery("bench", broker=f"{URL}/0", backend=f"{URL}/0")
app.conf.update(
    task_serializer="json",
    result_serializer="json",
    accept_content=["json"],
    worker_enable_remote_control=False,
    worker_send_task_events=False,
    broker_connection_retry_on_startup=True,
    broker_pool_limit=10,
    redis_socket_keepalive=True,
    result_extended=False,
)
count = redis.Redis.from_url(URL)


@app.task(name="noop")
def noop(*_before: object) -> str:
    return "ok"


@app.task(name="stamp")
def stamp(_payload: str) -> int:
    return now_ns()


@app.task(name="last")
def last(*_before: object) -> str:
    count.incr(DONE)
    return "ok"
