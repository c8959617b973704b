"""What `./run check --mutations` takes out is there, and the tests that it runs are."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.mutations import MUTATIONS, Mutation


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: m.safeguard)
def test_each_safeguard_stands_where_the_mutations_look_for_it(
    mutation: Mutation, repository: Path
) -> None:
    text = (repository / "src" / "chappe" / mutation.module).read_text()
    assert text.count(mutation.before) == 1
    file, _, test = mutation.test.partition("::")
    assert f"def {test}" in (repository / file).read_text()
