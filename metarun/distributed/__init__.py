"""Shares the tasks of a run among several processes: starts and joins them, and adds up their results."""
