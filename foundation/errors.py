"""Errors that a user can put right, and how a command reports them."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable


class DataError(ValueError):
    """Something is wrong with a user's data or settings; the message is one line: file, field, remedy.

    Attributes:
        exit_status: of a command that ends with it.
    """

    exit_status = 2

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class DownloadError(DataError):
    """A data set is not cached and could not be fetched."""

    exit_status = 3


def run_command(main: Callable[[], object]) -> None:
    """Runs a command; a `DataError` or `OSError` becomes one line on stderr and exit status 2 (3: see `DownloadError`).

    Ctrl-C becomes one line and exit status 130.
    """
    try:
        main()
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_status) from None
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(DataError.exit_status) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(128 + signal.SIGINT) from None
