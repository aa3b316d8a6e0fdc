"""Hypothesis strategies for the values of `promptstore.core`."""

from datetime import datetime
from typing import Any

from hypothesis import strategies as st

from promptstore.core.commit import Commit, Signature, names_checkpoint
from promptstore.core.ensemble import COMBINATIONS, MAX_MEMBERS, Ensemble
from promptstore.core.fingerprint import BaseModelFingerprint
from promptstore.core.instant import format_instant
from promptstore.core.manifest import Manifest, Payload, Provenance
from promptstore.core.operation import Attest, Condemn, DeleteAlias, Expire, MoveAlias, Operation, Publish
from promptstore.core.task import DataSource, Label, TaskSpec

names = st.from_regex(r"[a-z0-9](?:[a-z0-9_.-]{0,20}[a-z0-9])?", fullmatch=True)
digests = st.from_regex(r"[0-9a-f]{64}", fullmatch=True)
numbers = st.integers(min_value=1, max_value=10**6)
texts = st.text(max_size=30)
# A day from either end of time, so that every moment exists in UTC.
moments = st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30), timezones=st.timezones())  # noqa: DTZ001
instants = moments.map(format_instant)
finite = st.floats(allow_nan=False, allow_infinity=False)
json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | finite | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
json_objects = st.dictionaries(texts, json_values, max_size=4)

operations: st.SearchStrategy[Operation] = st.one_of(
    st.builds(Publish, names, numbers, digests, digests),
    st.builds(MoveAlias, names, names, st.none() | numbers, numbers, st.booleans()),
    st.builds(DeleteAlias, names, names, numbers),
    st.builds(Attest, names, numbers, names, json_objects),
    st.builds(Expire, names, numbers),
    st.builds(Condemn, st.sets(digests, max_size=4).map(lambda found: tuple(sorted(found)))),
)


@st.composite
def commits(draw: st.DrawFn) -> Commit:
    number = draw(numbers)
    return Commit(
        number=number,
        id=draw(texts),
        parent=draw(digests),
        at=draw(instants),
        actor=draw(texts),
        reason=draw(texts),
        operations=tuple(draw(st.lists(operations, max_size=4))),
        checkpoint=draw(digests) if names_checkpoint(number) else None,
        signatures=tuple(draw(st.lists(st.builds(Signature, digests, texts), max_size=2))),
    )


fingerprints = st.builds(
    BaseModelFingerprint, texts, st.integers(1, 10**5), digests, digests, texts, revision=st.none() | texts
)
provenances = st.builds(
    Provenance,
    mlflow_run=st.none() | texts,
    git_commit=st.none() | texts,
    config_digest=st.none() | digests,
    data_digest=st.none() | digests,
    parent=st.none() | digests,
)
labels = st.lists(
    st.builds(Label, texts.filter(bool), texts.filter(bool)),
    min_size=2,
    max_size=4,
    unique_by=(lambda label: label.name, lambda label: label.verbaliser),
).map(tuple)
tasks = st.builds(
    TaskSpec,
    name=names,
    kind=st.just("classification"),
    template=texts.map(lambda text: text.replace("{", "{{").replace("}", "}}") + "{text}"),
    data=st.builds(DataSource, texts, texts),
    labels=labels,
    max_input_tokens=numbers,
    tuning=json_objects,
)
ensembles = st.builds(Ensemble, st.integers(2, MAX_MEMBERS), st.sampled_from(COMBINATIONS))
manifests = st.builds(
    Manifest,
    payload=st.builds(Payload, digests, numbers, numbers, numbers, st.none() | ensembles),
    fingerprint=fingerprints,
    task=tasks,
    provenance=provenances,
    metrics=st.dictionaries(texts, finite, max_size=4),
)
