"""Measurements that print a table with the machine: `python -m benchmarks.<name>`. Never part of the tests."""
