"""The command line: flags to calls, and nothing computed here.

o1core prune                                   the embedded model, on generated arithmetic, in minutes
o1core prune --model DIR --data FILE --out RUN your checkpoint on your problems
o1core study compare                           all methods side by side; also disharmony, lambda, difficulty
o1core report RUN                              a page of a run or a study
"""

from .entry import main, parser

__all__ = ["main", "parser"]
