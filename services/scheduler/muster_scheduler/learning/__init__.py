"""How long tasks take, learned from how long they took: pure, like placement.

`Foresight` is what a leader holds: it remembers outcomes, answers with predicted times, and says
when a new model is due. `train` makes one; it takes seconds, so the shell calls it elsewhere and
hands what comes back to `Foresight.install`.
"""
