"""Commands that serve prompts and ask a server."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from promptstore.cli.options import AlwaysJsonOption, JsonOption, ModelOption, StoreOption
from promptstore.cli.output import emit
from promptstore.errors import InvalidInputError

if TYPE_CHECKING:
    from promptstore.client import Client

app = typer.Typer()
LIMITS = "Limits"


@app.command(rich_help_panel="Serve")
def serve(
    store: StoreOption = None,
    model: ModelOption = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8080,
    tasks: Annotated[list[str] | None, typer.Option("--task", help="Serve only this task; repeat for more.")] = None,
    poll_s: Annotated[float, typer.Option("--poll", min=0.01, help="Seconds between looks at the store's log.")] = 1.0,
    staleness_s: Annotated[
        float, typer.Option("--staleness", min=0.1, help="Seconds after which the state is stale.")
    ] = 60.0,
    api_keys: Annotated[
        Path | None, typer.Option(help="TOML file of API keys and their scopes; read again when it changes.")
    ] = None,
    allow_anonymous: Annotated[bool, typer.Option("--allow-anonymous", help="Serve others without keys.")] = False,
    drain_delay_s: Annotated[float, typer.Option("--drain-delay", min=0, help="Seconds to go on after SIGTERM.")] = 0.0,
    drain_s: Annotated[
        float, typer.Option("--drain", min=0, help="Seconds to answer what is there, after that.")
    ] = 30.0,
    queued: Annotated[
        int, typer.Option("--max-queued", min=1, help="Inputs that may wait; 429 beyond.", rich_help_panel=LIMITS)
    ] = 512,
    queue_timeout_s: Annotated[
        float,
        typer.Option("--queue-timeout", min=0.1, help="Seconds to wait; 429 beyond.", rich_help_panel=LIMITS),
    ] = 30.0,
    batch_rows: Annotated[
        int, typer.Option("--max-batch", min=1, help="Inputs in one batch.", rich_help_panel=LIMITS)
    ] = 32,
    parallel_batches: Annotated[
        int | None,
        typer.Option(
            "--parallel-batches",
            min=1,
            help="Computed at a time, each on its share of the cores; by default up to four on a CPU, one on a GPU.",
            rich_help_panel=LIMITS,
        ),
    ] = None,
    running: Annotated[
        int, typer.Option("--max-running", min=1, help="Answers generated side by side.", rich_help_panel=LIMITS)
    ] = 32,
    per_minute: Annotated[
        int | None,
        typer.Option("--max-per-minute", min=1, help="Requests by address without a key.", rich_help_panel=LIMITS),
    ] = None,
    body_bytes: Annotated[int, typer.Option("--max-body-bytes", min=1, help="413 beyond.", rich_help_panel=LIMITS)] = 1
    << 20,
    connections: Annotated[
        int, typer.Option("--max-connections", min=1, help="Closed beyond.", rich_help_panel=LIMITS)
    ] = 1000,
    texts: Annotated[
        int, typer.Option("--max-texts", min=1, help="Inputs times tasks of one request.", rich_help_panel=LIMITS)
    ] = 256,
    new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", min=1, help="Of one generated answer.", rich_help_panel=LIMITS)
    ] = 1024,
    device_mib: Annotated[
        int, typer.Option(min=1, help="Prepared prompts on the device.", rich_help_panel=LIMITS)
    ] = 2048,
    host_mib: Annotated[int, typer.Option(min=1, help="Prompts in host memory.", rich_help_panel=LIMITS)] = 2048,
    spill_mib: Annotated[
        int, typer.Option(min=0, help="Prepared prompts on local disk; 0 keeps none.", rich_help_panel=LIMITS)
    ] = 4096,
    compile_network: Annotated[
        bool,
        typer.Option("--compile", help="Compile the model for this CPU: quicker answers, a minute at the first start."),
    ] = False,
    engine: Annotated[Literal["own", "vllm"], typer.Option(help="What runs the model.")] = "own",
    vllm_url: Annotated[str, typer.Option(help="Where vLLM listens, with --engine vllm.", metavar="URL")] = "",
    vllm_model: Annotated[str, typer.Option(help="vLLM's id of the model, if its name does not say so.")] = "",
    vllm_timeout_s: Annotated[
        float, typer.Option("--vllm-timeout", min=0.1, help="Seconds that vLLM may be silent.")
    ] = 60.0,
    sent: Annotated[int, typer.Option("--vllm-max-sent", min=1, help="Inputs at vLLM at one time.")] = 64,
    may_abort: Annotated[
        bool, typer.Option("--abort-rollouts/--keep-rollouts", help="Abort in the store what breaks its bounds here.")
    ] = True,
    as_json: AlwaysJsonOption = False,  # noqa: ARG001 - as in every command
) -> None:
    """Serve every prompt of a store over HTTP, following promotions live. Its page is at /."""
    from promptstore.runtime.bank import Budgets
    from promptstore.runtime.queue import BatchLimits
    from promptstore.runtime.scheduler import SchedulerLimits
    from promptstore.runtime.vllm.answerer import VllmLimits
    from promptstore.serving.middleware import BodyLimits
    from promptstore.serving.options import ServerOptions
    from promptstore.serving.server import run
    from promptstore.serving.service import ServiceLimits
    from promptstore.settings import load_settings

    options = ServerOptions(
        host=host,
        port=port,
        tasks=frozenset(tasks or ()),
        poll_s=poll_s,
        staleness_bound_s=staleness_s,
        api_keys=api_keys,
        allow_anonymous=allow_anonymous,
        anonymous_per_minute=per_minute,
        drain_s=drain_s,
        drain_delay_s=drain_delay_s,
        may_abort_rollouts=may_abort,
        spill_bytes=spill_mib << 20,
        budgets=Budgets(device_mib << 20, host_mib << 20),
        scheduler=SchedulerLimits(
            BatchLimits(rows=batch_rows), queued=queued, running=running, queue_timeout_s=queue_timeout_s
        ),
        service=ServiceLimits(texts=texts, new_tokens=new_tokens),
        body=BodyLimits(body_bytes, connections=connections),
        compile_network=compile_network,
        parallel_batches=parallel_batches,
        engine=engine,
        vllm_url=vllm_url,
        vllm_model=vllm_model,
        vllm_timeout_s=vllm_timeout_s,
        vllm=VllmLimits(queued, sent, queue_timeout_s),
    )
    try:
        run(load_settings(store=store, model=model), options)
    except OSError as error:
        raise InvalidInputError(f"cannot listen on {host}:{port}: {error.strerror}; choose another --port") from error


@app.command(rich_help_panel="Serve")
def ask(
    ref: Annotated[str, typer.Argument(help="task, task@alias, task:number or task@sha256:digest", metavar="REF")],
    texts: Annotated[list[str] | None, typer.Argument(help="Texts to answer.", metavar="[TEXT...]")] = None,
    field: Annotated[
        list[str] | None,
        typer.Option(help="name=value of one input, for a task whose template reads several; repeat for each."),
    ] = None,
    server: Annotated[str | None, typer.Option(help="URL of the server; PROMPTSTORE_SERVER_URL if not given.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Ask a running server: the label of each text, or what a task that generates writes."""
    from promptstore.client import Client
    from promptstore.settings import load_settings

    inputs = _inputs(texts or [], field or [])
    settings = load_settings(server_url=server)
    key = settings.api_key.get_secret_value() if settings.api_key else None
    with Client(settings.server_url, api_key=key) as client:
        writes = client.model(ref)["promptstore"]["kind"] == "generation"
        rows = _written(client, ref, inputs) if writes else _labelled(client, ref, inputs)
    columns = ("answer", "version", "text") if writes else ("label", "probability", "version", "text")
    emit(rows, as_json=as_json, columns=columns)


