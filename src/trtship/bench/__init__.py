"""Candidates and peers, timed side by side on one GPU, in one run; nobody wins by being wrong."""

from trtship.bench.bench import bench
from trtship.bench.report import BenchReport, Ratio, Row

__all__ = ["BenchReport", "Ratio", "Row", "bench"]
