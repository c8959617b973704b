"""What the kernel says of a node, read from trees of files that look like its own."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from chappe.pilot import topology
from chappe.pilot.topology import AMD, Gpu, Topology, TopologyProblem

FIRST, SECOND = "GPU-11111111-aaaa", "GPU-22222222-bbbb"


def write(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """Two domains of four CPUs, one NVIDIA GPU on each, and an AMD one."""
    for n, cpus in enumerate(("0-3", "4,5,6-7")):
        write(tmp_path, f"sys/devices/system/node/node{n}/cpulist", cpus + "\n")
    for pci, uuid, numa in (("0000:0A:00.0", FIRST, 0), ("0000:8A:00.0", SECOND, 1)):
        write(
            tmp_path, f"proc/driver/nvidia/gpus/{pci}/information", f"Model: X\nGPU UUID: {uuid}\n"
        )
        write(tmp_path, f"sys/bus/pci/devices/{pci.lower()}/numa_node", f"{numa}\n")
    kfd = "sys/class/kfd/kfd/topology/nodes"
    write(tmp_path, f"{kfd}/0/properties", "simd_count 0\nunique_id 0\n")
    write(tmp_path, f"{kfd}/1/properties", "simd_count 8\nunique_id 255\ndrm_render_minor 128\n")
    write(tmp_path, "sys/class/drm/renderD128/device/numa_node", "1")
    write(tmp_path, "proc/meminfo", "MemTotal:       1024 kB\n")
    return tmp_path


def test_domains_gpus_and_memory(machine: Path) -> None:
    assert topology.read(range(8), {}, machine) == Topology(
        ((0, 1, 2, 3), (4, 5, 6, 7)),
        (Gpu(FIRST, numa=0), Gpu(SECOND, numa=1), Gpu("GPU-00000000000000ff", AMD, 1)),
        1024 * 1024,
    )


def test_only_what_this_process_may_use(machine: Path) -> None:
    found = topology.read({5, 6, 99}, {"ROCR_VISIBLE_DEVICES": ""}, machine)
    # A domain without CPUs of ours is none; a CPU that the kernel does not place gets one of its own.
    assert found.domains == ((5, 6), (99,))
    assert found.gpus == (Gpu(FIRST, numa=-1), Gpu(SECOND, numa=0))


@pytest.mark.parametrize(
    ("allowed", "left"),
    [("1", [SECOND]), ("1,0", [SECOND, FIRST]), ("GPU-1111", [FIRST]), ("7,x", []), ("", [])],
)
def test_the_gpus_that_the_batch_system_left_us(
    machine: Path, allowed: str, left: list[str]
) -> None:
    environ = {"CUDA_VISIBLE_DEVICES": allowed, "ROCR_VISIBLE_DEVICES": ""}
    assert [gpu.uuid for gpu in topology.read(range(8), environ, machine).gpus] == left


def test_a_machine_that_tells_nothing(tmp_path: Path) -> None:
    found = topology.read({1, 0}, {}, tmp_path)
    assert (found.domains, found.gpus) == (((0, 1),), ())
    assert found.mem_bytes > 0


def test_fewer_cores_are_taken_from_the_first_domains() -> None:
    assert topology.limit(Topology(((0, 1), (2, 3), (4,))), 3).domains == ((0, 1), (2,))


def test_a_file_takes_the_place_of_the_kernel(tmp_path: Path) -> None:
    path = tmp_path / "node.json"
    told = Topology(((0, 1),), (Gpu("a"),), 7)
    path.write_bytes(msgspec.json.encode(told))
    assert topology.load(path) == told


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        '{"domains": [[]]}',
        '{"domains": [[0], [0]]}',
        '{"domains": [[0]], "x": 1}',
        '{"domains": [[0]], "gpus": [{"uuid": "a"}, {"uuid": "a"}]}',
    ],
)
def test_a_file_that_describes_no_node(tmp_path: Path, text: str) -> None:
    path = tmp_path / "node.json"
    path.write_text(text)
    with pytest.raises(TopologyProblem, match=r"node\.json"):
        topology.load(path)


def test_this_machine_can_be_read() -> None:
    found = topology.read({0}, {})
    assert sum(map(len, found.domains)) == 1
    assert found.mem_bytes > 0
