"""What a job's specification may hold, and what it must not."""

import shlex

import pytest

from cluster.credentials import check_names, is_secret_name, redact, refuse_secret_text, refuse_secrets
from cluster.errors import ClusterError
from cluster.job_spec import LEFT_BEHIND, job_spec

SECRET = "wJalrXUtnFEMI/K7MDENG"


@pytest.mark.parametrize(
    "name",
    [
        *["AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "AWS_SESSION_TOKEN", "MLFLOW_TRACKING_TOKEN"],
        *["MLFLOW_TRACKING_PASSWORD", "RAY_AUTH_TOKEN", "AZURE_STORAGE_CONNECTION_STRING", "api_key"],
    ],
)
def test_a_variable_that_names_a_credential_is_refused_with_the_remedy(name: str) -> None:
    with pytest.raises(ClusterError, match=f"{name} .*--secret {name}") as refused:
        job_spec(["extract"], env={name: SECRET})
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize(
    "name", ["AWS_REGION", "AWS_ENDPOINT_URL", "RAY_AUTH_TOKEN_PATH", "TOKENIZERS_PARALLELISM", "STAGE"]
)
def test_a_variable_that_is_no_credential_passes(name: str) -> None:
    assert not is_secret_name(name)
    assert job_spec(["extract"], env={name: "x"}).runtime_env["env_vars"] == {name: "x"}


def test_a_runtime_environment_from_a_file_is_held_to_the_same_rule() -> None:
    with pytest.raises(ClusterError):
        refuse_secrets({"MLFLOW_TRACKING_PASSWORD": "x"})
    with pytest.raises(ClusterError):
        job_spec(["extract"], runtime_env={"env_vars": {"AWS_SESSION_TOKEN": "x"}})


@pytest.mark.parametrize("place", ["command", "env", "metadata"])
def test_the_value_of_a_local_credential_is_found_wherever_it_hides(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    with pytest.raises(ClusterError, match="value of AWS_SECRET_ACCESS_KEY") as refused:
        job_spec(
            ["extract", f"--key={SECRET}" if place == "command" else "videos"],
            env={"INNOCENT": SECRET} if place == "env" else None,
            metadata={"note": SECRET} if place == "metadata" else None,
        )
    assert SECRET not in str(refused.value)


def test_a_password_in_a_url_is_refused_and_hidden() -> None:
    with pytest.raises(ClusterError, match="URL with a password"):
        job_spec(["train", "--tracking", "https://me:hunter22@mlflow.example"])
    assert redact("see https://me:hunter22@mlflow.example/x") == "see https://***@mlflow.example/x"
    refuse_secret_text("s3://bucket/a@b:c")


def test_arguments_reach_the_cluster_as_they_were_typed() -> None:
    spec = job_spec(["extract", "s3://a b/*.mp4", "$(reboot)", "it's"])
    assert shlex.split(spec.entrypoint) == [
        "exec",
        "python",
        "-m",
        "workflows.cli",
        "extract",
        "s3://a b/*.mp4",
        "$(reboot)",
        "it's",
    ]


def test_what_a_directory_leaves_behind(tmp_path: object) -> None:
    spec = job_spec(["extract"], working_dir=str(tmp_path), runtime_env={"excludes": ["data/"]})
    assert spec.runtime_env["excludes"] == ["data/", *LEFT_BEHIND]
    assert {".git", ".env", ".aws"} <= set(LEFT_BEHIND)


def test_a_named_credential_is_a_name_and_nothing_else() -> None:
    assert check_names(["A_TOKEN", "A_TOKEN"]) == ("A_TOKEN",)
    for wrong in ["A_TOKEN=abc", "A TOKEN", "$(reboot)", ""]:
        with pytest.raises(ClusterError) as refused:
            job_spec(["extract"], needs=[wrong])
        assert "abc" not in str(refused.value)


@pytest.mark.parametrize(("command", "options"), [([], {}), (["extract"], {"working_dir": "/nowhere"})])
def test_what_cannot_run_is_refused_before_the_cluster_is_asked(command: list[str], options: dict[str, str]) -> None:
    with pytest.raises(ClusterError):
        job_spec(command, **options)  # type: ignore[arg-type]
