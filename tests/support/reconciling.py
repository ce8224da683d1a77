"""A reconciler on a fake cluster, with the real planning: for tests of what it comes to."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sluice_api import names
from sluice_operator.planning import plan_service
from sluice_operator.reconcile import Planner, Reconciler
from sluice_operator.state import Key, Learnt, Observed, Platform, Wanted
from sluice_operator.steps import Event
from sluice_operator.store import Store
from tests.support.fake_cluster import FakeCluster

KEY = Key("team", "minilm")
PLATFORM = Platform(
    namespace="sluice-system",
    gateway_url="http://sluice-gateway.sluice-system",
    gateway_labels={names.APP_NAME: "sluice", names.COMPONENT: "gateway"},
    worker_image="worker:1",
    worker_image_gpu="worker-gpu:1",
)


class FixedScaling:
    """Wants the same number of every revision there is, or should be."""

    def __init__(self, desired: int) -> None:
        self.desired = desired
        self.removed: list[Key] = []

    def decide(self, observed: Observed, now: float) -> Mapping[str, Wanted]:
        return _Any(Wanted(self.desired, "arrivals", "the test says so"))

    def learnt(self, key: Key) -> Learnt:
        return Learnt()

    def remove(self, key: Key) -> None:
        self.removed.append(key)


class _Any(dict[str, Wanted]):
    def __init__(self, wanted: Wanted) -> None:
        super().__init__()
        self._wanted = wanted

    def get(self, key: str, default: Any = None) -> Any:
        return self._wanted

    def __getitem__(self, key: str) -> Wanted:
        return self._wanted

    def __contains__(self, key: object) -> bool:
        return True


@dataclass
class World:
    """A cluster, and one operator process after the other that works on it."""

    cluster: FakeCluster = field(default_factory=FakeCluster)
    scaling: FixedScaling = field(default_factory=lambda: FixedScaling(2))
    platform: Platform = PLATFORM
    plan: Planner = plan_service
    events: list[Event] = field(default_factory=list)
    watched: dict[Key, Mapping[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.store = Store()
        self.reconciler = self._process()

    def restart(self) -> None:
        """Another process: it remembers nothing, and sees everything."""
        self.store = Store()
        self.cluster.show(self.store)
        self.reconciler = self._process()

    def _process(self) -> Reconciler:
        return Reconciler(
            store=self.store,
            scaling=self.scaling,
            plan=self.plan,
            writer=self.cluster,
            platform=lambda: self.platform,
            announce=lambda _, event: self.events.append(event),
            watch_stuck=lambda key, pods, _: self.watched.__setitem__(key, pods),
        )

    async def settle(self, passes: int = 20) -> int:
        """Reconcile until nothing is written any more; how many passes that took."""
        for number in range(passes):
            self.cluster.show(self.store)
            written = len(self.cluster.writes)
            await self.reconciler.reconcile(KEY)
            if len(self.cluster.writes) == written:
                return number
        raise AssertionError(f"not settled after {passes} passes: {self.cluster.writes[-10:]}")


def settle(world: World) -> int:
    return asyncio.run(world.settle())
