"""A process that is stopped and goes on (a paused container, a suspended machine) takes that for no signal of its own."""

from __future__ import annotations

import os
import signal
import time

from rotator.runtime.daemon import LOOK
from rotator.sandbox.lab import Lab, end, wait_for


def test_a_daemon_that_was_paused_goes_on_and_still_ends_when_told() -> None:
    with Lab(lease="30s") as lab:
        lab.connect("graf")
        lab.write()
        lab.adopt()
        daemon = lab.start()
        for _ in range(3):
            os.kill(daemon.pid, signal.SIGSTOP)
            time.sleep(1.5 * LOOK)  # past the deadline of its main loop's wait: that is what is tried here
            os.kill(daemon.pid, signal.SIGCONT)
            wait_for(lambda: lab.api("GET", "/readyz").status_code == 200, "the daemon to be ready again")
        assert daemon.poll() is None, lab.logs()[-1000:]
        assert '"event": "signal"' not in lab.logs()
        assert end(daemon) == 0
        assert '"name": "SIGTERM"' in lab.logs()
