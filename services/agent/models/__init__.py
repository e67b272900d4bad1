"""Models: what answers. Each speaks `services.agent.models.base.Model`."""
