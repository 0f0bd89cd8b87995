"""The network of a node: brings queries to our sockets, keeps it so, and takes it away again.

There are two ways. With a table of nftables that this process owns, queries for all addresses are intercepted, and go
where they went before from the moment in which this process is gone. Where that cannot be had, the addresses are put on
a link and iptables has rules, as with NodeLocal DNSCache: a node then has no DNS at them while nobody serves.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from kdns.errors import NodeError
from kdns.node import iptables, links, rights, rtnetlink
from kdns.node.links import Note, Outcome, Wanted
from kdns.node.listeners import others_listen
from kdns.node.rtnetlink import View
from kdns.node.settings import ROUTES, Settings, wildcard
from kdns.node.table import Interception
from kdns.observe.logs import Log

GATHER_SECONDS = 0.005
"""How long after a change to look: whoever changes something often changes more."""
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 10.0
"""Between repairs, while somebody keeps undoing them."""
WITHDRAW_SECONDS, REMOVE_SECONDS = 8.0, 15.0
"""How long these may take, whatever hangs."""
_FOR_LINKS = 4.0
"""Of these, what is kept for links when iptables hangs."""


class Network:
    """Implements `kdns.server.setup.Setup`. Its work is done in threads, one piece at a time."""

    def __init__(self, settings: Settings, log: Log, count: Callable[[str], None]) -> None:
        """count: told of each repair and each failure, by its kind: iptables, iptables_lock, interface_add,
        interface_check."""
        self._settings = settings
        self._log = log
        self._count = count
        self._lock = threading.Lock()
        self._idle = not settings.own
        self._table: Interception | None = None
        self._brings = False
        self._leaving = False
        self._answered: tuple[str, ...] = ()
        self._unanswered: tuple[str, ...] = ()
        self._on_loopback = False

    async def prepare(self) -> None:
        """Find out what can be done here, and put addresses, rules and routes in place."""
        if not self._idle and not rights.has(rights.NET_ADMIN):
            self._idle = True
            root = " (a container's capabilities are root's: runAsUser: 0)" if os.geteuid() else ""
            why = (
                f"this process has no CAP_NET_ADMIN{root}: queries come for addresses that the node has already, and no"
                " others"
            )
            self._report(Outcome(failed=(Note("interface_add", why),)), mending=False)
        if not self._idle:
            self._leave_out_ipv6()
            self._tell_out_of_reach()
        await self._do(self._prepare)

    def _leave_out_ipv6(self) -> None:
        """Where the node has no IPv6, its addresses must not keep those of IPv4 from being intercepted."""
        six = [address for address in self._settings.own if ":" in address]
        if six and not _has_ipv6():
            why = f"this node has no IPv6 (net.ipv6.conf.all.disable_ipv6): {', '.join(six)} left alone"
            self._report(Outcome(failed=(Note("interface_add", why),)), mending=False)
            rest = tuple(address for address in self._settings.addresses if ":" not in address)
            self._settings = replace(self._settings, addresses=rest)
            self._idle = not self._settings.own

    def _tell_out_of_reach(self) -> None:
        programs = iptables.out_of_reach(self._settings) if self._settings.setup_iptables else []
        if programs:
            self._log.warning(
                f"node: this process has no CAP_NET_RAW, which {' and '.join(programs)} would need: legacy tables are"
                " in use here, and left alone; a firewall in them has to accept DNS by itself, and what NodeLocal"
                " DNSCache left in them stays"
            )

    async def open(self, listening: frozenset[tuple[str, int]]) -> None:
        """Bring queries here, for those of the addresses that sockets are bound to, with the port.

        To be called again when these change: an address is still answered that is not among them any more.
        """
        if self._leaving or self._idle:
            return
        settings = self._settings
        self._answered = tuple(
            address
            for address in settings.own
            if not listening.isdisjoint({(address, settings.port), (wildcard(address), settings.port)})
        )
        self._tell_unanswered(tuple(address for address in settings.own if address not in self._answered))
        self._brings = True
        if self._table is not None:
            self._table.begin(self._answered)
        await self._do(self._check)

    def _tell_unanswered(self, addresses: tuple[str, ...]) -> None:
        port = self._settings.port
        for address in addresses:
            if address in self._unanswered:
                continue
            local = address in self._settings.local
            elsewhere = "nobody answers there" if local else "they go where they would go without kdns"
            self._log.warning(
                f"node: no socket is bound to {address} port {port}, so its queries are not intercepted: {elsewhere};"
                f" a server block of port {port} with `bind {address}` would take them"
            )
        self._unanswered = addresses

    def ways(self) -> dict[str, str]:
        """What brings queries here now, by the address that they are for: nftables, link, or "" if nothing does.

        Empty if that is not our business.
        """
        if self._idle or not self._settings.setup_interface:
            return {}
        taken = self._table.taken if self._table is not None else ()
        try:
            on_link = {address for _, address in rtnetlink.view(ROUTES).addresses}
        except OSError:
            on_link = set()
        return {
            address: "nftables" if address in taken else "link" if address in on_link else ""
            for address in self._settings.own
        }

    async def suspend(self) -> None:
        """Let the queries for what is intercepted go where they go without us, until `open` is called again."""
        if self._table is not None:
            await asyncio.to_thread(self._table.end)

    async def follow(self) -> None:
        """Put back what somebody takes away, until cancelled."""
        loop = asyncio.get_running_loop()
        changed = asyncio.Event()
        changed.set()
        complete = loop.time() + self._settings.sync_seconds
        pause = FIRST_PAUSE
        with self._watching(changed):
            while True:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout_at(complete):
                        await changed.wait()
                await asyncio.sleep(GATHER_SECONDS)
                changed.clear()
                full = loop.time() >= complete
                mended = await self._do(self._check if full else self._check_links, mending=True)
                if full:
                    complete = loop.time() + self._settings.sync_seconds
                if mended:
                    await asyncio.sleep(pause)
                    pause = min(pause * 2, LONGEST_PAUSE)
                    if not full or (self._table is not None and self._table.missing):
                        complete = loop.time()  # whoever changed links may have changed more
                else:
                    pause = max(pause / 2, FIRST_PAUSE)

    async def withdraw(self) -> None:
        """Bring no more queries here. For link-local addresses, which nobody else has, they may come until `remove`.

        What another instance has sockets for stays, on a link. Takes at most WITHDRAW_SECONDS, and with a table does
        not wait for other work, which may wait for somebody else's lock of iptables.
        """
        self._leave()
        if self._table is not None:
            await asyncio.to_thread(self._table.drain)
        elif not self._settings.skip_teardown:
            await self._finish(self._withdraw, WITHDRAW_SECONDS)

    async def remove(self, *, alone: bool) -> None:
        """Leave nothing behind. alone: no other instance is there, which needs the same links and rules.

        Takes at most REMOVE_SECONDS.
        """
        self._leave()
        if self._table is not None:
            await asyncio.to_thread(self._table.end)
        if alone and not self._settings.skip_teardown:
            await self._finish(self._remove, REMOVE_SECONDS)

    def _leave(self) -> None:
        self._leaving = True
        self._brings = False

    async def _finish(self, work: Callable[[float], Outcome], seconds: float) -> None:
        """Do one of the last pieces of work, which is told until when (of time.monotonic) it may take."""
        until = time.monotonic() + seconds

        def finish() -> Outcome:
            if not self._lock.acquire(timeout=seconds - _FOR_LINKS):
                return Outcome(failed=(Note("interface_check", "links and rules stay: other work does not end"),))
            try:
                return work(until)
            finally:
                self._lock.release()

        await self._do(finish)

    async def _do(self, work: Callable[[], Outcome], *, mending: bool = False) -> bool:
        """Do one piece of work in a thread; whether there was something to do. Never raises."""
        if self._idle:
            return False
        try:
            outcome = await asyncio.to_thread(work)
        except Exception as error:  # whatever it is, DNS is to be served
            outcome = Outcome(failed=(Note("interface_check", f"{type(error).__name__}: {error}"),))
        self._report(outcome, mending=mending)
        return outcome != Outcome()

    def _report(self, outcome: Outcome, *, mending: bool) -> None:
        """mending: what was done had been done before, and somebody had undone it."""
        for note in outcome.done:
            if mending:
                self._count(note.kind)
                self._log.warning(f"node: not as it should be: {note.text}", key=f"node {note.text}")
            else:
                self._log.info(f"node: {note.text}")
        for note in outcome.failed:
            self._count(note.kind)
            self._log.error(f"node: {note.text}", key=f"node {note.kind}")

    @contextlib.contextmanager
    def _watching(self, changed: asyncio.Event) -> Iterator[None]:
        """Set the event whenever something changes that may be ours."""
        if self._idle:
            yield
            return
        loop = asyncio.get_running_loop()
        try:
            events = rtnetlink.Events(self._settings.interface, self._settings.own, ROUTES)
        except OSError as error:
            self._log.warning(f"node: changes of links are seen only every {self._settings.sync_seconds:g} s: {error}")
            yield
            return
        with events:

            def look() -> None:
                if events.concern_us():
                    changed.set()

            loop.add_reader(events.fileno(), look)
            try:
                yield
            finally:
                loop.remove_reader(events.fileno())

    # What follows is done in a thread, by `_do`.

    def _prepare(self) -> Outcome:
        if self._settings.setup_iptables:
            try:
                self._table = Interception(self._settings)
            except NodeError as error:
                self._go_classic(str(error))
        outcome = self._check_links()
        if not outcome.failed:
            return outcome
        again = self._check_links()  # sockets of other parts are bound next, and may need what is on the link
        return Outcome(outcome.done + again.done, again.failed)

    def _go_classic(self, reason: str) -> None:
        if self._table is not None:
            self._table.end()
            self._table = None
        self._log.warning(
            "node: an nftables table that goes with this process cannot be had, iptables has the rules: while nobody"
            f" serves, there is no DNS at the addresses: {reason}"
        )

    def _check(self) -> Outcome:
        with self._lock:
            return self._surely(lambda: self._mend_links() + self._check_table()) + self._check_iptables()

    def _check_links(self) -> Outcome:
        with self._lock:
            return self._surely(self._mend_links)

    def _surely(self, work: Callable[[], Outcome]) -> Outcome:
        """Where it cannot be seen whether queries would be led somewhere, they are not taken."""
        if self._leaving:
            return Outcome()
        try:
            return work()
        except OSError as error:
            if self._table is not None:
                self._table.suspend()
            return Outcome(failed=(Note("interface_check", f"cannot see links, rules and routes: {error}"),))

    def _check_table(self) -> Outcome:
        """Queries are not taken while they would be led nowhere."""
        if self._table is None or self._lacking_routing(rtnetlink.view(ROUTES)):
            return Outcome()
        try:
            made = self._table.check()
            return Outcome(done=(Note("iptables", "added table of nftables"),) if made else ())
        except NodeError as error:
            return Outcome(failed=(Note("iptables", f"cannot add table of nftables: {error}"),))

    def _check_iptables(self) -> Outcome:
        settings = self._settings
        if not settings.setup_iptables or not self._brings:
            return Outcome()
        until = time.monotonic() + iptables.SECONDS
        answered = replace(settings, addresses=self._answered)
        outcome = iptables.ensure(iptables.accepting(answered), until)
        if self._table is not None:
            return outcome + iptables.remove(iptables.stranding(settings, until), until)
        absent = tuple(Note("iptables", f"there is no program {name} in PATH") for name in iptables.absent(settings))
        outcome += iptables.ensure(iptables.untracking(answered), until)
        others = replace(settings, addresses=self._free(self._unanswered))
        return outcome + iptables.remove(iptables.stranding(others, until), until) + Outcome(failed=absent)

    def _mend_links(self) -> Outcome:
        view = rtnetlink.view(ROUTES)
        wanted = self._wanted(view)
        if not list(links.differences(wanted, view, loopback=self._on_loopback)):
            return Outcome()
        if self._table is not None and self._lacking_routing(view):
            self._table.suspend()
        outcome = links.change("ensure", wanted)
        on_loopback = bool(wanted.on_link) and wanted.interface not in rtnetlink.view(ROUTES).links
        if on_loopback and not self._on_loopback:
            self._log.warning(f"node: there is no link {wanted.interface}: {links.LOOPBACK} has the addresses")
        self._on_loopback = on_loopback
        refused = [note.text for note in outcome.failed if note.never]
        if refused and self._table is not None:
            self._go_classic(refused[0])
            return outcome + self._mend_links()
        return outcome + self._check_table()

    def _wanted(self, view: View) -> Wanted:
        settings = self._settings
        if not settings.setup_interface:
            return Wanted(None, (), (), ())
        needed = {*settings.local, *(self._answered if self._table is None and self._brings else ())}
        on_link = tuple(address for address in settings.own if address in needed)
        return Wanted(
            settings.interface, on_link, self._strays(needed, view), settings.own if self._table is not None else ()
        )

    def _strays(self, needed: set[str], view: View) -> tuple[str, ...]:
        """What NodeLocal DNSCache, or kdns, has put on a link, and nobody serves there any more.

        It would keep the node's own processes from the cluster's DNS once it is not intercepted.
        """
        there = {address for _, address in view.addresses} if self._brings else set()
        return self._free([address for address in self._settings.own if address not in needed and address in there])

    def _free(self, addresses: Iterable[str]) -> tuple[str, ...]:
        """Those of the addresses that no one else serves."""
        return tuple(address for address in addresses if not others_listen(address, self._settings.port))

    def _lacking_routing(self, view: View) -> bool:
        """Whether rules or routes are wanted that are not there."""
        routed = self._wanted(view).routed
        return any(links.differences(Wanted(None, (), (), routed), view, loopback=False))

    def _withdraw(self, until: float) -> Outcome:
        """Without a table. Rules about answers stay, for there will be some more."""
        settings = self._settings
        others = self._free([address for address in settings.own if address not in settings.local])
        outcome = Outcome()
        if settings.setup_iptables:
            rules = iptables.bringing(replace(settings, addresses=others))
            outcome += iptables.remove(rules, until - _FOR_LINKS)
        if settings.setup_interface and others:
            wanted = Wanted(settings.interface, (), others, ())
            outcome += links.change("ensure", wanted, max(until - time.monotonic(), _FOR_LINKS))
        return outcome

    def _remove(self, until: float) -> Outcome:
        settings = self._settings
        if any(others_listen(address, settings.port) for address in settings.own):
            self._log.info("node: links and rules stay for another server at the same addresses")
            return Outcome()
        outcome = Outcome()
        if self._table is not None:
            self._table.remove_shared()
        if settings.setup_iptables:
            soon = until - _FOR_LINKS
            outcome += iptables.remove(iptables.stranding(settings, soon), soon)
            outcome += iptables.remove(iptables.accepting(settings), soon)
        if settings.setup_interface:
            wanted = Wanted(settings.interface, settings.own, (), settings.own)
            outcome += links.change("remove", wanted, max(until - time.monotonic(), _FOR_LINKS))
        return outcome


def _has_ipv6() -> bool:
    """Whether links may have IPv6 addresses (Documentation/networking/ip-sysctl of Linux)."""
    try:
        return Path("/proc/sys/net/ipv6/conf/all/disable_ipv6").read_text().strip() == "0"
    except OSError:
        return False
