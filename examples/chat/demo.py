"""Serve the chat, let two people talk in it, say how fast that was, and go on until Ctrl-C.

python demo.py embedded     one process: the channel layer is inside it, and so is the worker
python demo.py dedicated    two forwarders, one of which a page can kill, two web processes and a worker
"""

import argparse
import asyncio
import os
import random
import signal
import socket
import sys
import urllib.request
from collections.abc import Awaitable, Coroutine
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import uvicorn
from children import Children
from conversation import converse
from demo_forwarders import Forwarders

HERE = Path(__file__).resolve().parent
READY_PATIENCE = 30.0  # seconds
FORWARDERS = 2
ANY = range(20_000, 32_000)
"""The ports to try, below those that systems give to connecting sockets, one of which could take a free port."""
LOCAL = ("127.0.0.1", "localhost")
NO_PROXY = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", choices=["embedded", "dedicated"])
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets a phone in your network in")
    parser.add_argument("--port", type=int, default=8000, help="the first to try, the next free one is taken; 0: any")
    parser.add_argument("--messages", type=int, default=200, help="how many to measure")
    parser.add_argument("--once", action="store_true", help="end after the conversation")
    options = parser.parse_args()
    if options.messages < 2:
        parser.error("--messages: at least 2 are needed for a percentile")
    prepare_environment(options)
    run = embedded if options.mode == "embedded" else dedicated
    # The loop that the server would choose: uvloop where it is installed.
    with asyncio.Runner(loop_factory=uvicorn.Config("").get_loop_factory()) as runner:
        return runner.run(run(options))


def prepare_environment(options: argparse.Namespace) -> None:
    """Set the variables of the mode, and keep all others in the environment, such as a serializer."""
    for key in (
        "CHANNELS_ZMQ_PULL_SOCKET_ADDRESS",
        "CHANNELS_ZMQ_PUB_SOCKET_ADDRESS",
        "CHAT_FORWARDERS",
        "CHAT_JOBS_IN_PROCESS",
    ):
        os.environ.pop(key, None)
    if options.host not in LOCAL:
        # The name that a phone uses for this host is unknown; the demo shows nothing confidential.
        os.environ.setdefault("CHAT_ALLOWED_HOSTS", "*")


async def embedded(options: argparse.Namespace) -> int:
    stop = stop_by_signals()
    os.environ.setdefault("CHAT_PROCESS", "web")
    listener = bind(options.host, options.port)
    site = f"http://127.0.0.1:{listener.getsockname()[1]}"
    config = uvicorn.Config("chat.asgi:application", log_level="warning", lifespan="on", timeout_graceful_shutdown=2)
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]))

    async def show() -> None:
        await ready(f"{site}/healthz/")
        print(f"The chat is at {site}/ (one process, embedded layer)", flush=True)
        await talk(site, site, options)

    code = await until_stopped(stop, show(), ended(serving, "The web server ended"))
    server.should_exit = True
    await serving
    return code


