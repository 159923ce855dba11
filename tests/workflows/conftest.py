"""Tests that need a browser are collected where there is one."""

from tests.browser import CHROMIUM

collect_ignore = [] if CHROMIUM else ["test_report_in_browser.py"]
