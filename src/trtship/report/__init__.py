"""`report.html`: what is known of a bundle, on one page that needs nothing else."""

from trtship.report.evidence import StageTime
from trtship.report.page import render
from trtship.report.write import record_bench, report_file, verify_bundle, write_report

__all__ = ["StageTime", "record_bench", "render", "report_file", "verify_bundle", "write_report"]
