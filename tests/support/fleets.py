"""Fleets for tests of the plan: builders, and what carrying out an action does to one."""

from dataclasses import replace

from sluice_cli.up.instances import Fleet, Instance, Phase, Room, Wanted
from sluice_cli.up.plan import Action, Kill, Plan, Promote, Retire, Start, Stop, plan_instances

PLENTY = Room(cores=100, memory=100)


def instance(
    number: int,
    revision: str = "a",
    phase: Phase = Phase.READY,
    since: float = 0.0,
    **facts: object,
) -> Instance:
    made = Instance(f"m-{number}", number, revision, phase, since)
    return replace(made, **facts)  # type: ignore[arg-type]


def wanted(
    revision: str | None = "a", replicas: int = 1, *, initial: int = 1, old: str = "old"
) -> Wanted:
    """``replicas`` of ``revision``, and of ``old`` while that serves."""
    numbers = {old: replicas} | ({revision: replicas} if revision else {})
    return Wanted(revision, numbers, initial, "demand")


def plan(wanted: Wanted, fleet: Fleet, *, room: Room = PLENTY, now: float = 1000.0) -> list[Action]:
    return plan_instances(wanted, fleet, room, now).actions


def carried_out(fleet: Fleet, actions: list[Action], now: float) -> Fleet:
    """The fleet once every action is done and nothing else has happened."""
    serving = fleet.serving
    instances = {i.name: i for i in fleet.instances}
    for action in actions:
        match action:
            case Start(revision, _):
                number = max((i.number for i in instances.values()), default=0) + 1
                instances[f"m-{number}"] = instance(number, revision, Phase.STARTING, now)
            case Promote(revision, _):
                serving = revision
            case Retire(name, _):
                instances[name] = replace(instances[name], phase=Phase.LEAVING, since=now)
            case Stop(name, _):
                instances[name] = replace(instances[name], phase=Phase.STOPPING, since=now)
            case Kill(name, _):
                instances[name] = replace(instances[name], phase=Phase.KILLED, since=now)
    return Fleet(serving, tuple(instances.values()), fleet.crashes)


def room_after(room: Room, result: Plan) -> Room:
    """What is left of ``room`` once the plan's starts have taken theirs."""
    starts = sum(isinstance(action, Start) for action in result.actions)
    return Room(room.cores - starts, room.memory - starts)
