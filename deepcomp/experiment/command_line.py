"""What all commands share: a parser and one place where errors become one line on standard error."""

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator

from deepcomp.errors import DeepcompError, printable


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line and exit status 2."""

    def error(self, message: str):
        program = self.prog.split()[0]  # A subcommand's own program name has the subcommand behind it.
        self.exit(2, f"{program}: {printable(message)} (see {program} --help)\n")


@contextlib.contextmanager
def one_line_errors(program: str, install: str, interrupted: str = "interrupted") -> Iterator[None]:
    """End the process with one line on standard error, and no traceback, where a user's error or Ctrl-C is met.

    A `DeepcompError`, a file that the system refuses, too little memory and a missing package, of which `install` says
    how to get it, give exit status 2. Ctrl-C gives exit status 130 and the text `interrupted`.
    """
    try:
        yield
    except DeepcompError as error:
        _end(program, str(error), 2)
    except BrokenPipeError:  # whoever read the output, like `head`, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        where = f"{error.filename}: " if error.filename is not None else ""
        _end(program, f"{where}{error.strerror or error}.", 2)
    except MemoryError as error:
        _end(program, f"there is not enough memory. {error}", 2)
    except ModuleNotFoundError as error:
        _end(program, f"this needs the package {error.name}: {install}.", 2)
    except KeyboardInterrupt:
        print(file=sys.stderr)
        _end(program, f"{interrupted}.", 130)


def _end(program: str, text: str, status: int) -> None:
    print(f"{program}: {printable(' '.join(text.split()))}", file=sys.stderr)
    sys.exit(status)
