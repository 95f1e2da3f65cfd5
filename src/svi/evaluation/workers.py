"""Work spread over processes that end when their parent does. Knows nothing about what the work is."""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from svi.errors import UserError

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")

Task = TypeVar("Task")
Done = TypeVar("Done")


def spread(work: Callable[[Task], Done], tasks: Sequence[Task], jobs: int) -> Iterator[tuple[Task, Done]]:
    """Each task with what ``work`` made of it, as they are finished, over ``jobs`` processes that share the cores.

    Args:
        work: a function at the top of a module; it and its tasks travel to other processes.

    Raises:
        UserError: where a process died; what is finished has been given out.
        KeyboardInterrupt: when stopped; what is under way is not waited for.
    """
    threads = max(1, (os.cpu_count() or 1) // jobs)
    context = multiprocessing.get_context("spawn")
    with _threads_of_children(threads), ProcessPoolExecutor(jobs, context, _begin, (threads,)) as pool:
        try:
            waiting = {pool.submit(work, task): task for task in tasks}
            for future in as_completed(waiting):
                yield waiting[future], future.result()
        except BrokenProcessPool:
            raise UserError(
                "a process died, perhaps for want of memory: what is finished is kept; run it again with fewer --jobs"
            ) from None
        except BaseException as error:
            pool.shutdown(wait=False, cancel_futures=True)
            if not isinstance(error, Exception):
                for process in multiprocessing.active_children():
                    process.terminate()
            raise


@contextlib.contextmanager
def _threads_of_children(threads: int) -> Iterator[None]:
    """Environment of the processes that are started inside: numpy reads its thread count when it is imported."""
    before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(threads)))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _begin(threads: int) -> None:
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent ends its children
    torch.set_num_threads(threads)
    parent = multiprocessing.parent_process()
    if parent is not None:  # a worker whose parent was killed would wait for work for ever

        def follow() -> None:
            multiprocessing.connection.wait([parent.sentinel])
            os._exit(1)

        threading.Thread(target=follow, daemon=True).start()
