"""Whether a server's answers are as the OpenAPI description of its interface says."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx

# Whoever speaks HTTP sends these.
_OF_HTTP = {"connection", "content-length", "content-type", "date", "server", "transfer-encoding"}


@dataclass(frozen=True, slots=True)
class Described:
    """An interface by its description, as `/openapi.json` gives it."""

    description: Mapping[str, Any]

    def operation(self, method: str, path: str) -> Mapping[str, Any]:
        """What is described of a route, by the path that a request names."""
        for template, operations in self.description["paths"].items():
            pattern = re.sub(r"\\{[^}]*\\}", ".+", re.escape(template))
            if re.fullmatch(pattern, path, flags=re.DOTALL):
                found: Mapping[str, Any] = operations[method.lower()]
                return found
        raise AssertionError(f"{path} is not described")

    def header_parameters(self, method: str, path: str) -> dict[str, Mapping[str, Any]]:
        """Schemas of the headers that a request may have, by name."""
        parameters = self.operation(method, path).get("parameters", ())
        return {each["name"]: each["schema"] for each in parameters if each["in"] == "header"}

    def check(self, answer: httpx.Response) -> None:
        """Its status is described, it has every header that goes with it as described, and no other."""
        request = answer.request
        responses = self.operation(request.method, request.url.path)["responses"]
        described = responses.get(str(answer.status_code)) or responses.get("default")
        assert described, f"{request.url.path} answered {answer.status_code}, which is not described"
        headers = described.get("headers", {})
        required = {name for name, header in headers.items() if header["required"]}
        sent = set(answer.headers) - _OF_HTTP
        assert required <= sent <= set(headers), f"described are {sorted(headers)}, sent were {sorted(sent)}"
        for name in sent:
            _check_value(name, answer.headers[name], headers[name]["schema"])


def _check_value(name: str, value: str, schema: Mapping[str, Any]) -> None:
    if schema["type"] == "integer":
        assert int(value) >= schema["minimum"], f"{name} is {value}"
    else:
        assert re.search(schema.get("pattern", ""), value), f"{name} is {value!r}"
        assert value in schema.get("enum", [value]), f"{name} is {value!r}"
