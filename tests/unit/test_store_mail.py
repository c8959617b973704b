"""Whose mail is whose, who signed it, and how far a mailbox was read."""

from __future__ import annotations

from functools import partial

import pytest

from chappe.core.errors import Invalid
from chappe.store import mail, owners, producers, tokens
from chappe.store.journal import MAIN
from chappe.store.mail import Place
from chappe.store.owners import Owner
from chappe.testing.store import StoreRig
from chappe.wire.messages import NewProducer


def test_a_source_belongs_to_a_project_and_a_producer_that_are_there(rig: StoreRig) -> None:
    project = rig.user.project_n
    name = rig.sql("SELECT name FROM project")[0][0]
    assert rig.store.read(owners.owner, name, "main") == Owner(project, MAIN)
    with pytest.raises(Invalid, match="chappe producer add model"):
        rig.store.read(owners.owner, name, "model")
    with pytest.raises(Invalid, match="there is no project elsewhere"):
        rig.store.read(owners.owner, "elsewhere", "main")
    rig.do(producers.add, rig.user, NewProducer("model"))
    assert rig.store.read(owners.owner, name, "model").producer != MAIN


def test_only_a_token_that_counts_and_may_send_signs(rig: StoreRig) -> None:
    made = rig.do(producers.add, rig.user, NewProducer("model", expires_in_s=100.0))
    assert made.token is not None
    prefix, now = made.token.split("_")[2], rig.clock()
    signer = rig.store.read(mail.signer, prefix, now)
    assert signer is not None
    name = rig.sql("SELECT name FROM project")[0][0]
    assert signer.owner == rig.store.read(owners.owner, name, "model")
    assert rig.store.read(mail.signer, prefix, now + 101) is None
    owner = rig.store.read(mail.signer, rig.user.token_prefix, now)
    assert owner is not None
    assert owner.owner == Owner(rig.user.project_n, MAIN)
    _, viewer = rig.do(partial(tokens.issue, role="viewer"), "user", rig.user.project_n)
    assert rig.store.read(mail.signer, viewer, now) is None
    assert rig.store.read(mail.signer, "nobodyhasit1", now) is None
    rig.do(producers.remove, rig.user, "model")
    assert rig.store.read(mail.signer, prefix, now) is None


def test_a_position_is_of_its_place_and_never_goes_back(rig: StoreRig) -> None:
    place = Place("tgcc", "u@h", "INBOX", 7)
    others = (
        place._replace(source="x"),
        place._replace(mailbox="x"),
        place._replace(folder="x"),
        place._replace(uidvalidity=8),
    )
    assert rig.store.read(mail.read_up_to, place) == 0
    for uid in (3, 9, 5):
        rig.do(mail.remember, place, uid)
    assert rig.store.read(mail.read_up_to, place) == 9
    assert [rig.store.read(mail.read_up_to, other) for other in others] == [0] * 4
