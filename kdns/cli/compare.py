"""`kdns compare`: the same questions to two servers, and what they answer differently."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import typer

from kdns.errors import DomainNameError, KdnsError

if TYPE_CHECKING:
    from rich.table import Table

    from kdns.tools.asking import Target
    from kdns.tools.compare import Comparison, Difference, Result
    from kdns.tools.questions import Lines
    from kdns.tools.snapshot import View

_DIFFERENT = 3
_INTERRUPTED = 130
_STDIN = Path("-")
_WIDE = 10_000


class Ttls(StrEnum):
    """How TTLs are compared."""

    exact = "exact"
    less = "less"
    ignore = "ignore"


def compare(
    first: Annotated[str, typer.Argument(metavar="SERVER", help="The one that is compared with.")],
    second: Annotated[str, typer.Argument(metavar="SERVER", help="The other one.")],
    *,
    manifests: Annotated[
        list[Path] | None,
        typer.Option(metavar="PATH", help="Cluster: files or folders with its objects; may be given several times."),
    ] = None,
    state_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Cluster: the state directory of a kdns, which may be running.")
    ] = None,
    kubeconfig: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Cluster: a Kubernetes API, whose objects are listed once.")
    ] = None,
    context: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Its context; without --kubeconfig of KUBECONFIG or ~/.kube/config."),
    ] = None,
    queries: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Ask the lines of this file, each NAME TYPE, as for dnsperf; - is stdin."),
    ] = None,
    log: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Ask what is in this log, as `log` of CoreDNS and kdns writes it; - is stdin."
        ),
    ] = None,
    zone: Annotated[str, typer.Option(help="The cluster's zone, with --manifests and --kubeconfig.")] = "cluster.local",
    endpoint_pod_names: Annotated[
        bool, typer.Option("--endpoint-pod-names", help="Its endpoints without hostname are named after their pod.")
    ] = False,
    ttl: Annotated[
        Ttls,
        typer.Option(
            help="exact: equal, where both have authority. less: those of the second may be less, as in a cache."
        ),
    ] = Ttls.exact,
    sections: Annotated[
        str, typer.Option(metavar="NAMES", help="Which are compared: answer, authority, additional.")
    ] = "answer,authority",
    serials: Annotated[bool, typer.Option("--serials", help="Compare the serials of SOA records too.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Count what kdns does otherwise on purpose.")] = False,
    again: Annotated[int, typer.Option(min=0, max=60, help="Ask what differs so many times more, a second apart.")] = 0,
    limit: Annotated[int, typer.Option(min=0, help="Differences to show; all are counted.")] = 50,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
    timeout: Annotated[float, typer.Option(min=0.01, max=60, help="Seconds to wait for an answer.")] = 1.0,
    tries: Annotated[int, typer.Option(min=1, max=20, help="How often a question is sent over UDP.")] = 3,
    window: Annotated[int, typer.Option(min=1, max=1000, help="Questions that wait for answers at a time.")] = 64,
    rate: Annotated[float, typer.Option(min=0, help="Questions a second at most; 0 for as fast as it goes.")] = 0.0,
) -> None:
    """Ask two DNS servers the same questions, and show every difference between their answers.

    SERVER is HOST, HOST:PORT, an IPv6 address or [IPV6]:PORT. Questions go over UDP, and over TCP where the answer is
    truncated; over TCP alone with tcp:// in front (as kubectl port-forward needs it).

    The questions are all names of a cluster (--manifests, --state-dir or --kubeconfig), forward and reverse: each with
    its types, with A and AAAA, in another case, and names that must not exist. Or they are those of a file (--queries,
    --log), each once; a cluster may be given with it, and then only tells what is expected.

    Compared are the response code, the flags AA, TC and RA, whether there is an OPT record, and the records in any
    order, but for aliases, which come before what they lead to. Serials of SOA records may differ. What kdns does
    otherwise than CoreDNS on purpose is summed up as expected, where it can be told for sure, and is no difference
    unless --strict says so.

    \b
    kdns compare 10.244.0.7 10.244.0.9 --kubeconfig ~/.kube/config
    kdns compare 10.244.0.7 127.0.0.1 --state-dir /var/lib/kdns --again 2
    kubectl -n kube-system logs deployment/coredns | kdns compare 10.244.0.7 10.244.0.9 --log -
    kdns compare 127.0.0.1:5301 tcp://[::1]:5302 --queries questions.txt --ttl ignore --json

    Exit codes: 0 no difference; 1 not everything could be asked: a server does not answer (any more), a file cannot be
    read; 2 the command line was wrong; 3 differences; 130 Ctrl-C. What was found before the end of a server, or Ctrl-C,
    is shown.
    """
    from kdns.tools.asking import GoneError, Limits
    from kdns.tools.compare import SECTIONS, Comparison, Knowledge, Options

    clusters = sum((bool(manifests), state_dir is not None, kubeconfig is not None or context is not None))
    if clusters > 1 or (queries is not None and log is not None) or not (clusters or queries or log):
        raise typer.BadParameter(
            "give a cluster (one of --manifests, --state-dir, --kubeconfig), or one of --queries and --log, or both"
        )
    wanted = tuple(sections.split(","))
    if not set(wanted) <= set(SECTIONS):
        raise typer.BadParameter(
            f"{sections!r}; accepted: {', '.join(SECTIONS)}, parted by commas", param_hint="--sections"
        )
    servers = _server(first), _server(second)
    with contextlib.ExitStack() as stack:
        view = _view(stack, manifests, state_dir, kubeconfig, context, zone, endpoint_pod_names) if clusters else None
        comparison = Comparison(
            servers,
            Options(ttl.value, wanted, serials, strict),
            Limits(timeout, tries, window, rate),
            Knowledge(view),
            again,
        )
        path = queries if log is None else log
        lines = None if path is None else _lines(stack, path, log is not None)
        unfinished, code = "", 0
        try:
            _ask(comparison, view, lines)
        except GoneError as error:
            unfinished, code = str(error), 1
        except KeyboardInterrupt:
            unfinished, code = "interrupted", _INTERRUPTED
        problems = view.problems if view is not None else ()
    result = comparison.result
    if result.questions:
        report = Report(comparison, lines, limit, unfinished)
        typer.echo(json.dumps(report.facts(), indent=2)) if as_json else report.show()
    if unfinished:
        typer.echo(unfinished, err=True)
        raise typer.Exit(code)
    if result.different:
        raise typer.Exit(_DIFFERENT)
    if problems:
        raise typer.Exit(1)


def _server(text: str) -> Target:
    from kdns.tools.asking import target

    try:
        return target(text)
    except KdnsError as error:
        raise typer.BadParameter(str(error), param_hint="SERVER") from None


def _view(
    stack: contextlib.ExitStack,
    manifests: list[Path] | None,
    state_dir: Path | None,
    kubeconfig: Path | None,
    context: str | None,
    zone: str,
    endpoint_pod_names: bool,
) -> View:
    from kdns.cluster.publisher import Settings
    from kdns.cluster.records import RecordOptions
    from kdns.tools import snapshot
    from kdns.wire import names

    try:
        origin = names.lower(names.from_text(zone))
    except DomainNameError as error:
        raise typer.BadParameter(str(error), param_hint="--zone") from None
    reverse = names.from_text("in-addr.arpa."), names.from_text("ip6.arpa.")
    options = RecordOptions(origin, endpoint_pod_names=endpoint_pod_names)
    settings = Settings((origin,), reverse, records=options)
    if state_dir is not None:
        _be_first_to_go()
        opened = snapshot.of_state_dir(state_dir)
    elif manifests:
        opened = snapshot.of_manifests(manifests, settings)
    else:
        opened = snapshot.of_kubeconfig(kubeconfig, context, settings)
    view = stack.enter_context(opened)
    for text in (*view.problems, *view.warnings):
        typer.echo(text, err=True)
    return view


def _be_first_to_go() -> None:
    """In a pod of the kdns whose state directory it is, there may not be the memory for both: then it is this process
    that the kernel ends (proc_pid_oom_score_adj(5))."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def _lines(stack: contextlib.ExitStack, path: Path, log: bool) -> Lines:
    from kdns.tools.questions import Lines

    if path == _STDIN:
        return Lines(sys.stdin.buffer, log)
    try:
        return Lines(stack.enter_context(path.open("rb")), log)
    except OSError as error:
        raise KdnsError(f"{path} cannot be read: {error.strerror}") from None