async def dedicated(options: argparse.Namespace) -> int:
    stop = stop_by_signals()
    ports = free_ports(3 * FORWARDERS)
    first = free_port_from(options.host, options.port)
    second = free_port_from(options.host, first + 1)
    web1, web2 = f"http://127.0.0.1:{first}", f"http://127.0.0.1:{second}"
    web = ["-m", "uvicorn", "chat.asgi:application", "--host", options.host, "--no-access-log"]
    web += ["--timeout-graceful-shutdown", "2"]

    async with Children(HERE) as children:
        forwarders = Forwarders(children, list(zip(ports[::3], ports[1::3], ports[2::3], strict=True)))
        for index in range(FORWARDERS):
            await forwarders.start(index)
        is_private = options.host in LOCAL  # strangers kill nothing
        layer = {**forwarders.environment, "CHAT_FORWARDERS": str(FORWARDERS if is_private else 0)}
        obeying = asyncio.create_task(forwarders.obey())
        await children.start("worker", "manage.py", "runworker", "jobs", environment=layer)
        await children.start("web1", *web, "--port", str(first), environment={**layer, "CHAT_PROCESS": "web1"})
        await children.start("web2", *web, "--port", str(second), environment={**layer, "CHAT_PROCESS": "web2"})

        async def show() -> None:
            for page in forwarders.status_pages:
                await ready(f"{page}/readyz")
            for site in (web1, web2):
                await ready(f"{site}/healthz/")
            print(f"The chat is at {web1}/ (web1) and {web2}/ (web2)")
            print(f"Kill a forwarder, and count messages: {web1}/counting/")
            pages = " and ".join(f"{page}/" for page in forwarders.status_pages)
            print(f"The forwarders' status is at {pages}", flush=True)
            await talk(web1, web2, options)

        try:
            return await until_stopped(stop, show(), children.first_to_end())
        finally:
            obeying.cancel()
            await asyncio.gather(obeying, return_exceptions=True)


async def talk(first: str, second: str, options: argparse.Namespace) -> None:
    print(await converse(first, second, options.messages), flush=True)
    if not options.once:
        print("Ctrl-C ends it.", flush=True)
        await asyncio.Event().wait()


def stop_by_signals() -> asyncio.Event:
    """Return an event that Ctrl-C and a supervisor's SIGTERM set."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop


async def until_stopped(stop: asyncio.Event, show: Coroutine[Any, Any, None], trouble: Awaitable[str]) -> int:
    """Run the demo until it ends, is stopped, or fails, and return the exit code."""
    showing, stopping = asyncio.create_task(show), asyncio.create_task(stop.wait())
    troubled = asyncio.ensure_future(trouble)
    tasks: set[asyncio.Future[Any]] = {showing, stopping, troubled}
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    problem = None
    if not stop.is_set():
        problem = troubled.result() if troubled.done() else problem_of(showing)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    if problem:
        print(problem, file=sys.stderr, flush=True)
    return 1 if problem else 0


def problem_of(show: asyncio.Task[None]) -> str | None:
    error = show.exception()
    if isinstance(error, TimeoutError):
        return f"Gave up waiting: {error or 'a message did not arrive in time'}"
    return f"The conversation failed: {error!r}" if error else None


async def ended(task: asyncio.Task[None], text: str) -> str:
    """Wait for the task, however it ends, and return the text."""
    await asyncio.wait({task})
    return text


async def ready(address: str) -> None:
    """Query the address until it answers with 200.

    Raises:
        TimeoutError: If it does not within 30 seconds.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + READY_PATIENCE
    while not await asyncio.to_thread(answers, address):
        if loop.time() > deadline:
            raise TimeoutError(f"{address} did not answer")
        await asyncio.sleep(0.05)


def answers(address: str) -> bool:
    try:
        with NO_PROXY.open(address, timeout=2) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def bind(host: str, port: int) -> socket.socket:
    """Return a listening socket on the first free port from this one on; 0: on any."""
    for candidate in range(port, port + 100) if port else random.sample(ANY, 100):
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, candidate))
            listener.listen()
        except OSError:
            listener.close()
        else:
            return listener
    tried = f"from {port} to {port + 99}" if port else f"that was tried from {ANY.start} to {ANY.stop - 1}"
    raise SystemExit(f"No port {tried} is free on {host}: choose others by --port.")


def free_port_from(host: str, port: int) -> int:
    with bind(host, port) as listener:
        return int(listener.getsockname()[1])


def free_ports(number: int) -> list[int]:
    """Return ports that are free on this host; all are held until the last one is found, so they differ."""
    with ExitStack() as held:
        sockets = [held.enter_context(bind("127.0.0.1", 0)) for _ in range(number)]
        return [sock.getsockname()[1] for sock in sockets]


if __name__ == "__main__":
    sys.exit(main())
