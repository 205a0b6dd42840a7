"""TensorBoard's scalars, written by the thread that has them."""

import os
import time
from pathlib import Path

from kdjax.runtime.closing import Closing


class Events(Closing):
    """A file of TensorBoard events.

    Deviation from tensorboardX's SummaryWriter: that one writes in a thread, which ends
    with a traceback when the disk is full, and whose queue then blocks for ever.
    """

    def __init__(self, folder: Path):
        """Makes the folder and opens a file in it."""
        from tensorboardX.event_file_writer import EventsWriter

        folder.mkdir(parents=True, exist_ok=True)
        self._writer = EventsWriter(os.path.join(folder, "events"))

    def add_scalar(self, name: str, value: float, step: int) -> None:
        """Writes one figure."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import scalar

        summary = scalar(name, value)
        self._writer.write_event(
            Event(wall_time=time.time(), step=step, summary=summary)
        )

    def flush(self) -> None:
        """Hands all figures so far to the system."""
        self._writer.flush()

    def close(self) -> None:
        """Closes the file."""
        self._writer.close()
