"""The command line: typer commands, their options, and the tables that they print.

Imports everything else, and only when a command works. Nothing imports it.
"""
