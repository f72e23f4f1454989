"""Wire models survive the round trip, and altered envelopes are refused."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from airbridge.core import protocol
from airbridge.core.exceptions import InvalidEnvelope
from airbridge.core.protocol import BundleRef, RefusalReason, WorkItem
from airbridge.core.signing import MAX_ENVELOPE_BYTES, Signer, Verifier

MODELS = sorted(
    (
        model
        for model in vars(protocol).values()
        if isinstance(model, type) and issubclass(model, protocol.Message) and model is not protocol.Message
    ),
    key=lambda model: model.__name__,
)

names = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?", fullmatch=True)
event_names = st.from_regex(r"[a-z][a-z_]{0,20}\.[a-z][a-z_]{0,20}", fullmatch=True)
attempts = st.from_regex(r"[0-9a-f]{32}", fullmatch=True)
digests = st.from_regex(r"sha256:[0-9a-f]{64}", fullmatch=True)
moments = st.datetimes(timezones=st.just(UTC))
texts = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=40)
json_values = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | texts
json_objects: st.SearchStrategy[dict[str, Any]] = st.dictionaries(
    texts, json_values | st.lists(json_values, max_size=2), max_size=3
)

st.register_type_strategy(float, st.floats(min_value=0.5, max_value=1e9))
st.register_type_strategy(datetime, moments)

work_items = st.builds(
    WorkItem,
    region=names,
    pool=names,
    slots=st.integers(1, 32),
    epoch=st.integers(0, 2**31 - 1),
    bundle=st.builds(BundleRef, name=texts, version=digests),
    dag_rel_path=texts,
    issued_at=moments,
    expires_at=moments,
    trace=st.dictionaries(texts, texts, max_size=3),
)


def _strategy(model: type[BaseModel]) -> st.SearchStrategy[Any]:
    """Instances of `model`, with the strategies that its constrained strings need."""
    if model is WorkItem:
        return work_items
    overrides: dict[str, st.SearchStrategy[Any]] = {}
    for field, info in model.model_fields.items():
        if info.annotation is str and any(getattr(meta, "pattern", None) for meta in info.metadata):
            is_event = model is protocol.EdgeEvent and field == "event"
            is_digest = "sha256" in str(info.metadata)
            is_attempt = model is protocol.JoinByBoundKey and field == "attempt"
            overrides[field] = (
                digests if is_digest else event_names if is_event else attempts if is_attempt else names
            )
        elif info.annotation == protocol.JsonObject:
            overrides[field] = json_objects
        elif field == "image":
            overrides[field] = st.none() | digests
        elif isinstance(info.annotation, type) and issubclass(info.annotation, protocol.Message):
            overrides[field] = _strategy(info.annotation)
        elif field in _NESTED:
            overrides[field] = _NESTED[field]()
        elif info.annotation is datetime or "AwareDatetime" in str(info.annotation):
            overrides[field] = moments
    return st.builds(model, **overrides)


def _tuples(model: type[BaseModel]) -> st.SearchStrategy[Any]:
    return st.lists(_strategy(model), min_size=1, max_size=3).map(tuple)


_NESTED: dict[str, Any] = {
    "grants": lambda: _tuples(protocol.Grant),
    "refusals": lambda: _tuples(protocol.Refusal),
    "leases": lambda: _tuples(protocol.LeaseRef),
    "items": lambda: _tuples(protocol.LeaseRef),
    "released": lambda: _tuples(protocol.LeaseRef),
    "records": lambda: _tuples(protocol.Record),
    "results": lambda: _tuples(protocol.RecordResult),
    "verify_keys": lambda: _tuples(protocol.VerifyKey),
    "commands": lambda: _tuples(protocol.CancelCommand),
    "events": lambda: _tuples(protocol.EdgeEvent),
    "join": lambda: (
        _strategy(protocol.JoinByToken)
        | _strategy(protocol.JoinByAwsIam)
        | _strategy(protocol.JoinByBoundKey)
    ),
}


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_a_message_survives_the_round_trip(model: type[protocol.Message]) -> None:
    """Any instance of any wire model is equal to itself after JSON."""

    @given(_strategy(model))
    @settings(max_examples=25, deadline=None)
    def check(message: protocol.Message) -> None:
        assert message == model.model_validate_json(message.model_dump_json())

    check()


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_newer_field_is_ignored(model: type[protocol.Message]) -> None:
    """Version n reads what version n + 1 sends, without the fields that it does not know."""

    @given(_strategy(model))
    @settings(max_examples=5, deadline=None)
    def check(message: protocol.Message) -> None:
        newer = json.loads(message.model_dump_json()) | {"from_the_future": 1}
        assert message == model.model_validate(newer)

    check()


@pytest.fixture(scope="module")
def signer() -> Signer:
    return Signer.generate()


def test_signed_work_item_round_trip(signer: Signer) -> None:
    """A signed work item opens to what the control plane signed."""

    @given(work_items)
    @settings(max_examples=50, deadline=None)
    def check(item: WorkItem) -> None:
        assert item == Verifier([signer.verify_key]).open(signer.sign(item))

    check()


def test_any_altered_byte_is_refused(signer: Signer) -> None:
    """Whichever byte of an envelope is changed, to whatever, no work item comes out."""
    verifier = Verifier([signer.verify_key])

    @given(work_items, st.data())
    @settings(max_examples=200, deadline=None)
    def check(item: WorkItem, data: st.DataObject) -> None:
        envelope = bytearray(signer.sign(item).encode())
        place = data.draw(st.integers(0, len(envelope) - 1))
        envelope[place] = data.draw(st.integers(0, 255).filter(lambda byte: byte != envelope[place]))
        with pytest.raises(InvalidEnvelope):
            verifier.open(envelope.decode("utf-8", errors="replace"))

    check()


@given(st.text(max_size=300) | st.binary(max_size=300).map(lambda data: data.decode("latin-1")))
def test_random_bytes_are_refused(noise: str) -> None:
    """The verifier returns a reason for any bytes on the queue, and never crashes."""
    with pytest.raises(InvalidEnvelope) as refused:
        Verifier([]).open(noise)
    assert refused.value.reason in {RefusalReason.MALFORMED, RefusalReason.BAD_SIGNATURE}


@given(work_items)
@settings(max_examples=10, deadline=None)
def test_another_key_is_refused(item: WorkItem) -> None:
    """A work item signed by a key that the worker was not given never opens, even under a known key id."""
    ours, theirs = Signer.generate(), Signer.generate()
    forged = json.loads(theirs.sign(item)) | {"kid": ours.verify_key.kid}
    for envelope in (theirs.sign(item), json.dumps(forged)):
        with pytest.raises(InvalidEnvelope) as refused:
            Verifier([ours.verify_key]).open(envelope)
        assert refused.value.reason == RefusalReason.BAD_SIGNATURE


def test_a_key_rotation_has_an_overlap(signer: Signer) -> None:
    """With both keys known, items of the old and of the new one open."""
    newer = Signer.generate()
    verifier = Verifier([signer.verify_key, newer.verify_key])
    item = _item()
    assert item == verifier.open(signer.sign(item)) == verifier.open(newer.sign(item))


def test_an_oversized_envelope_is_refused_unread(signer: Signer) -> None:
    """Nothing is parsed that is longer than a work item can be."""
    with pytest.raises(InvalidEnvelope, match="bytes"):
        Verifier([signer.verify_key]).open("[" * (MAX_ENVELOPE_BYTES + 1))


def test_a_naive_time_is_no_time() -> None:
    """Times on the wire carry their zone."""
    with pytest.raises(ValidationError):
        WorkItem.model_validate(_item().model_dump() | {"issued_at": datetime(2025, 1, 1)})  # noqa: DTZ001


def test_unknown_refusal_reason() -> None:
    """A reason that a newer control plane invents is read as UNKNOWN."""
    assert RefusalReason("too_tired") == RefusalReason.UNKNOWN


def test_the_signing_key_survives_its_file(signer: Signer) -> None:
    """A signer loaded from its PEM signs under the same key id."""
    assert signer.verify_key == Signer.from_pem(signer.to_pem()).verify_key


def _item() -> WorkItem:
    now = datetime(2025, 1, 1, tzinfo=UTC)
    return WorkItem.model_validate(
        {
            "item_id": "018f0000-0000-7000-8000-000000000001",
            "ti_id": "018f0000-0000-7000-8000-000000000002",
            "epoch": 0,
            "region": "eu-west-1",
            "pool": "default",
            "bundle": {"name": "dags", "version": "sha256:" + "a" * 64},
            "dag_rel_path": "example.py",
            "issued_at": now,
            "expires_at": now,
        }
    )