def _ask(comparison: Comparison, view: View | None, lines: Lines | None) -> None:
    """Run it, with a bar if there is a terminal. Raises KdnsError if there is nothing to ask, or nobody any more."""
    from kdns.tools import questions

    if lines is not None:
        total, found = _size(lines.file), iter(lines)
    else:
        assert view is not None
        total = sum(1 for _ in questions.of_view(view)) if sys.stderr.isatty() else None
        found = questions.of_view(view)
    with _bar(total) as show:
        comparison.progress = lambda result: show(result.questions if lines is None else lines.read, result)
        comparison.run(found)
    if lines is not None:
        _tell(lines)
    if not comparison.result.questions:
        raise KdnsError("there is nothing to ask")


def _size(file: BinaryIO) -> int | None:
    """Bytes of a file, None for what has no size."""
    import os
    import stat

    status = os.fstat(file.fileno())
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def _tell(lines: Lines) -> None:
    """What was read and not asked."""
    kind = "no query of a log" if lines.log else "not NAME TYPE"
    if lines.unusable:
        typer.echo(f"{lines.unusable:,} of {lines.lines:,} lines are {kind}; the first is {lines.first}", err=True)
    if lines.other:
        typer.echo(f"{lines.other:,} lines ask for a zone transfer or another class than IN: not asked", err=True)


