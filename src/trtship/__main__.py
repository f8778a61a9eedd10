"""`python -m trtship` is the command `trtship`."""

from trtship.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
