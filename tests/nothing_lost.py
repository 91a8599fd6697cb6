"""A pytest plugin by which no result is lost: neither when a test kills or blocks its interpreter, nor by a skip.

tests/core/test_nothing_lost.py proves it on a folder of tests that die, hang and skip.
"""

import faulthandler
from collections.abc import Generator
from typing import Any

import pytest
from _pytest.faulthandler import fault_handler_stderr_fd_key
from xdist.scheduler import LoadFileScheduling


class CrashProofScheduling(LoadFileScheduling):
    """Whole files to each worker, as --dist loadfile; what a dead worker leaves goes to its replacement.

    pytest-xdist 3.8 starts the test that killed a worker again, which kills the replacement, and queues the dead
    worker's finished files again: a worker that is given one of those finds nothing to run, reports nothing, is
    therefore never given anything else, and the run hangs (its issues 1323, 1327 and 1378).
    """

    def remove_node(self, node: Any) -> str | None:
        """Forget a worker. The test that it was running, if any, counts as done; those behind it are queued again."""
        units = self.assigned_work.pop(node)
        left = [(file, test) for file, tests in units.items() for test, done in tests.items() if not done]
        for file, test in left[1:]:
            self.workqueue.setdefault(file, {})[test] = False
        return left[0][1] if left else None

    def _reschedule(self, node: Any) -> None:
        """Files until a worker has two tests, for it starts one when it knows the next; or word that none is left."""
        collected = node in self.registered_collections
        while collected and not node.shutting_down and self._pending_of(self.assigned_work[node]) < 2:
            if self.workqueue:
                self._assign_work_unit(node)
            else:
                node.shutdown()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> CrashProofScheduling | None:
    return CrashProofScheduling(config, log) if config.getvalue("dist") == "loadfile" else None


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """Start the last clock again: a failed test has stopped it for a debugger's sake, and its teardown may hang."""
    seconds, stderr = float(item.config.getini("faulthandler_timeout")), item.config.stash[fault_handler_stderr_fd_key]
    faulthandler.dump_traceback_later(seconds, file=stderr, exit=True)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--no-skips", action="store_true", help="a skipped test fails unless allowed_skips names it")
    parser.addini("allowed_skips", "ids of the tests that may be skipped under --no-skips", type="linelist")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    return _no_silent_skip(item, (yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    return _no_silent_skip(collector, (yield))


def _no_silent_skip(node: pytest.Item | pytest.Collector, report: Any) -> Any:
    """The report, failed if it is a skip under --no-skips that is not allowed. An expected failure is no skip."""
    skipped = report.skipped and not hasattr(report, "wasxfail")
    if skipped and node.config.getoption("no_skips") and node.nodeid not in node.config.getini("allowed_skips"):
        report.outcome = "failed"
        report.longrepr = f"{report.longrepr[2]} (--no-skips, and allowed_skips in pyproject.toml does not name it)"
    return report
