"""The facts that must be the same everywhere in the project, and those that must never occur."""

import re
import subprocess
import tomllib
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml

import channels_zmq
import channels_zmq_forwarder
import channels_zmq_operator

ROOT = Path(__file__).parents[2]


def test_there_is_one_version() -> None:
    """All distributions, packages and images have one version, as do the library's dependency and the changelog."""
    version = channels_zmq.__version__
    for folder in (".", "forwarder", "operator"):
        assert tomllib.loads((ROOT / folder / "pyproject.toml").read_text())["project"]["version"] == version
    assert channels_zmq_forwarder.__version__ == channels_zmq_operator.__version__ == version
    library = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"channels-zmq-forwarder=={version}" in library["dependencies"]
    assert f"[{version}]" in (ROOT / "CHANGELOG.md").read_text()
    for dockerfile in ("forwarder/Dockerfile", "operator/Dockerfile", "examples/chat/Dockerfile"):
        text = (ROOT / dockerfile).read_text()
        assert f'org.opencontainers.image.version="{version}"' in text
        assert set(re.findall(r":(\d+\.\d+\.\d+)", text)) == {version}
    manifest = (ROOT / "examples" / "chat" / "kubernetes.yaml").read_text()
    assert set(re.findall(r"image: channels-zmq-chat:(\S+)", manifest)) == {version}


def test_no_folder_shadows_a_module_of_pythons() -> None:
    """No `__init__.py` is in `operator/`, as it would shadow the standard library's `operator`, nor in the tests."""
    assert not (ROOT / "operator" / "__init__.py").exists()
    assert not list((ROOT / "tests").rglob("__init__.py"))


INSTALLER = r"\b(?:pip3?|pipx|uv|uvx|poetry|pdm|hatch|easy_install)(?: [^\n`]*)?[ '\"]"
FROM_THE_INDEX = re.compile(INSTALLER + r"channels[-_.]zmq(?:[-_.](?:forwarder|operator))?(?![\w./-])", re.IGNORECASE)


def test_a_command_that_fetches_another_projects_package_is_found() -> None:
    """The search of the next test finds commands that fetch our name from the index, and no others."""
    for command in (
        "pip install channels-zmq",
        "python -m pip install -U 'channels-zmq[encryption]'",
        "pip3 install Channels_ZMQ==0.1.0",
        "uv add channels-zmq-forwarder",
        "RUN pip install --no-cache-dir daphne channels-zmq",
    ):
        assert FROM_THE_INDEX.search(command), command
    for command in (
        "pip install ./forwarder .",
        "pip install dist/channels_zmq-0.1.0-py3-none-any.whl",
        "helm install channels-zmq charts/channels-zmq",
        "cd channels-zmq && pip install .",
    ):
        assert not FROM_THE_INDEX.search(command), command


def test_nothing_here_fetches_another_projects_package() -> None:
    """No page, message or script has a command that fetches our name from the package index.

    The index has a foreign project under that name.
    """
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    texts = {name: (ROOT / name).read_bytes().decode(errors="replace") for name in tracked.decode().split("\0")[:-1]}
    del texts["tests/contracts/test_project.py"]
    assert len(texts) > 100
    assert not {name: found.group() for name, text in texts.items() if (found := FROM_THE_INDEX.search(text))}


BOUND = re.compile(r"([a-z-]+)>=([0-9.]+)")


def lower_bounds(*folders: str) -> dict[str, str]:
    """Return the lower bounds of these folders' distributions; `forwarder[daemon]` is one with its extra."""
    lines: list[str] = []
    for folder, _, extra in (one.rstrip("]").partition("[") for one in folders):
        project = tomllib.loads((ROOT / folder / "pyproject.toml").read_text())["project"]
        lines += project["dependencies"] + (project["optional-dependencies"][extra] if extra else [])
    return {found[1]: found[2] for line in lines if (found := BOUND.match(line))}


