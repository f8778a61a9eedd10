"""`--precision auto`: every candidate is built, verified and timed, and the fastest that passes is shipped."""

from trtship.deployment.search.searching import Found, search

__all__ = ["Found", "search"]
