"""Every command and every Python snippet of docs/ does what the page says."""

from __future__ import annotations

import json
from pathlib import Path

import psutil
import pytest
from tests.docs.doc_blocks import RUNNABLE, SHOWN, Block, blocks_of
from tests.docs.page_runner import REPOSITORY, Machine, PageRunner
from tests.polling import eventually

DOCS = REPOSITORY / "docs"
PAGES = sorted(DOCS.glob("*.md"))
TRIED = [page for page in PAGES if any(block.is_run for block in blocks_of(page))]
# Started for each page that does not start a cluster itself, as docs/README.md says: what a page
# leaves behind (a policy, tasks, keys) is not what another one finds, in whatever order they run.
UP = "muster up --agents 2 --skills examples.quickstart.skills --port 8080 --detach"

pytestmark = [pytest.mark.xdist_group("cluster"), pytest.mark.timeout(600)]


def starts_its_own(page: Path) -> bool:
    """Whether the page's own blocks start what it needs."""
    return any(
        block.is_run and ("muster up" in block.text or "muster service" in block.text)
        for block in blocks_of(page)
    )


@pytest.mark.parametrize("page", TRIED, ids=lambda page: page.stem)
def test_page(page: Path, tmp_path: Path) -> None:
    machine = Machine(tmp_path / "m")
    runner = PageRunner(machine, page.stem)
    try:
        if not starts_its_own(page):
            PageRunner(machine, "starting").run([Block(Path("the cluster"), 1, "sh", UP)])
        runner.run(blocks_of(page))
    finally:
        runner.close()
        machine.close()


def test_every_block_says_what_it_is() -> None:
    for page in [*PAGES, REPOSITORY / "README.md", REPOSITORY / "ARCHITECTURE.md"]:
        for block in blocks_of(page):
            if page.parent == DOCS:
                assert block.language in RUNNABLE | SHOWN, f"{block.place}: which language?"
            if block.language == "json":
                json.loads(block.text)
            if block.language == "python":
                compile(block.text, block.place, "exec")


def test_what_is_not_run_is_rare() -> None:
    left_out = [b for page in PAGES for b in blocks_of(page) if b.note[0] == "not run"]
    run = [b for page in PAGES for b in blocks_of(page) if b.is_run]
    assert len(left_out) * 5 <= len(run), [f"{b.place}: {b.note[1]}" for b in left_out]


@pytest.mark.parametrize("command", ["sleep 300", "redis-server --port 6379 --dir ."])
async def test_a_machine_leaves_nothing_behind(command: str, tmp_path: Path) -> None:
    machine = Machine(tmp_path / "m")
    started = f"{command} > out.log 2>&1 & echo $! > pid; sleep 0.5"
    PageRunner(machine, "page").run([Block(Path("p.md"), 1, "sh", started)])
    pid = int((machine.folder / "page" / "pid").read_text())
    machine.close()
    await eventually(lambda: not psutil.pid_exists(pid) or _is_dead(pid))


def _is_dead(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("```sh\nfalse\ntrue\n```\n", "exit code 1"),
        ("<!-- exits: 1 -->\n```sh\ntrue\n```\n", "exit code 0"),
        ("```console\n$ echo a\nb\n```\n", "the page shows"),
        ("```python\nprint(1)\n```\n<!-- output -->\n```text\n2\n```\n", "the page shows"),
        ("```python\nraise ValueError\n```\n", "exit code 1"),
    ],
)
def test_a_wrong_page_fails(text: str, said: str, tmp_path: Path) -> None:
    runner = PageRunner(Machine(tmp_path / "m"), "page")
    try:
        with pytest.raises(AssertionError, match=said):
            runner.run(blocks_of(Path("p.md"), text))
    finally:
        runner.close()


def test_what_a_block_sets_outlives_it(tmp_path: Path) -> None:
    text = (
        "```sh\nMUSTER_X='a b'; f() { echo f; }; mkdir d; cd d\n```\n"
        '```console\n$ f; echo "$MUSTER_X"; basename "$PWD"\nf\na b\nd\n```\n'
        "```python\nimport os\nx = os.environ['MUSTER_X']\n```\n"
        "```python\nprint(x)\n```\n<!-- output -->\n```text\na b\n```\n"
    )
    runner = PageRunner(Machine(tmp_path / "m"), "page")
    try:
        runner.run(blocks_of(Path("p.md"), text))
    finally:
        runner.close()
