"""Submits Dramatiq's jobs, pipelines and groups, and measures them on an idle system."""
from dramatiq import Message, group, pipeline
from dramatiq_app import last, noop, results, stamp
from drive import CHAIN, PAYLOAD, WIDTH, run


def ten_steps() -> pipeline:
    def behind(actor: object) -> Message:
        return actor.message_with_options(args=(PAYLOAD,), pipe_ignore=True)

    return pipeline([noop.message(PAYLOAD), *(behind(noop) for _ in range(CHAIN - 2)), behind(last)])


def jobs(count: int) -> None:
    for _ in range(count):
        noop.send(PAYLOAD)


def chains(count: int) -> None:
    for _ in range(count):
        ten_steps().run()


def fanouts(count: int) -> None:
    """Dramatiq has no step before a group: the first is sent beside it, which flatters the figure."""
    for _ in range(count):
        noop.send(PAYLOAD)
        wide = group([noop.message(PAYLOAD) for _ in range(WIDTH)])
        wide.add_completion_callback(last.message(PAYLOAD))
        wide.run()


def one_job() -> int:
    return stamp.send(PAYLOAD).get_result(backend=results, block=True, timeout=10_000)


def one_chain() -> None:
    ten_steps().run().get_result(block=True, timeout=20_000)


run({"jobs": jobs, "chains": chains, "fanouts": fanouts}, {"jobs": one_job, "chains": one_chain})