def test_what_is_tested_as_the_lowest_versions_is_what_users_may_install() -> None:
    """`make test-lowest` uses exactly the lower bounds that the library and the forwarder declare."""
    locked = dict(
        re.findall(r"^([a-z-]+)==([0-9.]+)", (ROOT / "requirements" / "lowest.txt").read_text(), re.MULTILINE)
    )
    for name, bound in lower_bounds(".", "forwarder[daemon]").items():
        assert locked[name].removesuffix(".0") == bound.removesuffix(".0"), name


def test_requirement_files_repeat_the_bounds_of_the_distributions() -> None:
    """The `.in` files repeat the bounds of the distributions and nothing else.

    Requirement files are compiled from them, and they cannot read a `pyproject.toml`.
    """
    for name, folders in {
        "runtime": (".", "forwarder"),
        "forwarder": ("forwarder[daemon]", "forwarder[cli]"),
        "operator": ("operator",),
    }.items():
        given = dict(BOUND.findall((ROOT / "requirements" / f"{name}.in").read_text()))
        given.pop("django", None)  # Channels allows an older Django than the tested ones
        assert given == lower_bounds(*folders)


def test_the_operator_is_installed_into_a_namespace_of_its_own() -> None:
    """Every command of the docs installs the operator into a namespace of its own.

    The operator may read all Secrets, and so may users who create pods in its namespace.
    """
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "charts").rglob("*.md")]
    commands = [
        line
        for page in pages
        for line in page.read_text().splitlines()
        if re.match(r"(helm (install|test)|kubectl .* deployment/channels-zmq-)", line)
    ]
    assert len(commands) >= 5
    assert not [line for line in commands if "--namespace channels-zmq-system" not in line]


def test_the_chats_manifest_lets_no_other_site_open_its_sockets() -> None:
    """The chat's manifest allows only the hosts by which its pages are opened.

    The conversation of docs/kubernetes.md uses the Service's name.
    """
    (web,) = [
        one
        for one in yaml.safe_load_all((ROOT / "examples" / "chat" / "kubernetes.yaml").read_text())
        if (one["kind"], one["metadata"]["name"]) == ("Deployment", "chat-web")
    ]
    (container,) = web["spec"]["template"]["spec"]["containers"]
    (hosts,) = [one["value"].split(",") for one in container["env"] if one["name"] == "CHAT_ALLOWED_HOSTS"]
    assert hosts == ["localhost", "127.0.0.1", "chat-web"]
    assert "python conversation.py http://chat-web:8000" in (ROOT / "docs" / "kubernetes.md").read_text()


WORKFLOWS = {path.stem: yaml.safe_load(path.read_text()) for path in (ROOT / ".github" / "workflows").glob("*.yml")}


def uses(job: dict[str, Any], action: str) -> list[dict[str, Any]]:
    """Return the arguments of each step of a job that uses an action."""
    return [step["with"] for step in job["steps"] if step.get("uses", "").startswith(f"{action}@")]


def test_workflows_name_actions_by_commit_and_keep_no_credentials() -> None:
    """Workflows name actions by commit, since a tag can be moved, and checkouts keep no credentials.

    A job's commands could otherwise read the token that a checkout leaves behind.
    """
    for workflow in WORKFLOWS.values():
        for job in workflow["jobs"].values():
            for step in job["steps"]:
                if "uses" in step:
                    assert re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", step["uses"]), step
            for given in uses(job, "actions/checkout"):
                assert given["persist-credentials"] is False


def test_only_jobs_that_run_nothing_of_this_repository_may_write() -> None:
    """Only the jobs that attest and draft a release may write, each with its own permissions and without a checkout.

    A build could use such permissions for anything.
    """
    rights = {}
    for workflow in WORKFLOWS.values():
        assert workflow["permissions"] == {"contents": "read"}
        for name, job in workflow["jobs"].items():
            if "permissions" in job:
                rights[name] = job["permissions"]
                assert not uses(job, "actions/checkout")
    assert rights == {
        "attest": {"attestations": "write", "id-token": "write"},
        "release": {"contents": "write"},
    }


