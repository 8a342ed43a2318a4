"""The paper's benchmarks: WikiText-103, Long Range Arena and ETT, one file a task, and the run over them.

May import: everything but job, publish and command.
"""
