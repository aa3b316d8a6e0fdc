"""Random JSON values for a JSON schema as OpenAPI uses it: to fuzz an interface by what it says of itself."""

from collections.abc import Mapping
from typing import Any

from hypothesis import strategies as st

_SURROGATES = st.characters(categories=["Cs"])


def _texts(min_size: int = 0, *, max_size: int) -> st.SearchStrategy[str]:
    """Now and then one that JSON can spell and UTF-8 cannot: it holds halves of surrogate pairs."""
    whole = st.text(min_size=min_size, max_size=max_size)
    broken = st.text(st.characters(codec="utf-8") | _SURROGATES, min_size=min_size, max_size=max_size)
    return st.integers(0, 7).flatmap(lambda drawn: broken if drawn == 7 else whole)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | _texts(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_texts(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def values_of(schema: Mapping[str, Any], root: Mapping[str, Any]) -> st.SearchStrategy[Any]:
    """Values that `schema` allows. root: the document that `$ref` points into."""
    if "$ref" in schema:
        found: Any = root
        for part in schema["$ref"].removeprefix("#/").split("/"):
            found = found[part]
        return values_of(found, root)
    for combined in ("anyOf", "oneOf"):
        if combined in schema:
            return st.one_of([values_of(each, root) for each in schema[combined]])
    if "const" in schema:
        return st.just(schema["const"])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    return _values_of_type(schema, root)


def header_values(schema: Mapping[str, Any]) -> st.SearchStrategy[bytes]:
    """Values of a header that is any text: whatever HTTP lets stand in one, bytes that are not ASCII included."""
    assert schema["type"] == "string"
    assert not {"minLength", "pattern", "enum"} & set(schema)
    allowed = st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_characters="\x7f") | st.just("\t")
    texts = st.text(allowed, max_size=schema.get("maxLength", 200))
    return texts.map(lambda text: text.strip(" \t").encode("latin-1"))


def _values_of_type(schema: Mapping[str, Any], root: Mapping[str, Any]) -> st.SearchStrategy[Any]:
    match schema.get("type"):
        case "null":
            return st.none()
        case "boolean":
            return st.booleans()
        case "integer":
            return st.integers(schema.get("minimum", -(2**65)), schema.get("maximum", 2**65))
        case "number":
            return st.floats(schema.get("minimum"), schema.get("maximum"), allow_nan=False, allow_infinity=False)
        case "string":
            return _texts(schema.get("minLength", 0), max_size=schema.get("maxLength", 40))
        case "array":
            items = values_of(schema.get("items", {}), root)
            return st.lists(items, min_size=schema.get("minItems", 0), max_size=min(4, schema.get("maxItems", 4)))
        case "object":
            return _objects(schema, root)
        case _:
            return JSON


def _objects(schema: Mapping[str, Any], root: Mapping[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    properties = {name: values_of(each, root) for name, each in schema.get("properties", {}).items()}
    required = set(schema.get("required", ()))
    fixed = st.fixed_dictionaries(
        {name: each for name, each in properties.items() if name in required},
        optional={name: each for name, each in properties.items() if name not in required},
    )
    extra = schema.get("additionalProperties")
    if not isinstance(extra, Mapping):
        return fixed
    named = st.dictionaries(_texts(max_size=8), values_of(extra, root), max_size=3)
    return st.builds(lambda some, others: {**others, **some}, fixed, named)
