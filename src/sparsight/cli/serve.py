"""Verbs of the server: serve, and keys add, list, revoke."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from sparsight.cli.knobs import gathered, knob_options
from sparsight.cli.options import Verbs, as_json, print_json
from sparsight.config import build, read_toml, resolve
from sparsight.errors import BadInput, Missing
from sparsight.serve.spec import ModelSpec, ServeSpec, check_names, default_keys_file
from sparsight.serve.store import LIMITS, Store

SMALL = 30_000_000  # parameters


@click.command()
@click.argument("model", required=False)
@knob_options("model", flags={"names": "alias"}, without=("model",), kind=ModelSpec)
@knob_options("serve", kind=ServeSpec)
@click.option("--config", help="A TOML file: [serve], and [[model]] for each model that is served.")
def serve(model: str | None, config: str | None, **options: Any) -> None:
    """Serve MODEL (the demo, where none is named) over HTTP: OpenAI's API, steered."""
    settings, models = _settings(model, config, options)
    try:
        from sparsight.serve.app import create_app
        from sparsight.serve.logs import to_standard_error
        from sparsight.serve.run import check_open, serve
    except ImportError as error:
        raise Missing(f"{error.name} is not installed: pip install 'sparsight[serve]'.") from error
    with Store(settings.keys_file) as store:
        check_open(settings, store)  # before a model is loaded
        to_standard_error()
        serve(create_app(_catalog(models, settings), settings, store))


def _settings(model: str | None, config: str | None, options: dict[str, Any]) -> tuple[ServeSpec, list[ModelSpec]]:
    """From the file, and from the command line, which stands above it."""
    given = gathered(options)
    about_model = given.get("model", {}) | ({} if model is None else {"model": model})
    sections = {"serve": ServeSpec, "model": ModelSpec}
    told = {} if config is None else read_toml(config)
    if "model" in told and about_model:
        raise BadInput(f"'{config}' says which models are served: say there what is to be said of them.")
    found = resolve(sections, told | {"serve": told.get("serve", {}) | given.get("serve", {})})
    models = found.get("model", build(ModelSpec, about_model, "model"))
    models = list(models) if isinstance(models, tuple) else [models]
    check_names(models)
    return found["serve"], models


def _catalog(models: list[ModelSpec], settings: ServeSpec) -> Any:
    """Load every model, and put an engine around it."""
    from sparsight.serve.catalog import Catalog
    from sparsight.serve.embedded import EmbeddedEngine

    engines = {}
    for one in models:
        engine = EmbeddedEngine(
            _scope(one),
            rows=settings.rows,
            queue=settings.queue,
            compiled=settings.compiled,
            prefix_bytes=settings.prefix_bytes,
            longest=settings.longest,
        )
        engines |= dict.fromkeys(one.served, engine)
    return Catalog(engines)


def _scope(model: ModelSpec) -> Any:
    from sparsight.scope.load import load

    scope = load(
        model.model,
        model.sae,
        hook_point=model.hook_point,
        device=model.device,
        dtype=model.dtype,
        atlas=model.atlas,
    )
    if scope.lm.device.type == "cpu" and sum(p.numel() for p in scope.lm.model.parameters()) < SMALL:
        import torch

        torch.set_num_threads(1)  # for matrices this small, threads cost more than they give
    return scope


# ── keys ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

keys_file = click.option(
    "--keys", help="SQLite file of keys and saved variants. [default: in this user's data folder, sparsight/serve.db]"
)


@click.group(cls=Verbs, invoke_without_command=True)
@click.pass_context
def keys(ctx: click.Context) -> None:
    """Who may call the server."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def _limit(flag: str, says: str) -> Any:
    return click.option(f"--{flag}", type=click.IntRange(min=1), help=f"{says}. [default: as many as come]")


@keys.command()
@click.argument("name")
@keys_file
@_limit("requests-per-minute", "Requests in a minute, at most")
@_limit("tokens-per-minute", "Tokens in a minute, of prompts and answers together, at most")
@_limit("concurrent", "Requests at once, at most")
@as_json
def add(name: str, keys: str | None, json_: bool, **limits: int | None) -> None:
    """Make a key. It is shown once, and kept nowhere: the file holds its hash."""
    path = _path(keys)
    with Store(path) as store:
        secret = store.add_key(name, **limits)
    if json_:
        print_json({"name": name, "key": secret, "file": str(path)})
        return
    click.echo(secret)
    click.echo(f"The key of '{name}' in {path}. It is shown this once.", err=True)


@keys.command("list")
@keys_file
@as_json
def list_(keys: str | None, json_: bool) -> None:
    """The keys: whose, since when, when used last, and what they may."""
    from sparsight import screen

    path = _path(keys)
    found = []
    if path.exists():
        with Store(path) as store:
            found = store.keys()
    if json_:
        print_json([{name: getattr(key, name) for name in key.__dataclass_fields__} for key in found])
        return
    screen.show_table({key.name: _told(key) for key in found} or {"keys": "none yet: sparsight keys add NAME"})


@keys.command()
@click.argument("name")
@keys_file
def revoke(name: str, keys: str | None) -> None:
    """Refuse a key from now on, by running servers too."""
    path = _path(keys)
    if not path.exists():
        raise BadInput(f"There are no keys in '{path}': no such file.")
    with Store(path) as store:
        store.revoke_key(name)
    click.echo(f"The key of '{name}' is refused from now on.", err=True)


def _path(keys: str | None) -> Path:
    return default_keys_file() if keys is None else Path(keys).expanduser()


def _told(key: Any) -> str:
    """A key in a line."""
    parts = [f"made {_day(key.created)}", f"last used {_day(key.last_used)}"]
    parts += [f"revoked {_day(key.revoked)}"] if key.revoked is not None else []
    limits = [f"{getattr(key, limit):,} {limit.replace('_', ' ')}" for limit in LIMITS if getattr(key, limit)]
    return ", ".join(parts + (limits or ["no limits"]))


def _day(at: float | None) -> str:
    return "never" if at is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(at))
