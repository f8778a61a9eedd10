"""`python -m trtship` is the command `trtship`."""

import sys

from trtship.cli import stop


def main() -> int:
    """Run the command of this process; signals are handled before anything else is imported."""
    stop.install()
    try:
        from trtship.cli.main import main as run
    except (Exception, KeyboardInterrupt):
        if not stop.stops:  # packages turn an interrupt into an ImportError, for one
            raise
        print(f"error: {stop.cancelled()}", file=sys.stderr)
        return stop.leave(stop.cancelled().exit_code)
    return run()


if __name__ == "__main__":
    raise SystemExit(main())
