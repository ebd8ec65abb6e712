"""Our .proto files: the Python beside them is theirs, and the protocol is the clients' own."""

from pathlib import Path
from typing import Any

import pytest
import tritonclient.grpc.model_config_pb2 as their_config
import tritonclient.grpc.service_pb2 as theirs

from service.protocols.v2.proto import inference_pb2 as ours
from service.protocols.v2.proto import model_config_pb2 as our_config
from tests.service.write_protos import FOLDER, ROOT, write_protos


def test_the_generated_code_is_up_to_date(tmp_path: Path) -> None:
    """`make protos` would change nothing."""
    written = write_protos(tmp_path)
    assert len(written) == 4
    for path in written:
        kept = ROOT / FOLDER / path.name
        assert path.read_text() == kept.read_text(), f"{path.name}: run `make protos`"


def field_of(descriptor: Any) -> tuple[object, ...]:
    """What two ends must agree on."""
    kind = descriptor.message_type or descriptor.enum_type
    return (
        descriptor.name,
        descriptor.number,
        descriptor.type,
        descriptor.is_repeated,
        kind.full_name if kind else None,
        descriptor.containing_oneof.name if descriptor.containing_oneof else None,
    )


def messages(file: Any) -> dict[str, Any]:
    """Every message of a file, nested ones too, by name."""
    found: dict[str, Any] = {}

    def add(descriptor: Any) -> None:
        found[descriptor.full_name] = descriptor
        for nested in descriptor.nested_types:
            add(nested)

    for message in file.DESCRIPTOR.message_types_by_name.values():
        add(message)
    return found


@pytest.mark.parametrize(
    ("own", "other"), [(ours, theirs), (our_config, their_config)], ids=["inference", "config"]
)
def test_names_and_numbers_are_tritons(own: Any, other: Any) -> None:
    """Every field of ours is one of theirs; of what is asked and answered, every one of theirs."""
    mine, others = messages(own), messages(other)
    assert set(mine) <= set(others)
    for name, message in mine.items():
        fields = {field_of(field) for field in message.fields}
        expected = {field_of(field) for field in others[name].fields}
        assert fields <= expected, name
        if own is ours:
            assert fields == expected, name
    for name, enum in own.DESCRIPTOR.enum_types_by_name.items():
        values = other.DESCRIPTOR.enum_types_by_name[name].values_by_name
        assert {k: v.number for k, v in enum.values_by_name.items()} == {
            k: v.number for k, v in values.items()
        }


def test_the_methods_are_tritons() -> None:
    """All of them, with their requests, replies and streams."""

    def methods(file: Any) -> set[tuple[object, ...]]:
        (service,) = file.DESCRIPTOR.services_by_name.values()
        return {
            (
                service.full_name,
                method.name,
                method.input_type.full_name,
                method.output_type.full_name,
                method.client_streaming,
                method.server_streaming,
            )
            for method in service.methods
        }

    assert methods(ours) == methods(theirs)
    assert len(methods(ours)) == 20
