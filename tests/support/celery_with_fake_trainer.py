"""A real worker process that starts the fake trainer. The product has no setting for the trainer's command, so tests start this script."""

from __future__ import annotations

import sys

from server.settings import load_settings
from tests.support.training_rig import FAKE_TRAINER
from worker.celery_app import run

if __name__ == "__main__":
    sys.exit(run(load_settings(), command=FAKE_TRAINER))
