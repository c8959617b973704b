"""Where messages go at a broker, and what its accounts may do, without a broker."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from chappe.bus import amqp_topology as topology
from chappe.bus.amqp_config import load
from chappe.bus.amqp_permissions import Role, commands, permissions
from chappe.core.errors import Invalid
from chappe.core.vocabulary import BY_CODE_2014, KINDS

#: libIGCM's specification: which queue takes which codes.
SPECIFIED = {
    "live-monitoring-compute": "0000 0100 1000 1001 1100 1900 1999 8888",
    "live-monitoring-post-processing": "2000 2100 2900 2999",
    "live-metrics-env": "7000",
    "live-metrics-conso": "7010 7011",
    "live-metrics-pcmdi": "7100",
    "live-superviseur": "8000 8100 8200",
    "live-cv": "-1000",
    "live-fe": "-2000",
    "live-smtp": "-3000",
    "live-alert": "-4000",
}
DECLARED = sorted({*BY_CODE_2014, *KINDS})


def names(exchange: str, type: str) -> list[str]:
    return [queue.name for queue in topology.takers(exchange, type)]


@pytest.mark.parametrize(
    ("queue", "code"), [(q, c) for q, cs in SPECIFIED.items() for c in cs.split()]
)
def test_codes_go_where_the_specification_says(queue: str, code: str) -> None:
    assert [
        n
        for x in (topology.PRIMARY, topology.SECONDARY)
        for n in names(x, code)
        if n != "live-events"
    ] == [queue]


def test_l7_every_declared_type_has_a_queue_of_its_own() -> None:
    """Not merely the queue for what nobody knows."""
    assert len(DECLARED) > 50
    assert topology.unbound(DECLARED) == []


def test_l7_the_check_can_fail() -> None:
    without = [queue for queue in topology.QUEUES if queue.name != "live-metrics-env"]
    assert topology.unbound(DECLARED, without) == ["7000", "io"]
    assert topology.unbound(["nobody.knows"]) == ["nobody.knows"]


def test_everything_from_producers_is_read_by_the_hub() -> None:
    for type in (*DECLARED, "nobody.knows"):
        assert set(names(topology.PRIMARY, type)) <= set(topology.DOOR)
    assert {"live-other", "live-dead"} <= set(topology.DOOR)
    assert not {queue.name for queue in topology.QUEUES if queue.exchange == "x-secondary"} & set(
        topology.DOOR
    )


def test_routing_keys_have_four_words_before_the_type() -> None:
    key = topology.routing_key("prod", "Jean.Dupont@ipsl", "libIGCM", "", "job.period")
    assert key == "prod.jean-dupont@ipsl.libigcm.-.job.period"


def test_a_producer_may_only_publish_under_its_own_name() -> None:
    given = permissions("tgcc.prod", Role.PRODUCER)
    assert (given.configure, given.write, given.read) == ("^$", r"^(x\-primary)$", "^$")
    (topic,) = given.topics
    assert re.search(topic.write, topology.routing_key("prod", "tgcc.prod", "libigcm", "m", "0000"))
    assert not re.search(topic.write, topology.routing_key("prod", "idris", "libigcm", "m", "0000"))
    assert not re.search(topic.write, topology.routing_key("prod", "tgcc.prod2", "x", "m", "0000"))


def test_an_application_reads_events_through_queues_of_its_own() -> None:
    given = permissions("esgf", Role.APPLICATION, ("live-fe",))
    for name, reads, writes in (
        ("x-secondary", True, False),
        ("live-fe", True, False),
        ("app-esgf", True, True),
        ("app-esgf.catalogue", True, True),
        ("app-esgf2", False, False),
        ("x-primary", False, False),
        ("live-monitoring-compute", False, False),
    ):
        assert bool(re.search(given.read, name)) is reads, name
        assert bool(re.search(given.write, name)) is writes, name
        assert given.configure == given.write
    with pytest.raises(Invalid, match="live-events"):
        permissions("esgf", Role.APPLICATION, ("live-other",))


def test_commands_survive_a_shell() -> None:
    lines = commands(permissions("tgcc", Role.PRODUCER), "/")
    assert lines == [
        r"rabbitmqctl set_permissions -p / tgcc '^$' '^(x\-primary)$' '^$'",
        r"rabbitmqctl set_topic_permissions -p / tgcc x-primary '^(dev|test|prod)\.tgcc\.' '^$'",
    ]


@pytest.mark.parametrize("name", ["", "a b", "a|.*", "x/y", "-p", "*"])
def test_names_that_could_mean_others_are_refused(name: str) -> None:
    with pytest.raises(Invalid):
        permissions(name, Role.PRODUCER)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('urls = ["amqps://hub:secret@broker/"]', "a password does not belong there"),
        ('urls = ["amqp://hub@broker/"]', "only talked to by amqps"),
        ('urls = ["http://hub@broker/"]', "is not of the form"),
        ('urls = ["amqps://broker/"]', "name the account"),
        ('urls = ["amqps://broker/?no_verify_ssl=1"]', "is not of the form"),
        ("urls = []", "at least one node"),
        ('urls = ["amqps://hub@b/"]\ncert_file = "x"', "belong together"),
        ('urls = ["amqps://hub@b/"]\npasword_file = "x"', "pasword_file"),
        ('urls = ["amqps://hub@b/"]\nprefetch = 0', "prefetch"),
        ("[ampq]\n", "ampq"),
        ("[accounts\n", "amqp.toml"),
    ],
)
def test_wrong_configurations_are_refused_in_words(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "amqp.toml"
    path.write_text(text)
    with pytest.raises(Invalid, match=re.escape(words)) as caught:
        load(path)
    assert "secret" not in str(caught.value)


def test_files_are_named_from_the_configurations_directory(tmp_path: Path) -> None:
    path = tmp_path / "amqp.toml"
    path.write_text('urls = ["amqps://hub@b/"]\npassword_file = "pw"\nca_file = "/etc/ca"\n')
    amqp = load(path)
    assert (amqp.password_file, amqp.ca_file) == (str(tmp_path / "pw"), "/etc/ca")
    (tmp_path / "pw").write_text("secret\n")
    (tmp_path / "pw").chmod(0o644)
    with pytest.raises(Invalid, match="chmod 600"):
        amqp.password()
    (tmp_path / "pw").chmod(0o600)
    assert amqp.password() == "secret"
