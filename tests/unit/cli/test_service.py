"""What a service knows and wants, with moved time and workers that are only told about."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from sluice_api import names, wire
from sluice_api.inference_service import InferenceService
from sluice_api.tasks import Task
from sluice_cli.up.exits import Exit
from sluice_cli.up.instances import Phase
from sluice_cli.up.plan import Start, plan_instances
from sluice_cli.up.service import LocalService, revision_in, template_of
from sluice_cli.up.settings import LogLevel
from sluice_cli.up.state import Learnt, StateFolder
from sluice_cli.up.status import row_of
from sluice_cli.up.view import PlainView
from sluice_cli.up.worker import Worker
from tests.support.fleets import PLENTY
from tests.support.up_process import manifest

CREATED = 1_795_680_000


def _spec(name: str = "m", **spec: object) -> InferenceService:
    return InferenceService.model_validate(manifest(name, **spec))


@pytest.fixture
def state(tmp_path: Path) -> Iterator[StateFolder]:
    with StateFolder(tmp_path) as folder:
        yield folder


@pytest.fixture
def service(state: StateFolder) -> LocalService:
    return LocalService(_spec(), state, PlainView(LogLevel.WARNING), 0.0, created=CREATED)


def _add(service: LocalService, *, template: str = "", digest: str = "sha256:1") -> Worker:
    """A worker that says it is ready."""
    name, number = service.next_name()
    template = template or template_of(service.spec)
    environment = service.environment(template)
    worker = Worker(name, number, template, environment, f"http://w:{number}", "http://a")
    worker.readiness = wire.Readiness(
        phase=wire.Phase.READY,
        model="m",
        revision=worker.revision,
        answer_digest=digest,
        tasks=[Task.EMBEDDINGS],
    )
    worker.begin(Phase.READY)
    worker.ready_at = worker.since
    service.workers[name] = worker
    return worker


def _demand(sequence: int = 1, gateway: str = "g", **counts: object) -> wire.Demand:
    return wire.Demand(
        sequence=sequence,
        gateway=gateway,
        namespace="default",
        service="m",
        revision="r",
        interval_seconds=1.0,
        **counts,  # type: ignore[arg-type]
    )


def test_the_template_follows_what_a_running_worker_cannot_take_over() -> None:
    base = template_of(_spec())
    for unchanged in (
        {"scaling": {"maxReplicas": 9}},
        {"cache": {"ttl": "5s"}},
        {"limits": {"timeout": "5s"}},
        {"access": {"public": False}},
    ):
        assert template_of(_spec(**unchanged)) == base
    batching = template_of(_spec(batching={"maxSize": 4}))
    assert batching != base
    assert revision_in(batching) == revision_in(base)
    other = template_of(_spec(hardware={"device": "gpu"}))
    assert revision_in(other) != revision_in(base)


def test_a_new_service_wants_its_initial_replicas(service: LocalService) -> None:
    service.decide(1.0)
    assert service.wanted().replicas == {service.template: 1}
    assert row_of(service).state == "waiting"


def test_what_a_worker_tells_is_remembered_and_stays_in_the_table(
    service: LocalService, state: StateFolder
) -> None:
    service.decide(1.0)
    service.promote(template_of(service.spec))
    worker = _add(service)
    service.take_note(2.0)
    entry = service.entry()
    assert entry is not None
    assert (entry.answer_digest, entry.tasks) == ("sha256:1", [Task.EMBEDDINGS])
    assert entry.created == CREATED
    assert entry.endpoints == [wire.Endpoint(url=worker.url, revision=worker.revision)]
    worker.begin(Phase.LEAVING)
    entry = service.entry()
    assert entry is not None
    assert (entry.answer_digest, entry.endpoints) == ("sha256:1", [])
    assert state.recall(worker.revision) == Learnt("sha256:1", [Task.EMBEDDINGS])


def test_the_newest_worker_tells_what_is_on_disk_now(
    state: StateFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    service = LocalService(_spec(), state, PlainView(LogLevel.INFO), 0.0, created=CREATED)
    service.promote(template_of(service.spec))
    old = _add(service, digest="sha256:old")
    service.take_note(1.0)
    new = _add(service, digest="sha256:new")
    service.take_note(2.0)
    outdated = {i.name: i.outdated for i in service.fleet(2.0).instances}
    assert outdated == {old.name: True, new.name: False}
    entry = service.entry()
    assert entry is not None
    assert entry.answer_digest == "sha256:new"
    assert "or what Sluice makes of it, has changed: its old" in capsys.readouterr().err


def test_a_worker_that_ended_unasked_is_counted_and_shown(
    service: LocalService, capsys: pytest.CaptureFixture[str]
) -> None:
    service.decide(0.5)
    service.promote(template_of(service.spec))
    for number in (1, 2, 3):
        worker = _add(service)
        worker.phase, worker.ready_at = Phase.STARTING, None
        worker.exit = Exit(names.EXIT_MODEL_NOT_FOUND, "no such folder")
        service.take_note(float(number))
        service.decide(float(number))
    assert service.workers == {}
    row = row_of(service)
    assert row.state == "ModelNotFound"
    assert row.decision == "ModelNotFound, exit code 64: no such folder"
    service.plan = plan_instances(service.wanted(), service.fleet(3.5), PLENTY, 3.5)
    assert service.plan.actions == []
    assert row_of(service).decision.endswith("folder · restart in 2 s, after 3 crashes")
    assert "restart in 2 s" in capsys.readouterr().err
    later = plan_instances(service.wanted(), service.fleet(5.1), PLENTY, 5.1)
    assert [type(action) for action in later.actions] == [Start]


def _fail(service: LocalService, ended: Exit, now: float) -> None:
    """A worker ends before it was ready."""
    worker = _add(service)
    worker.phase, worker.ready_at, worker.exit = Phase.STARTING, None, ended
    service.take_note(now)
    service.decide(now)


def _told(service: LocalService) -> wire.Failure | None:
    entry = service.entry()
    assert entry is not None
    return entry.failure


def test_callers_are_told_of_a_model_that_cannot_be_loaded_until_one_is_ready(
    service: LocalService,
) -> None:
    service.decide(0.5)
    service.promote(template_of(service.spec))
    assert _told(service) is None
    _fail(service, Exit(names.EXIT_MODEL_NOT_FOUND, "no folder /srv/secret/models"), 1.0)
    assert _told(service) == wire.Failure(
        reason="ModelNotFound",
        message=f"There is no model at {service.spec.spec.model.uri}.",
        retry_after_seconds=1.0,
    )
    for second in (2.0, 3.0, 4.0):
        _fail(service, Exit(names.EXIT_MODEL_NOT_FOUND), second)
    failure = _told(service)
    assert failure is not None
    assert failure.retry_after_seconds == 4.0
    _add(service)
    service.take_note(5.0)
    assert _told(service) is None


def test_one_crash_may_be_an_accident_and_two_are_told(service: LocalService) -> None:
    service.decide(0.5)
    service.promote(template_of(service.spec))
    _fail(service, Exit(-9), 1.0)
    assert _told(service) is None
    _fail(service, Exit(1, "Traceback in /srv/app.py"), 2.0)
    failure = _told(service)
    assert failure is not None
    assert failure.reason == "CrashLoop"
    assert "/srv" not in failure.message


def test_a_failure_is_not_told_while_another_revision_may_still_answer(
    service: LocalService,
) -> None:
    old = template_of(service.spec)
    service.decide(0.5)
    service.promote(old)
    service.change(_spec(model={"uri": "python://nowhere"}), 1.0)
    service.decide(1.0)
    assert service.template is not None
    service.note_crash("m-1", service.template, Exit(names.EXIT_MODEL_NOT_FOUND), 0.0, 2.0)
    assert _told(service) is None
    assert service.failure is not None
    service.note_crash("m-2", old, Exit(names.EXIT_MODEL_REJECTED), 0.0, 3.0)
    failure = _told(service)
    assert failure is not None
    assert "python://nowhere" in failure.message
    service.change(service.spec, 4.0)
    assert _told(service) is None, "a change is a new chance"


def test_a_service_that_sleeps_after_a_failure_is_asleep_and_may_be_asked(
    state: StateFolder,
) -> None:
    service = LocalService(
        *(_spec(scaling={"initialReplicas": 0}), state, PlainView(LogLevel.WARNING), 0.0),
        created=CREATED,
    )
    service.decide(0.5)
    service.promote(template_of(service.spec))
    _fail(service, Exit(names.EXIT_MODEL_NOT_FOUND), 1.0)
    assert _told(service) is None
    assert (row_of(service).state, service.settled) == ("asleep", True)


def test_an_end_that_was_asked_for_is_no_crash(service: LocalService) -> None:
    worker = _add(service)
    worker.begin(Phase.STOPPING)
    worker.exit = Exit(0)
    service.take_note(1.0)
    assert service.workers == {}
    assert service.failure is None
    assert service.fleet(1.0).crashes == {}


def test_a_changed_revision_is_wanted_beside_the_one_that_serves(service: LocalService) -> None:
    old = template_of(service.spec)
    service.decide(1.0)
    service.promote(old)
    _add(service)
    service.take_note(2.0)
    service.change(_spec(model={"uri": "python://other"}), 3.0)
    service.decide(3.0)
    new = service.template
    assert new is not None
    assert service.wanted().replicas == {old: 1, new: 1}
    assert row_of(service).state == f"rolling out {revision_in(new)}"
    entry = service.entry()
    assert entry is not None
    assert entry.revision == revision_in(old)
    service.promote(new)
    entry = service.entry()
    assert entry is not None
    assert (entry.revision, entry.answer_digest) == (revision_in(new), "")


def test_rules_of_the_file_apply_while_the_old_revision_serves(service: LocalService) -> None:
    service.promote(template_of(service.spec))
    service.change(_spec(model={"uri": "python://other"}, cache={"ttl": "7s"}), 1.0)
    entry = service.entry()
    assert entry is not None
    assert entry.cache.ttl_seconds == 7.0


def test_a_removed_service_leaves_the_table_and_is_gone_with_its_last_worker(
    service: LocalService,
) -> None:
    service.promote(template_of(service.spec))
    worker = _add(service)
    service.remove()
    assert service.entry() is None
    assert service.wanted().revision is None
    assert (row_of(service).state, service.gone) == ("removing", False)
    worker.begin(Phase.STOPPING)
    worker.exit = Exit(0)
    service.take_note(1.0)
    assert service.gone


def test_figures_of_the_row(service: LocalService) -> None:
    assert (row_of(service).rate, row_of(service).hit_share) == (None, None)
    service.observe(_demand(1, arrivals=2, completions=2, service_seconds=0.1), 1.0)
    service.observe(_demand(2, arrivals=0, cache_hits=6, held=1, ready_endpoints=1), 2.0)
    row = row_of(service)
    assert (row.rate, row.hit_share, row.compute_seconds, row.held) == (4.0, 0.75, 0.05, 1)
    assert service.answers


def test_a_restarted_gateway_does_not_leave_its_old_self_unknown(service: LocalService) -> None:
    service.decide(0.0)
    _add(service)
    service.observe(_demand(1, gateway="old"), 0.0)
    for second in range(1, 20):
        service.observe(_demand(second, gateway="new"), float(second))
        service.decide(float(second))
    assert "silent" not in service.why
