"""The commands of docs/kubernetes.md, as they stand there."""

import re
import subprocess

from kube import kubectl
from releases import DOCUMENTED, ROOT, Release

PAGE = ROOT / "docs" / "kubernetes.md"


def commands() -> list[str]:
    """Return the page's commands."""
    marked = PAGE.read_text(encoding="utf-8").split("<!-- commands:")[1]
    found = re.search(r"```\n(.*?)```", marked, re.DOTALL)
    assert found is not None
    return found[1].splitlines()


def test_ten_commands_lead_from_nothing_to_two_pods_that_talk(release: Release) -> None:
    """Each ends well; the conversation takes place on two pods."""
    release.remove()
    lines = commands()
    assert len(lines) == 10
    said = {}
    try:
        for line in lines:
            done = subprocess.run(line, shell=True, capture_output=True, text=True, timeout=300, check=False, cwd=ROOT)
            assert done.returncode == 0, f"{line}: {done.stderr}"
            said[line] = done.stdout
        (conversation,) = [text for line, text in said.items() if "conversation.py" in line]
        assert "messages from page to page" in conversation
        print(conversation)
    finally:
        kubectl("delete", "-f", str(ROOT / "examples" / "chat" / "kubernetes.yaml"), "--ignore-not-found")
        release.remove()
        kubectl("delete", "namespace", DOCUMENTED, "--ignore-not-found")
