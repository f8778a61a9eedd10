"""Candidates and peers, timed side by side on one GPU, in one run; nobody wins by being wrong."""

from trtship.bench.bench import BenchReport, Row, bench

__all__ = ["BenchReport", "Row", "bench"]
