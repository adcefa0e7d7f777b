"""Launcher ``hydra/launcher=ray``: cells as tasks of a Ray cluster, or of a Ray started for this sweep.

Ray restarts a task whose worker or node died (``max_retries``), gives every task its devices through
``CUDA_VISIBLE_DEVICES``, and places a task where ``num_cpus`` and ``num_gpus`` are free.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from hydra.core.utils import JobReturn

from q2n.launchers.base import Job, Lost, WorkerLauncher, say
from q2n.launchers.workers import Worker


class RayLauncher(WorkerLauncher):
    """Launcher of one Ray task per cell.

    Raises:
        ValueError: a setting is below its least value.
    """

    package = "ray"

    def __init__(
        self,
        address: str | None = None,
        num_cpus: int = 1,
        num_gpus: float | None = None,
        max_retries: int = 1,
    ) -> None:
        for key, value, least in (("num_cpus", num_cpus, 1), ("max_retries", max_retries, 0)):
            if value < least:
                raise ValueError(f"hydra.launcher.{key}={value}: must be at least {least}")
        self.address, self.num_cpus, self.num_gpus = address, num_cpus, num_gpus
        self.max_retries = max_retries

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[int, JobReturn | Lost]]:
        """Submit one task per job, and yield results as they come."""
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no usage statistics are sent
        import ray

        worker = Worker(self.num_cpus)
        started = not ray.is_initialized()
        if started:
            own = self.address in (None, "local") and not os.environ.get("RAY_ADDRESS")
            # Only these variables of the environment are passed on: Ray shows them on its dashboard.
            ray.init(
                address=self.address,
                runtime_env={"env_vars": worker.environment()},
                include_dashboard=False if own else None,
                log_to_driver=False,
                logging_level="warning",
            )
        try:
            total = ray.cluster_resources()
            gpus = self.num_gpus if self.num_gpus is not None else float(total.get("GPU", 0) > 0)
            each = f"{self.num_cpus} CPUs, {gpus:g} GPUs"
            say(f"{len(jobs)} cells on {len(ray.nodes())} nodes of Ray, each: {each}")
            limits = {"max_retries": self.max_retries, "max_calls": 1}
            task = ray.remote(num_cpus=self.num_cpus, num_gpus=gpus, **limits)(_work)
            running = {task.remote(job, worker): job.number for job in jobs}
            while running:
                (done, *_), _ = ray.wait(list(running), num_returns=1)
                number = running.pop(done)
                try:
                    node, result = ray.get(done)
                    say(f"#{number} ran on node {node[:8]}")
                    yield number, result
                except ray.exceptions.RayError as error:
                    yield number, Lost(" ".join(str(error).split()))
        finally:
            if started:
                ray.shutdown()


def _work(job: Job, worker: Worker) -> tuple[str, JobReturn]:
    import ray

    return ray.get_runtime_context().get_node_id(), job.run(worker)
