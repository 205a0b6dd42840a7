"""Other processes, for benchmarks that wait for a quiet machine."""


class Watch:
    """Says in turn how busy others were."""

    def __init__(self, shares):
        self._shares = iter(shares)

    def __call__(self):
        return self

    def share(self):
        return next(self._shares)