Input = str | dict[str, str]


def _inputs(texts: list[str], fields: list[str]) -> list[Input]:
    if bool(texts) == bool(fields):
        raise InvalidInputError("ask needs texts, or --field name=value for each field of one input")
    if texts:
        return list(texts)
    pairs = [each.partition("=") for each in fields]
    if wrong := next((name for name, sign, _ in pairs if not sign), None):
        raise InvalidInputError(f"--field {wrong!r}: expected name=value, as in question='is it so'")
    return [{name: value for name, _, value in pairs}]


def _shown(asked: Input) -> str:
    return asked if isinstance(asked, str) else " ".join(f"{name}={value}" for name, value in asked.items())


def _labelled(client: "Client", ref: str, inputs: list[Input]) -> list[dict[str, Any]]:
    return [
        {
            "label": answer.label,
            "probability": round(answer.probabilities[answer.label], 4),
            "version": f"{answer.task}:{answer.version}",
            "digest": answer.digest,
            "text": _shown(inputs[answer.index]),
        }
        for answer in client.classify(ref, inputs)
    ]


def _written(client: "Client", ref: str, inputs: list[Input]) -> list[dict[str, Any]]:
    answers = [client.complete(ref, each) for each in inputs]
    return [
        {"answer": each.text, "version": f"{each.task}:{each.version}", "digest": each.digest, "text": _shown(asked)}
        for each, asked in zip(answers, inputs, strict=True)
    ]
