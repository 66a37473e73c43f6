"""Judges cases in child processes: a case that crashes or hangs one of them is noticed, and the others are judged."""

import multiprocessing
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

ENDS = ("crash", "hang")


class Judged(NamedTuple):
    """A case; what its judge answered, or None; one of `ENDS` in its place, and the exit status; seconds since."""

    case: Any
    answer: Any
    end: str = ""
    detail: str = ""
    seconds: float = 0.0


def run(
    prepare: Callable[..., Callable[[Any], Any]],
    terms: tuple,
    cases: Sequence[Any],
    workers: int,
    patience: float,
    chunk: int,
) -> Iterator[Judged]:
    """Judge cases, in any order. `prepare(*terms)` makes a child's judge, which takes a case and gives an answer.

    patience: seconds until a case counts as hung; chunk: cases for one child. A child that crashes or hangs is replaced
    by one that goes on after the case at which it did.
    """
    waiting = deque(cases[start : start + chunk] for start in range(0, len(cases), chunk))
    children: list[_Child] = []
    try:
        while waiting or children:
            while waiting and len(children) < workers:
                children.append(_Child(prepare, terms, waiting.popleft()))
            wait([child.connection for child in children], timeout=1)
            for child in list(children):
                for answer in child.answers():
                    yield Judged(child.cases.popleft(), answer)
                end = child.end(patience)
                if end:
                    children.remove(child)
                    child.stop()
                if end in ENDS:  # of the case that it was at; another child does the others
                    detail = f"exit status {child.process.exitcode}"
                    yield Judged(child.cases.popleft(), None, end, detail, time.monotonic() - child.heard)
                    waiting.extendleft([[*child.cases]] if child.cases else [])
    finally:
        for child in children:
            child.stop()


class _Child:
    """A child process, the cases that it has not answered for, and when it last answered."""

    def __init__(self, prepare: Callable, terms: tuple, cases: Sequence[Any]):
        self.cases = deque(cases)
        self.heard, self.started, self.gone = time.monotonic(), False, False
        spawn = multiprocessing.get_context("spawn")
        self.connection, theirs = spawn.Pipe(duplex=False)
        self.process = spawn.Process(target=_serve, args=(theirs, prepare, terms, [*cases]), daemon=True)
        self.process.start()
        theirs.close()

    def answers(self) -> Iterator[Any]:
        """What it has said since."""
        try:
            while self.connection.poll():
                answer = self.connection.recv()
                self.heard = time.monotonic()
                if self.started:
                    yield answer
                self.started = True
        except EOFError:
            self.gone = True

    def end(self, patience: float) -> str:
        """How it ended: done, crash or hang; nothing if it is at work."""
        if not self.cases:
            return "done"
        if self.gone and not self.started:
            raise RuntimeError("A child process ended before its first case.")
        if self.gone:
            return "crash"
        return "hang" if self.started and time.monotonic() - self.heard > patience else ""

    def stop(self) -> None:
        """End it, at work or not."""
        if not self.gone:
            self.process.kill()
        self.process.join()
        self.connection.close()


def _serve(answers: Connection, prepare: Callable, terms: tuple, cases: list) -> None:
    """A child: first it says that it is ready, then one answer for each case."""
    judge = prepare(*terms)
    answers.send(None)
    for case in cases:
        answers.send(judge(case))
