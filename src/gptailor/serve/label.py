"""A local page for labelling rows: one row at a time, by keyboard or touch."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gptailor.data.read import doubts, infer_roles, read_rows
from gptailor.errors import GptailorError, InputError, number_of
from gptailor.pipeline.columns import joined
from gptailor.serve.label_file import LabelFile, LabelRow, Stale
from gptailor.serve.limits import SAFE_HEADERS, json_response
from gptailor.serve.own_page import load_page
from gptailor.serve.run import listen, server_config
from gptailor.types import RejectedRow

LOOPBACK = "127.0.0.1"
MOST_BODY_BYTES = 100_000
Say = Callable[[str], None]


def label_file(
    location: str,
    *,
    labels: Sequence[str] = (),
    run: Path | None = None,
    text: str | None = None,
    columns: str | None = None,
    out: Path | None = None,
    say: Say = lambda _: None,
) -> LabelFile:
    """Reads the rows, the most telling first where a run is given, and takes up what was labelled before.

    Raises:
        GptailorError: the file can't be read or changed, or there are no labels to choose from.
    """
    if run is None:
        given = _rows_in_order(location, text=text, columns=columns, say=say)
    else:
        given, names = _most_telling_first(run, location, text=text, columns=columns, say=say)
        labels = [*labels, *names]
    rows = [row for row in given if isinstance(row, LabelRow) and row.text.strip()]
    chosen = [name for label in labels if (name := label.strip())]
    target = out or _usual_target(location)
    file = LabelFile(rows, target, chosen)
    if not file.rows:
        raise InputError("has no row with a text.", where=location, fix="Check its columns.")
    if file.repeated:
        say(f"{number_of(file.repeated, 'row')} left out, with the text of another")
    if bad := [row for row in given if isinstance(row, RejectedRow)]:
        first = f"{bad[0].source}:{bad[0].row}: {bad[0].detail}"
        say(f"{number_of(len(bad), 'row')} can't be read, the first at {first}")
    if blank := len(given) - len(bad) - len(rows):
        say(f"{number_of(blank, 'row')} left out, without a text")
    return file


def build_label_app(file: LabelFile) -> ASGIApp:
    """The page and its three actions as an ASGI app."""
    html, policy = load_page("label.html")

    async def page(_: Request) -> Response:
        return Response(html, headers={"content-security-policy": policy}, media_type="text/html")

    async def state(_: Request) -> Response:
        return json_response(file.state())

    async def act(request: Request) -> Response:
        # All in one coroutine without a pause, so that two pages can't act at once.
        body = await _body_of(request)
        try:
            action = request.url.path
            if action == "/label":
                file.label(_place(body), str(body.get("label")))
            elif action == "/skip":
                file.skip(_place(body))
            else:
                file.undo()
        except Stale as error:
            return json_response({"error": {"message": error.what}, "state": file.state()}, status=409)
        except GptailorError as error:
            return json_response({"error": {"message": " ".join(str(error).split("\n"))}}, status=400)
        return json_response(file.state())

    routes = [Route("/", page), Route("/state", state)]
    routes += [Route(path, act, methods=["POST"]) for path in ("/label", "/skip", "/undo")]
    return LocalGate(Starlette(routes=routes))


class LocalGate:
    """Lets in who calls the server by its loopback name, and acts only for its own page.

    A web page elsewhere can send requests here, too. It can't set the JSON content type without asking
    first, which nobody answers, and browsers say where a request comes from.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request with headers that keep it to itself."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *SAFE_HEADERS]
            await send(message)

        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        refusal = _refusal(scope["method"], headers)
        if refusal:
            await json_response({"error": {"message": refusal}}, status=403)(scope, receive, answer)
            return
        await self.app(scope, receive, answer)


def _refusal(method: str, headers: dict[str, str]) -> str:
    """Why a request isn't answered; empty where it is."""
    host = headers.get("host", "")
    if host.rsplit(":", 1)[0].lower() not in (LOOPBACK, "localhost"):
        return "This page answers to its loopback name only. Call it by 127.0.0.1."
    if method == "POST":
        origin = headers.get("origin", f"http://{host}")
        if origin != f"http://{host}" or headers.get("sec-fetch-site", "same-origin") != "same-origin":
            return "Only the page of this server may write labels."
        if headers.get("content-type", "").split(";")[0].strip() != "application/json":
            return "Send JSON with the content type application/json."
        length = headers.get("content-length", "")
        if not length.isdigit() or int(length) > MOST_BODY_BYTES:
            return "The body has no length, or is too large."
    return ""


def serve_label_page(file: LabelFile, *, port: int = 0, announce: Say = print) -> None:
    """Serves the page on this machine until Ctrl+C; every answer is in the file by then.

    Raises:
        GptailorError: the port can't be used.
    """
    listener = listen(LOOPBACK, port)
    left, address = len(file.rows) - len(file.answers), f"http://{LOOPBACK}:{listener.getsockname()[1]}"
    announce(f"{left:,} rows to label at {address} (Ctrl+C ends it)")
    with listener:
        _Server(server_config(build_label_app(file))).run(sockets=[listener])


class _Server(uvicorn.Server):
    """uvicorn, whose end by a signal is an ordinary return."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - uvicorn's signature
        self.force_exit = self.should_exit
        self.should_exit = True


async def _body_of(request: Request) -> dict[str, Any]:
    try:
        body = json.loads(await request.body() or b"{}")
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


def _place(body: dict[str, Any]) -> int:
    place = body.get("place")
    return place if isinstance(place, int) else -1


def _rows_in_order(
    location: str, *, text: str | None, columns: str | None, say: Say
) -> list[LabelRow | RejectedRow]:
    """The file's rows as they stand there, and behind them those that can't be read."""
    file = read_rows(location, columns=columns)
    for line in doubts(location, file.notes):
        say(line)
    column = infer_roles(file.columns, file.rows, text=text, label=None, need_label=False).text
    return [*(LabelRow(row.source, row.row, joined(row, column)) for row in file.rows), *file.rejected]


def _most_telling_first(
    folder: Path, location: str, *, text: str | None, columns: str | None, say: Say
) -> tuple[list[LabelRow | RejectedRow], Sequence[str]]:
    """The file's rows in the order in which they teach the run most, and the run's labels."""
    # With these comes torch, which a page without a run can do without.
    from gptailor.pipeline.rank import rank_file
    from gptailor.pipeline.run import load

    say(f"loading {folder}")
    run = load(folder)
    if run.task == "classification" and run.predictor.form.kind == "multiple":
        raise InputError(
            "gives a text several labels; the page asks for one.",
            where=str(folder),
            fix="Use `gptailor predict --rank uncertain` and label in a spreadsheet.",
        )
    say("ordering the rows: the most telling first")
    ranked = rank_file(run, location, text=text, columns=columns, say=say)
    # What cleaning leaves nothing of comes last; a page without a run shows it, so it may be labelled.
    rows = [
        one.row if isinstance(one.row, RejectedRow) else LabelRow(one.row.source, one.row.row, one.text)
        for one in ranked
    ]
    return rows, run.predictor.label_names


def _usual_target(location: str) -> Path:
    """Beside the file or the folder; of a hub's rows here."""
    if location.startswith("hub:"):
        return Path(f"{_stem(location)}.labels.csv")
    place = Path(location)
    place = place if place.name.strip(".") else place.resolve()  # `.` has no name of its own
    return place.with_name(f"{_stem(str(place))}.labels.csv")


def _stem(location: str) -> str:
    name = Path(location).name.removesuffix(".gz")
    return Path(name).stem or "rows"