def test_a_release_has_what_is_built_and_attested_and_nothing_else() -> None:
    """A release has the attested sdists, wheels, lists of packages, images and chart, and nothing else.

    Each image is built from a pinned base, with its own list of packages and provenance.
    """
    jobs = WORKFLOWS["release"]["jobs"]
    assert "run: make distributions sbom" in (ROOT / ".github" / "workflows" / "release.yml").read_text()
    images = {one["dockerfile"] for one in jobs["images"]["strategy"]["matrix"]["include"]}
    (listed,) = re.findall(r"(?m)^DOCKERFILES := (.*)$", (ROOT / "Makefile").read_text())
    assert images == set(listed.split())
    assert "make base-images BASEFLAGS=--check" in [step.get("run") for step in jobs["images"]["steps"]]
    (image,) = uses(jobs["images"], "docker/build-push-action")
    assert image["sbom"] is True
    assert image["provenance"] == "mode=max"
    assert image["outputs"].startswith("type=oci,")
    assert image["platforms"] == "linux/amd64,linux/arm64"
    assert jobs["chart"]["needs"] == ["images"]
    assert "make chart-archive DIGESTS=" in jobs["chart"]["steps"][3]["run"]
    for name in ("distributions", "chart"):
        assert any("make project-url " in step.get("run", "") for step in jobs[name]["steps"])
    assert set(jobs["attest"]["needs"]) == {"distributions", "images", "chart"}
    assert jobs["release"]["needs"] == ["attest"]
    (attested,) = uses(jobs["attest"], "actions/download-artifact")
    assert uses(jobs["release"], "actions/download-artifact") == [attested]
    assert uses(jobs["attest"], "actions/attest-build-provenance") == [{"subject-path": "dist/*"}]
    for name in ("distributions", "images", "chart"):
        (built,) = uses(jobs[name], "actions/upload-artifact")
        assert fnmatch(built["name"], attested["pattern"])


def test_every_requirement_file_that_somebody_installs_is_audited() -> None:
    """Every requirement file but that of the lowest versions is audited, every week and with every change.

    The audit runs for each Python for which another Django is pinned.
    """
    files = {path.stem for path in (ROOT / "requirements").glob("*.txt")} - {"lowest"}
    (audited,) = re.findall(r"(?m)^LOCKS := (.*)$", (ROOT / "Makefile").read_text())
    assert set(audited.split()) == files
    events = WORKFLOWS["audit"][True]  # YAML 1.1 reads the key `on` as a boolean
    assert events["schedule"]
    for event in ("push", "pull_request"):
        assert "requirements/**" in events[event]["paths"]
    (job,) = WORKFLOWS["audit"]["jobs"].values()
    assert job["strategy"]["matrix"]["python"] == ["3.11", "3.13"]
    assert job["steps"][-1]["run"] == "make audit UV="


def test_versions_and_systems_that_are_promised_are_tested() -> None:
    """The workflow has a job for each version and system that a classifier of the library names."""
    classifiers = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["classifiers"]
    jobs = WORKFLOWS["ci"]["jobs"]
    matrix = jobs["test"]["strategy"]["matrix"]
    for prefix, tested in (("Framework :: Django :: ", matrix["django"]), ("Python :: 3.", matrix["python"])):
        promised = {one.rpartition(" :: ")[2] for one in classifiers if prefix in one}
        assert promised == set(tested)
    systems = {one.rpartition(" :: ")[2].lower() for one in classifiers if one.startswith("Operating System")}
    machines = [jobs["test"]["runs-on"].replace("ubuntu", "linux"), *jobs["systems"]["strategy"]["matrix"]["system"]]
    assert {one.partition("-")[0] for one in machines} == systems
