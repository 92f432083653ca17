"""Dramatiq on Redis, with results and group callbacks, without the Prometheus middleware."""
import dramatiq
import redis
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import GroupCallbacks
from dramatiq.rate_limits.backends import RedisBackend as LimitBackend
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend
from drive import DONE, URL, now_ns

broker = RedisBroker(url=URL)
broker.middleware[:] = [part for part in broker.middleware if type(part).__name__ != "Prometheus"]
results = RedisBackend(url=URL)
broker.add_middleware(Results(backend=results))
broker.add_middleware(GroupCallbacks(LimitBackend(url=URL)))
dramatiq.set_broker(broker)
count = redis.Redis.from_url(URL)


@dramatiq.actor(store_results=True)
def noop(*_before: object) -> str:
    return "ok"


@dramatiq.actor(store_results=True)
def stamp(*_before: object) -> int:
    return now_ns()


@dramatiq.actor(store_results=True)
def last(*_before: object) -> str:
    count.incr(DONE)
    return "ok"
