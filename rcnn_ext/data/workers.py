"""The processes that read images for a data loader: signals, and their death."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from rcnn_ext.errors import UserError

# None on Windows.
_SIGCHLD: Any = getattr(signal, "SIGCHLD", None)


def leave_signals_to_main(worker: int) -> None:
    """Let a worker survive what stops a run, since the main process still needs it until it saves.

    Terminals send SIGINT, and batch systems SIGTERM, to all processes of a run. A second SIGTERM
    ends the worker, as that by which the main process ends one that does not answer.
    """

    def survive(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, survive)


class DelayedWorkerDeath:
    """Let PyTorch tell of a worker that died between two steps only.

    Its handler of SIGCHLD raises wherever the main thread is, also half way through a step, of
    which nothing could be saved then.
    """

    def __init__(self) -> None:
        self._handler: Any = None
        self._died = False

    def wait(self) -> None:
        """Put off what the handler does, until :meth:`tell` or :meth:`restore`."""
        if _SIGCHLD is None or threading.current_thread() is not threading.main_thread():
            return
        before = signal.getsignal(_SIGCHLD)
        if callable(before) and before != self._note:
            self._handler = before
            signal.signal(_SIGCHLD, self._note)

    def tell(self) -> None:
        """Do what was put off.

        Raises:
            RuntimeError: A worker has died.
        """
        handler = self._handler
        self.restore()
        if self._died and handler is not None:
            self._died = False
            handler(_SIGCHLD, None)

    def restore(self) -> None:
        """Put the handler back."""
        if self._handler is not None:
            signal.signal(_SIGCHLD, self._handler)
            self._handler = None

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._died = True


def _comes_from_loader(error: BaseException) -> bool:
    """Return whether an exception was raised while batches came from workers."""
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_globals.get("__name__", "").startswith("torch.utils.data."):
            return True
        trace = trace.tb_next
    return False


@contextmanager
def named_worker_death(advice: Callable[[], str] = str) -> Iterator[None]:
    """Say what it means when a worker dies, which PyTorch reports as a ``RuntimeError``.

    Args:
        advice: Returns how to go on, as the end of the message.

    Raises:
        UserError: A worker was killed.
    """
    try:
        yield
    except (RuntimeError, ConnectionError, EOFError) as error:
        text = str(error).partition("\n")[0]
        # A worker that dies while it hands over a batch leaves half of it, or a closed connection.
        is_told = isinstance(error, RuntimeError) and text.startswith("DataLoader worker")
        is_cut = not isinstance(error, RuntimeError) and _comes_from_loader(error)
        if not (is_told or is_cut):
            raise
        raise UserError(
            "a process that reads images was killed, as the system does where memory is short; "
            "data.workers=0 or fewer workers need less, and containers may lack shared memory"
            f" ({text.strip()}){advice()}"
        ) from error
