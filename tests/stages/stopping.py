"""A runner for one stage that can be stopped and continued."""

from nqs_sae_service.engine.devices import HOST
from nqs_sae_service.engine.ranks import ALONE
from nqs_sae_service.errors import Stopped
from nqs_sae_service.service.checkpoint import load_checkpoint, save_checkpoint


class Context:
    """It keeps its checkpoint in a file, and stops at a tick that is asked for; ``ticks`` says what it was told."""

    ranks = ALONE

    def __init__(self, spec, upstream, checkpoint=None, stop_at=None, device=HOST):
        self.spec, self.upstream, self.checkpoint, self.stop_at = spec, upstream, checkpoint, stop_at
        self.device, self.ticks = device, []

    def tick(self, done, total, message="", state=None):
        assert 0 <= done <= total
        self.ticks.append((done, total, message))
        if len(self.ticks) == self.stop_at:
            if state is not None:
                save_checkpoint(self.checkpoint, state())
            raise Stopped

    def restore(self):
        return load_checkpoint(self.checkpoint) if self.checkpoint else None
