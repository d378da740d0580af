"""What an operation costs on a device: latencies measured, read from a file or declared, and energy.

In: chains of operations. Out: milliseconds, millijoules. Read `latency.py` first.
"""
