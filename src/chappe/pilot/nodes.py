"""One node: its CPUs by NUMA domain, memory and GPUs, and which Jobs have what of it until when.

Packing. A Job's CPUs come from one NUMA domain if one has enough, and from the fullest such, so that a
domain stays whole for a Job that needs it; a Job with a GPU gets CPUs of the GPU's domain if it can. Shares
of a GPU go where they leave the least over; whole GPUs come from one domain if they can. Amounts of GPUs are
hundredths. Pure: no clock, no I/O.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from math import inf
from typing import NamedTuple

from chappe.core.shapes import NodeRoom
from chappe.pilot.topology import Gpu, Topology

WHOLE = 100
"""One whole GPU."""


class Need(NamedTuple):
    """What a Job takes of each of its nodes, how many nodes, and of which tag. An `urgent` one may have what
    is kept."""

    cores: int = 1
    mem_bytes: int = 0
    gpus: int = 0
    nodes: int = 1
    urgent: bool = False
    tag: str = ""


class Share(NamedTuple):
    """What one Job has of one node. `cpus` is empty without affinity; `gpus` maps UUIDs to hundredths."""

    node: Node
    cpus: list[int]
    gpus: dict[str, int]


class Tenancy:
    """A Job on a node: until when it is expected to run, and until when at most (infinity: unknown)."""

    __slots__ = ("ends_at", "gpus", "limit_at", "need")

    def __init__(self, need: Need, gpus: dict[str, int], ends_at: float, limit_at: float) -> None:
        self.need = need
        self.gpus = gpus
        self.ends_at = ends_at
        self.limit_at = limit_at

    def end(self, now: float) -> float:
        """When it will have ended, as far as one can say now."""
        if self.ends_at > now:
            return self.ends_at
        return self.limit_at if self.limit_at > now else inf


class Node:
    """One node. `slots` makes it count as that many cores, which Jobs share without CPUs of their own."""

    def __init__(
        self,
        topology: Topology,
        mem_bytes: int,
        slots: int | None = None,
        name: str = "",
    ) -> None:
        self.name = name
        self.topology = topology
        self.cores = slots or sum(len(cpus) for cpus in topology.domains)
        self.mem_bytes = mem_bytes
        self.free_cores = self.cores
        self.free_mem_bytes = mem_bytes
        self.up = True
        """Whether Jobs may be placed here: its hand is heard."""
        self.tenants: dict[int, Tenancy] = {}
        """Who is here, by lane."""
        self.tag = ""
        """With a tag it is only for Jobs that ask for it."""
        self.reserve = 0
        """How many cores are for urgent Jobs only (see core.rooms)."""
        self._urgent = 0
        self._affinity = not slots
        self._domains = [sorted(cpus) if self._affinity else [] for cpus in topology.domains]
        self._gpus = {gpu.uuid: gpu for gpu in topology.gpus}
        self.free_gpus = dict.fromkeys(self._gpus, WHOLE)

    @property
    def gpus(self) -> int:
        """How many GPUs it has."""
        return len(self._gpus)

    @property
    def kept(self) -> int:
        """How many of the free cores are kept for urgent Jobs."""
        return min(self.free_cores, max(0, self.reserve - self._urgent))

    def open_cores(self, need: Need) -> int:
        """How many of the free cores are free for a Job of this need."""
        return self._open(need, self.free_cores, self._urgent)

    def _open(self, need: Need, free: int, urgent: int) -> int:
        """The same with so many free cores, and so many that urgent Jobs have."""
        if need.urgent or need.cores > self.cores - self.reserve:
            return free
        return free - max(0, self.reserve - urgent)

    def fits_ever(self, need: Need) -> bool:
        """Whether it has this much when it is empty."""
        return (
            need.tag == self.tag
            and need.cores <= self.cores
            and need.mem_bytes <= self.mem_bytes
            and need.gpus <= len(self._gpus) * WHOLE
        )

    def fits(self, need: Need) -> bool:
        """Whether this much is free now."""
        return (
            self.up
            and need.tag == self.tag
            and need.cores <= self.open_cores(need)
            and need.mem_bytes <= self.free_mem_bytes
            and (need.gpus == 0 or _gpus_fit(self.free_gpus.values(), need.gpus))
        )

    def take(self, need: Need, lane: int, ends_at: float, limit_at: float) -> Share:
        """Room for a Job that `fits`."""
        gpus = self._choose_gpus(need.gpus)
        near = {self._gpus[uuid].numa for uuid in gpus}
        # After `occupy` there may be fewer CPUs on record than cores; such a Job goes without its own.
        known = sum(map(len, self._domains)) >= need.cores
        cpus = self._choose_cpus(need.cores, near) if self._affinity and known else []
        return self._settle(Share(self, cpus, gpus), need, lane, ends_at, limit_at)

    def occupy(
        self,
        need: Need,
        lane: int,
        cpus: Collection[int],
        gpus: dict[str, int],
        ends_at: float,
        limit_at: float,
    ) -> Share:
        """Room for a Job that runs already, as far as it is known. It may take more than there is."""
        own = [cpu for free in self._domains for cpu in free if cpu in cpus]
        known = {uuid: parts for uuid, parts in gpus.items() if uuid in self._gpus}
        share = Share(self, own if len(cpus) == need.cores else [], known)
        return self._settle(share, need, lane, ends_at, limit_at)

    def leave(self, share: Share, need: Need, lane: int) -> None:
        """The Job is over."""
        del self.tenants[lane]
        self.free_cores += need.cores
        self.free_mem_bytes += need.mem_bytes
        self._urgent -= need.cores * need.urgent
        for uuid, parts in share.gpus.items():
            self.free_gpus[uuid] += parts
        if share.cpus:
            back = set(share.cpus)
            for free, all_ in zip(self._domains, self.topology.domains, strict=True):
                free[:] = sorted({*free, *back.intersection(all_)})

    def expect(self, lane: int, more_s: float, more_limit_s: float) -> None:
        """Another will run in its turn: it takes so much longer."""
        tenant = self.tenants[lane]
        tenant.ends_at += more_s
        tenant.limit_at += more_limit_s

    def free_at(self, need: Need, now: float) -> float:
        """When a Job of this need will fit, if nobody else comes; infinity when nobody can say."""
        if not self.up:
            return inf
        cores, mem, gpus = self.free_cores, self.free_mem_bytes, dict(self.free_gpus)
        at, urgent = now, self._urgent
        leaving = sorted(self.tenants.values(), key=lambda tenant: tenant.end(now))
        for tenant in (*leaving, None):
            fits = need.cores <= self._open(need, cores, urgent) and need.mem_bytes <= mem
            if fits and (need.gpus == 0 or _gpus_fit(gpus.values(), need.gpus)):
                return at
            if tenant is not None:
                at = tenant.end(now)
                cores += tenant.need.cores
                mem += tenant.need.mem_bytes
                urgent -= tenant.need.cores * tenant.need.urgent
                for uuid, parts in tenant.gpus.items():
                    gpus[uuid] += parts
        return inf

    def spare(self, need: Need, at: float, now: float) -> NodeRoom:
        """What is free now and will not be needed at `at` either, when a Job of `need` is to begin."""
        gone = [tenant for tenant in self.tenants.values() if tenant.end(now) <= at]
        urgent = self._urgent - sum(t.need.cores for t in gone if t.need.urgent)
        cores = self.free_cores + sum(t.need.cores for t in gone)
        cores = self._open(need, cores, urgent) - need.cores
        mem = self.free_mem_bytes + sum(t.need.mem_bytes for t in gone) - need.mem_bytes
        # Which GPUs the Job will get is not known before it begins: then none is to spare.
        gpus = () if need.gpus else tuple(self.free_gpus.values())
        return NodeRoom(
            1,
            max(0, min(self.open_cores(need), cores)),
            max(0, min(self.free_mem_bytes, mem)),
            gpus,
            None,
            self.kept if need.urgent else 0,
            self.tag,
        )

    def _settle(
        self, share: Share, need: Need, lane: int, ends_at: float, limit_at: float
    ) -> Share:
        self.free_cores -= need.cores
        self.free_mem_bytes -= need.mem_bytes
        self._urgent += need.cores * need.urgent
        for uuid, parts in share.gpus.items():
            self.free_gpus[uuid] -= parts
        if share.cpus:
            taken = set(share.cpus)
            for free in self._domains:
                free[:] = [cpu for cpu in free if cpu not in taken]
        self.tenants[lane] = Tenancy(need, share.gpus, ends_at, limit_at)
        return share

    def _choose_cpus(self, cores: int, near: Collection[int]) -> list[int]:
        if len(self._domains) == 1:
            return self._domains[0][:cores]
        enough = [d for d, free in enumerate(self._domains) if len(free) >= cores]
        if enough:
            best = min(enough, key=lambda d: (d not in near, len(self._domains[d]), d))
            return self._domains[best][:cores]
        chosen: list[int] = []
        order = range(len(self._domains))
        for d in sorted(order, key=lambda d: (d not in near, -len(self._domains[d]), d)):
            chosen += self._domains[d][: cores - len(chosen)]
        return sorted(chosen)

    def _choose_gpus(self, parts: int) -> dict[str, int]:
        if parts == 0:
            return {}
        if parts < WHOLE:
            fitting = [(free, uuid) for uuid, free in self.free_gpus.items() if free >= parts]
            return {min(fitting)[1]: parts}
        whole = [self._gpus[uuid] for uuid, free in self.free_gpus.items() if free == WHOLE]
        return dict.fromkeys((gpu.uuid for gpu in _near_each_other(whole, parts // WHOLE)), WHOLE)


def _near_each_other(free: Sequence[Gpu], count: int) -> list[Gpu]:
    """So many of these, of one domain if one has enough, and then of that which has the fewest."""
    by_domain: dict[int, list[Gpu]] = {}
    for gpu in free:
        by_domain.setdefault(gpu.numa, []).append(gpu)
    enough = [gpus for gpus in by_domain.values() if len(gpus) >= count]
    if enough:
        return min(enough, key=len)[:count]
    largest_first = sorted(by_domain.values(), key=len, reverse=True)
    return [gpu for gpus in largest_first for gpu in gpus][:count]


def _gpus_fit(free: Iterable[int], parts: int) -> bool:
    if parts <= WHOLE:
        return any(have >= parts for have in free)
    return sum(have == WHOLE for have in free) * WHOLE >= parts