@contextlib.contextmanager
def _bar(total: int | None) -> Iterator[Callable[[int, Result], None]]:
    """Gives a function that is told how far it is, and the result so far."""
    if not sys.stderr.isatty():
        yield lambda done, result: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TextColumn("{task.fields[asked]:,} asked, {task.fields[different]:,} different"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=total, asked=0, different=0)
        yield lambda done, result: progress.update(
            task, completed=done, asked=result.questions, different=result.different
        )


class Report:
    """A result for people, and for programs."""

    def __init__(self, comparison: Comparison, lines: Lines | None, limit: int, unfinished: str) -> None:
        """limit: of differences that are shown. unfinished: why not everything was asked, "" if it was."""
        self._comparison = comparison
        self._result = comparison.result
        self._lines = lines
        self._limit = limit
        self._unfinished = unfinished
        self._servers = tuple(map(str, comparison.servers))

    def facts(self) -> dict[str, Any]:
        """As JSON has it."""
        result, lines = self._result, self._lines
        return {
            "servers": list(self._servers),
            "questions": result.questions,
            "same": result.same,
            "different": result.different,
            "expected": result.expected,
            "passing": result.passing,
            "seconds": round(result.seconds, 3),
            "unfinished": self._unfinished or None,
            "kinds": [{"what": list(kind), "count": count} for kind, count in result.kinds.most_common()],
            "differences": [_facts(each) for each in _chosen(result.found, self._limit)],
            "on_purpose": [{"why": reason, "count": count} for reason, count in result.reasons.most_common()],
            "lines": None
            if lines is None
            else {"read": lines.lines, "repeated": lines.repeated, "unusable": lines.unusable, "other": lines.other},
        }

    def show(self) -> None:
        """Print it."""
        from rich.console import Console

        result = self._result
        console = Console() if sys.stdout.isatty() else Console(width=_WIDE)
        if shown := _chosen(result.found, self._limit):
            console.print(self._table(shown))
            if len(shown) < result.different:
                typer.echo(f"{len(shown):,} of {result.different:,} are shown (--limit)")
            typer.echo()
        typer.echo("\n".join(self._summary()))

    def _table(self, found: list[Difference]) -> Table:
        from rich.box import SIMPLE_HEAD
        from rich.table import Table
        from rich.text import Text

        from kdns.wire import names, rr

        table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1))
        for title in ("name", "type", "differs in", *self._servers):
            table.add_column(title, overflow="fold")
        for each in found:
            name, rtype = names.to_text(each.question.name), rr.type_text(each.question.type)
            for aspect in each.aspects:
                cells = (name, rtype, aspect.what, aspect.first, aspect.second)
                table.add_row(*map(Text, cells))
                name = rtype = ""
        return table

    def _summary(self) -> list[str]:
        result = self._result
        asked = f"{result.questions:,} questions to {self._servers[0]} and {self._servers[1]}, {result.seconds:.2g} s"
        found = f"{result.different:,} different" if result.different else "no difference"
        lines = [f"{asked}: {found}{', and not all is asked' if self._unfinished else ''}"]
        lines += [f"  {count:,}: {', '.join(kind)}" for kind, count in result.kinds.most_common()]
        if result.expected:
            lines.append(f"{result.expected:,} differ on purpose, as kdns and CoreDNS do:")
        lines += [f"  {count:,}: {reason}" for reason, count in result.reasons.most_common()]
        if result.passing:
            lines.append(f"{result.passing:,} differed, and did not when they were asked again")
        if (
            any(what.startswith("TTL") for kind in result.kinds for what in kind)
            and self._comparison.options.ttl == "exact"
        ):
            lines.append("TTLs count down in a cache: --ttl less if the second server has one, --ttl ignore for any")
        if not self._comparison.options.serials:
            lines.append("serials of SOA records were not compared (--serials)")
        return lines


def _chosen(found: list[Difference], limit: int) -> list[Difference]:
    """As many as may be shown: of every kind in turn, then in the order in which they were found."""
    kinds: dict[tuple[str, ...], int] = {}
    ranks = []
    for index, each in enumerate(found):
        rank = kinds[each.kind] = kinds.get(each.kind, -1) + 1
        ranks.append((rank, index))
    return [found[index] for index in sorted(index for _, index in sorted(ranks)[:limit])]


def _facts(difference: Difference) -> dict[str, Any]:
    from kdns.wire import names, rr

    return {
        "name": names.to_text(difference.question.name),
        "type": rr.type_text(difference.question.type),
        "aspects": [{"what": each.what, "first": each.first, "second": each.second} for each in difference.aspects],
    }
