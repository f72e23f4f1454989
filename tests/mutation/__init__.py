"""Mutation testing: small faults are put into the code that everything rests on, and the tests have to notice them.

`make mutants` runs it. See README.md beside this file.
"""
