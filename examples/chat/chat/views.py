"""The pages: choose a room, the room, the page that counts, and a health check for the orchestrator."""

from collections.abc import Callable
from urllib.parse import urlencode

from django.conf import settings
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect, JsonResponse
from django.shortcuts import render
from django.urls import reverse

from chat import rooms


def landing(request: HttpRequest) -> HttpResponse:
    return render(request, "chat/landing.html", {"limits": rooms.LIMITS, "process": settings.CHAT_PROCESS})


def enter(request: HttpRequest) -> HttpResponse:
    """Redirect the landing page's form to the room's address; the room's page reads and removes the name."""
    room = rooms.clean_room(request.GET.get("room", ""))
    name = rooms.clean_name(request.GET.get("name", ""))
    query = f"?{urlencode({'name': name})}" if name else ""
    return HttpResponseRedirect(reverse("room", args=[room]) + query)


def room(request: HttpRequest, room: str) -> HttpResponse:
    clean = rooms.clean_room(room)
    if clean != room:
        return HttpResponseRedirect(reverse("room", args=[clean]))
    return render(request, "chat/room.html", {"room": room, "limits": rooms.LIMITS})


def counting(request: HttpRequest) -> HttpResponse:
    return render(request, "chat/counting.html", {"process": settings.CHAT_PROCESS})


def health(request: HttpRequest) -> HttpResponse:
    return JsonResponse({"ok": True, "process": settings.CHAT_PROCESS})


def content_security_policy(
    get_response: Callable[[HttpRequest], HttpResponse],
) -> Callable[[HttpRequest], HttpResponse]:
    """Return a middleware that permits a page to load only resources of this site, and no inline script."""

    def middleware(request: HttpRequest) -> HttpResponse:
        response = get_response(request)
        policy = "default-src 'self'; img-src 'self' data:; base-uri 'none'; frame-ancestors 'none'"
        response.headers["Content-Security-Policy"] = policy
        return response

    return middleware
